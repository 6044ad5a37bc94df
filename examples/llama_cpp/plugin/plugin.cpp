// A ggml backend that computes attention and leaves everything else to the host: an accelerator device without memory
// of its own, loaded by the path in GGML_BACKEND_PATH.
#include <ggml-backend-impl.h>
#include <ggml-impl.h>
#include <ggml-version.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <set>

#include "engine.hpp"
#include "recycled_ggml.h"

namespace {

using plugin::Counts;
using plugin::Engine;
using plugin::Node;
using plugin::Policy;

// ---- What all contexts share

/// Settings and counts; the host may make contexts on any thread.
class Shared {
 public:
  static Shared& get() {
    static Shared shared;
    return shared;
  }
  Policy policy() {
    const std::lock_guard lock(mutex_);
    return policy_;
  }
  std::uint64_t version() const { return version_.load(std::memory_order_acquire); }
  void set(const std::string& name, const std::string& value, const std::string& shown) {
    const std::lock_guard lock(mutex_);
    Policy changed = policy_;
    plugin::set(changed, name, value, shown);
    policy_ = std::move(changed);
    version_.fetch_add(1, std::memory_order_release);
  }
  /// Counts of a context: what came since it last said.
  void add(const Counts& now, Counts& said) {
    const std::lock_guard lock(mutex_);
    for_each([&](auto Counts::*count) { total_.*count += now.*count - said.*count; });
    said = now;
  }
  Counts total() {
    const std::lock_guard lock(mutex_);
    return total_;
  }

 private:
  template <class F>
  static void for_each(const F& f) {
    for (auto count :
         {&Counts::exact_steps, &Counts::prefill_tokens, &Counts::full_steps, &Counts::recycled_steps,
          &Counts::restarts, &Counts::rewritten, &Counts::handed_back, &Counts::rows_read, &Counts::rows_full}) {
      f(count);
    }
  }

  std::mutex mutex_;
  Policy policy_;
  std::atomic<std::uint64_t> version_{1};
  Counts total_;
};

void print_statistics() {
  const Counts c = Shared::get().total();
  const auto number = [](std::uint64_t n) { return static_cast<unsigned long long>(n); };
  std::fprintf(stderr,
               "recycled: %llu exact steps, %llu prefill tokens, %llu full and %llu recycled steps (token x layer); "
               "%llu restarts, %llu rewritten, %llu nodes handed back; recycling read %.1f %% of the rows\n",
               number(c.exact_steps), number(c.prefill_tokens), number(c.full_steps), number(c.recycled_steps),
               number(c.restarts), number(c.rewritten), number(c.handed_back),
               c.rows_full == 0 ? 100.0 : 100.0 * static_cast<double>(c.rows_read) / static_cast<double>(c.rows_full));
}

// ---- The backend: one for each context of the host

struct Backend {
  Engine engine;
  std::uint64_t version = 0;
  Counts said;
  int threads = 1;
  ggml_backend_t host = nullptr;  // the host's CPU backend, once it is needed

  ~Backend() { ggml_backend_free(host); }
};

Backend& backend_of(ggml_backend_t backend) { return *static_cast<Backend*>(backend->context); }

void set_host_threads(ggml_backend_t host, int threads) {
  ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(host));
  const auto set = reinterpret_cast<ggml_backend_set_n_threads_t>(
      ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
  if (set != nullptr) set(host, threads);
}

/// One node by the host's own code.
ggml_status hand_back(Backend& self, const ggml_cgraph* graph, int node) {
  self.engine.count_handed_back();
  if (self.host == nullptr) self.host = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
  if (self.host == nullptr) return GGML_STATUS_FAILED;
  set_host_threads(self.host, self.threads);
  ggml_cgraph single = *graph;
  single.nodes += node;
  single.n_nodes = 1;
  single.n_leafs = 0;
  single.uid = 0;
  return ggml_backend_graph_compute(self.host, &single);
}

ggml_status compute_attention(Backend& self, const ggml_cgraph* graph, int i) {
  try {
    if (self.engine.compute(Node(graph->nodes[i]))) return GGML_STATUS_SUCCESS;
  } catch (const std::exception& error) {  // no memory, most likely: the host needs less
    std::fprintf(stderr, "recycled: %s; the host computes this node\n", error.what());
  }
  return hand_back(self, graph, i);
}

ggml_status compute_graph(ggml_backend_t backend, ggml_cgraph* graph) {
  Backend& self = backend_of(backend);
  if (const std::uint64_t version = Shared::get().version(); version != self.version) {
    self.engine.set_policy(Shared::get().policy());
    self.version = version;
  }
  for (int i = 0; i < graph->n_nodes; ++i) {
    const ggml_tensor* const node = graph->nodes[i];
    if (node->op != GGML_OP_FLASH_ATTN_EXT || (node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) continue;
    if (const ggml_status status = compute_attention(self, graph, i); status != GGML_STATUS_SUCCESS) return status;
  }
  Shared::get().add(self.engine.counts(), self.said);
  return GGML_STATUS_SUCCESS;
}

void set_threads(ggml_backend_t backend, int threads) {
  backend_of(backend).threads = threads;
  backend_of(backend).engine.set_threads(threads);
}

ggml_guid_t guid() {
  static ggml_guid id = {0x7c, 0x1d, 0x5e, 0x90, 0x2b, 0x3f, 0x4a, 0x61,
                         0x9e, 0x08, 0x52, 0xd4, 0xb7, 0x16, 0xca, 0x3d};
  return &id;
}

const ggml_backend_i backend_interface = {
    .get_name = [](ggml_backend_t) { return "Recycled"; },
    .free =
        [](ggml_backend_t backend) {
          delete &backend_of(backend);
          delete backend;
        },
    .set_tensor_async = nullptr,
    .get_tensor_async = nullptr,
    .set_tensor_2d_async = nullptr,
    .get_tensor_2d_async = nullptr,
    .cpy_tensor_async = nullptr,
    .synchronize = nullptr,
    .graph_plan_create = nullptr,
    .graph_plan_free = nullptr,
    .graph_plan_update = nullptr,
    .graph_plan_compute = nullptr,
    .graph_compute = compute_graph,
    .event_record = nullptr,
    .event_wait = nullptr,
    .graph_optimize = nullptr,
};

// ---- The device: no memory of its own, it reads the host's

bool supports(ggml_backend_dev_t, const ggml_tensor* node) {
  switch (node->op) {
    case GGML_OP_NONE:
    case GGML_OP_VIEW:
    case GGML_OP_RESHAPE:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
      return true;
    case GGML_OP_FLASH_ATTN_EXT:
      return Node(node).claimed();
    default:
      return false;
  }
}

#define TEXT_OF(number) #number
#define VERSION_TEXT(major, minor, patch) TEXT_OF(major) "." TEXT_OF(minor) "." TEXT_OF(patch)
constexpr const char* description =
    "attention by Recycled " VERSION_TEXT(RECYCLED_VERSION_MAJOR, RECYCLED_VERSION_MINOR, RECYCLED_VERSION_PATCH);

void no_memory(ggml_backend_dev_t, std::size_t* free, std::size_t* total) { *free = *total = 0; }

void properties(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
  props->name = ggml_backend_dev_name(device);
  props->description = description;
  props->type = GGML_BACKEND_DEVICE_TYPE_ACCEL;
  no_memory(device, &props->memory_free, &props->memory_total);
  props->caps.buffer_from_host_ptr = true;
}

ggml_backend_t make_backend(ggml_backend_dev_t device, const char*) {
  auto* const self = new (std::nothrow) Backend;
  return self == nullptr ? nullptr : new ggml_backend{guid(), backend_interface, device, self};
}

const ggml_backend_device_i device_interface = {
    .get_name = [](ggml_backend_dev_t) { return "Recycled"; },
    .get_description = [](ggml_backend_dev_t) { return description; },
    .get_memory = no_memory,
    .get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; },
    .get_props = properties,
    .init_backend = make_backend,
    .get_buffer_type = [](ggml_backend_dev_t) { return ggml_backend_cpu_buffer_type(); },
    .get_host_buffer_type = nullptr,
    .buffer_from_host_ptr = [](ggml_backend_dev_t, void* data, std::size_t size,
                               std::size_t) { return ggml_backend_cpu_buffer_from_ptr(data, size); },
    .supports_op = supports,
    .supports_buft = [](ggml_backend_dev_t,
                        ggml_backend_buffer_type_t type) { return ggml_backend_buft_is_host(type); },
    .offload_op = nullptr,
    .event_new = nullptr,
    .event_free = nullptr,
    .event_synchronize = nullptr,
};

// ---- What programs can ask for

const char* set_setting(const char* name, const char* value) {
  static thread_local std::string error;
  try {
    Shared::get().set(name, value, name);
    return nullptr;
  } catch (const std::exception& thrown) {
    error = thrown.what();
    return error.c_str();
  }
}

void get_statistics(recycled_ggml_statistics* to) {
  const Counts c = Shared::get().total();
  *to = {c.exact_steps, c.prefill_tokens, c.full_steps, c.recycled_steps, c.restarts,
         c.rewritten,   c.handed_back,    c.rows_read,  c.rows_full};
}

void* procedure(ggml_backend_reg_t, const char* name) {
  const std::string_view asked = name;
  if (asked == "ggml_backend_set_n_threads") return reinterpret_cast<void*>(set_threads);
  if (asked == "recycled_ggml_set") return reinterpret_cast<void*>(set_setting);
  if (asked == "recycled_ggml_get_statistics") return reinterpret_cast<void*>(get_statistics);
  return nullptr;
}

ggml_backend_dev_t only_device(ggml_backend_reg_t registry, std::size_t) {
  static ggml_backend_device device = {device_interface, registry, nullptr};
  return &device;
}

// ---- Loading

/// Structures of ggml have no stable layout, so that only the host that this was built for will do.
bool host_fits() {
  const std::string host = std::string(ggml_version()) + " (" + ggml_commit() + ")";
  if (host == GGML_VERSION " (" GGML_COMMIT ")") return true;
  std::fprintf(stderr,
               "recycled: not loaded: built for ggml " GGML_VERSION " (" GGML_COMMIT
               "), and this program has ggml %s. Build the plugin against its sources.\n",
               host.c_str());
  return false;
}

/// Reads the environment. False, with a message, if it makes no sense.
bool configure() {
  try {
    for (const auto& [variable, setting] :
         {std::pair{"RECYCLED_SCHEDULE", "schedule"}, std::pair{"RECYCLED_CAPACITY", "capacity"},
          std::pair{"RECYCLED_FROM", "from"}, std::pair{"RECYCLED_SEQUENCES", "sequences"}}) {
      const char* const value = std::getenv(variable);
      if (value != nullptr) Shared::get().set(setting, value, variable);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "recycled: not loaded: %s\n", error.what());
    return false;
  }
  return true;
}

}  // namespace

extern "C" {

/// 0 turns the plugin away; the host goes on without it.
GGML_BACKEND_API int ggml_backend_score() {
  static const bool fits = host_fits() && configure();
  return fits ? 1 : 0;
}

GGML_BACKEND_API ggml_backend_reg_t ggml_backend_init() {
  if (ggml_backend_score() == 0) return nullptr;
  static ggml_backend_reg registry = {GGML_BACKEND_API_VERSION,
                                      {[](ggml_backend_reg_t) { return "Recycled"; },
                                       [](ggml_backend_reg_t) { return std::size_t{1}; }, only_device, procedure},
                                      nullptr};
  std::fprintf(stderr, "recycled: %s: %s; needs flash attention (-fa on)\n", description,
               plugin::describe(Shared::get().policy()).c_str());
  const char* const wanted = std::getenv("RECYCLED_STATISTICS");
  if (wanted != nullptr && std::string_view(wanted) != "0") std::atexit(print_statistics);
  return &registry;
}

}  // extern "C"
