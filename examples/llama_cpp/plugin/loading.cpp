// What the host calls when it loads the plugin, by the path in GGML_BACKEND_PATH.
#include <ggml-version.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "backend.hpp"
#include "shared.hpp"

namespace {

using plugin::Counts;
using plugin::Shared;

/// When the program ends: what was done, if that was asked for; and whether anything was.
void at_end() {
  const Counts c = Shared::get().total();
  if (Shared::get().used() &&
      c.exact_steps + c.prefill_tokens + c.full_steps + c.sketched_steps + c.recycled_steps + c.handed_back == 0) {
    std::fputs("recycled: there was nothing to do; was flash attention on (-fa on)?\n", stderr);
    return;
  }
  const char* const wanted = std::getenv("RECYCLED_STATISTICS");
  if (wanted == nullptr || std::string_view(wanted) == "0") return;
  const auto number = [](std::uint64_t n) { return static_cast<unsigned long long>(n); };
  std::fprintf(
      stderr,
      "recycled: %llu exact steps, %llu prefill tokens, %llu full, %llu sketched and %llu recycled steps (token "
      "x layer); "
      "%llu restarts, %llu rewritten, %llu nodes handed back",
      number(c.exact_steps), number(c.prefill_tokens), number(c.full_steps), number(c.sketched_steps),
      number(c.recycled_steps), number(c.restarts), number(c.rewritten), number(c.handed_back));
  if (c.rows_full > 0) {
    const auto percent = [](std::uint64_t part, std::uint64_t whole) {
      return 100.0 * static_cast<double>(part) / static_cast<double>(whole);
    };
    std::fprintf(stderr, "; recycling read %.1f %% of the rows, %.1f %% of the bytes",
                 percent(c.rows_read, c.rows_full), percent(c.bytes_read, c.bytes_full));
  }
  std::fputs("\n", stderr);
}

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
  static bool loaded = false;  // hosts may load it more than once
  if (!std::exchange(loaded, true)) {
    std::fprintf(stderr, "recycled: %s: %s; needs flash attention (-fa on)\n", plugin::description(),
                 plugin::describe(Shared::get().policy()).c_str());
    std::atexit(at_end);
  }
  return plugin::registry();
}

}  // extern "C"
