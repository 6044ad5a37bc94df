// What a program can ask of the plugin that it runs with, through its backend registry's get_proc_address:
//
//     ggml_backend_reg_t registry = ggml_backend_reg_by_name("Recycled");
//     recycled_ggml_set_t set = (recycled_ggml_set_t) ggml_backend_reg_get_proc_address(registry, "recycled_ggml_set");
//     const char * error = set("schedule", "fixed-stride:10");
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/// Changes a setting for all contexts; a token that is being computed is exact from there on; what they remember of
/// conversations is dropped. Names and values are those of the environment variables: "schedule", "capacity", "from",
/// "sequences". Returns null or, with nothing changed, what is wrong: a text that lasts until this thread's next call.
typedef const char* (*recycled_ggml_set_t)(const char* name, const char* value);

/// What all contexts did so far. A step is a token in a layer; of a context that is computing, the counts may be from
/// before.
struct recycled_ggml_statistics {
  uint64_t exact_steps;     ///< full attention of single tokens
  uint64_t prefill_tokens;  ///< full attention of several tokens of a sequence together
  uint64_t full_steps;      ///< full attention of any KV head that also chose what to recycle
  uint64_t sketched_steps;  ///< of others: any KV head chose by a sketch of its keys
  uint64_t recycled_steps;
  uint64_t restarts;     ///< tokens that did not continue a known sequence: new, rolled back, shifted
  uint64_t rewritten;    ///< sequences whose rows the host had rewritten: copied, loaded, shifted
  uint64_t handed_back;  ///< nodes that the host's own code computed
  uint64_t rows_read;    ///< KV rows of full, sketched and recycled steps
  uint64_t rows_full;    ///< what exact attention would have read in their place
  uint64_t bytes_read;   ///< of those rows, and of sketches
  uint64_t bytes_full;
};
/// "recycled_ggml_get_statistics"
typedef void (*recycled_ggml_get_statistics_t)(struct recycled_ggml_statistics* statistics);

#ifdef __cplusplus
}
#endif
