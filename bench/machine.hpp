// What the machine itself can do, measured in the same run: the yardstick of every row of the table.
#pragma once

#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <recycled/recycled.hpp>
#include <vector>

namespace bench {

using recycled::index_t;

/// Bytes of the last-level cache, 32 MiB where the system doesn't say.
inline index_t last_level_cache() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  if (const long bytes = ::sysconf(_SC_LEVEL3_CACHE_SIZE); bytes > 0) return bytes;
#endif
  return index_t{32} << 20;
}

/// A working set that the last-level cache can't hold: twice its size, 1 GiB at most.
inline index_t beyond_cache() { return std::min(2 * last_level_cache(), index_t{1} << 30); }

/// GB/s at which `pool` reads memory beyond the cache: the best pass of the run so far, with five more passes when the
/// last are older than a few seconds, because a shared machine changes.
inline double read_bandwidth(recycled::ThreadPool& pool) {
  using clock = std::chrono::steady_clock;
  struct Measured {
    double gigabytes = 0;
    clock::time_point when;
  };
  static std::map<int, Measured> known;
  static const recycled::Array<float> memory(beyond_cache() / static_cast<index_t>(sizeof(float)), 1.0F);
  Measured& best = known[pool.threads()];
  if (best.gigabytes > 0 && clock::now() - best.when < std::chrono::seconds(5)) return best.gigabytes;
  using Isa = recycled::simd::native;
  constexpr index_t piece = index_t{1} << 16;
  const index_t pieces = memory.size() / piece;
  for (int pass = 0; pass < 5; ++pass) {
    const auto start = clock::now();
    pool(pieces, [&](index_t p) {
      Isa::vec sums[8];
      for (auto& sum : sums) sum = Isa::zero();
      const float* from = memory.data() + p * piece;
      for (index_t i = 0; i < piece; i += 8 * Isa::width) {
        for (int v = 0; v < 8; ++v) {
          recycled::simd::prefetch(from + i + v * Isa::width + 1024);
          sums[v] = Isa::add(sums[v], Isa::load(from + i + v * Isa::width));
        }
      }
      for (auto& sum : sums) benchmark::DoNotOptimize(sum);
    });
    const std::chrono::duration<double> seconds = clock::now() - start;
    const double gigabytes = static_cast<double>(pieces * piece) * sizeof(float) / seconds.count() * 1e-9;
    best.gigabytes = std::max(best.gigabytes, gigabytes);
  }
  best.when = clock::now();
  return best.gigabytes;
}

/// Counters of a row: GB/s of KV memory, and their ratio to the read bandwidth of the same run.
inline void report(benchmark::State& state, double bytes_a_step, double bandwidth) {
  const auto steps = static_cast<double>(state.iterations());
  state.counters["KV_MB"] = bytes_a_step * 1e-6;
  state.counters["GB/s"] = benchmark::Counter(bytes_a_step * steps * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_read"] = benchmark::Counter(bytes_a_step * steps * 1e-9 / bandwidth, benchmark::Counter::kIsRate);
}

}  // namespace bench
