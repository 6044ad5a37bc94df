// What a replay is told, and what it finds out.
#pragma once

#include "schedules.hpp"

namespace replay {

struct Options {
  index_t prompt = 0;    ///< tokens that are in the cache before decoding begins
  index_t capacity = 0;  ///< K
  index_t tokens = 0;    ///< decode steps; 0: all that the trace has
  int threads = 1;
  int rounds = 5;  ///< how often a step's time is taken, for a median
  std::vector<Policy> schedules;
};

/// One decode step of one policy.
struct Step {
  index_t full_heads = 0;  ///< KV heads that took a full step
  double error = 0;
  double microseconds = 0;
};

/// One policy over all decode steps.
struct Result {
  std::string policy;
  index_t full_steps = 0;      ///< summed over the KV heads
  index_t sketched_steps = 0;  ///< the same of refreshes that read the sketch
  index_t rows = 0;            ///< KV rows read: the length at a full step of a KV head, about the capacity at others
  double bytes_share = 0;      ///< bytes read, of keys, values and sketches, over those of full attention at every step
  double error = 0;            ///< |out - exact| / |exact|, mean over steps and query heads
  double covered = 0;          ///< share of exact attention's mass on the rows read, mean over steps and query heads
  double microseconds = 0;     ///< a token: mean over the steps of each step's median time
  std::vector<Step> steps;
};

}  // namespace replay
