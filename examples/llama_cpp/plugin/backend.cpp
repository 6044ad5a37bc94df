// A ggml backend that computes attention and leaves everything else to the host.
#include "backend.hpp"

#include <ggml-impl.h>

#include <cstdio>
#include <new>

#include "engine.hpp"
#include "shared.hpp"

namespace {

using plugin::Counts;
using plugin::Engine;
using plugin::Node;
using plugin::Shared;

// ---- The backend: one for each context of the host

struct Backend {
  Engine engine;
  std::uint64_t version = 0;
  Counts said = {};
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
constexpr const char* version =
    "attention by Recycled " VERSION_TEXT(RECYCLED_VERSION_MAJOR, RECYCLED_VERSION_MINOR, RECYCLED_VERSION_PATCH);

void no_memory(ggml_backend_dev_t, std::size_t* free, std::size_t* total) { *free = *total = 0; }

void properties(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
  props->name = ggml_backend_dev_name(device);
  props->description = version;
  props->type = GGML_BACKEND_DEVICE_TYPE_ACCEL;
  no_memory(device, &props->memory_free, &props->memory_total);
  props->caps.buffer_from_host_ptr = true;
}

ggml_backend_t make_backend(ggml_backend_dev_t device, const char*) {
  Shared::get().use();
  auto* const self = new (std::nothrow) Backend;
  return self == nullptr ? nullptr : new ggml_backend{guid(), backend_interface, device, self};
}

const ggml_backend_device_i device_interface = {
    .get_name = [](ggml_backend_dev_t) { return "Recycled"; },
    .get_description = [](ggml_backend_dev_t) { return version; },
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

void get_statistics(recycled_ggml_statistics* to) { *to = Shared::get().total(); }

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

}  // namespace

ggml_backend_reg_t plugin::registry() {
  static ggml_backend_reg only = {GGML_BACKEND_API_VERSION,
                                  {[](ggml_backend_reg_t) { return "Recycled"; },
                                   [](ggml_backend_reg_t) { return std::size_t{1}; }, only_device, procedure},
                                  nullptr};
  return &only;
}

const char* plugin::description() { return version; }
