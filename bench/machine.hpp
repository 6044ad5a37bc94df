// What the machine itself can do: the yardsticks of every row of the tables, measured beside it.
#pragma once

#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <recycled/recycled.hpp>
#include <string>

namespace bench {

using recycled::index_t;
using Isa = recycled::simd::native;

/// The processor's name as the system has it.
inline std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "unknown CPU";
}

/// Bytes of the last-level cache, 32 MiB where the system doesn't say.
inline index_t last_level_cache() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  if (const long bytes = ::sysconf(_SC_LEVEL3_CACHE_SIZE); bytes > 0) return bytes;
#endif
  return index_t{32} << 20;
}

/// A working set that the last-level cache can't hold.
inline index_t beyond_cache() { return 2 * last_level_cache(); }

/// How many things of `bytes` together exceed the last-level cache.
inline index_t times_to_exceed_cache(double bytes) {
  return std::clamp(static_cast<index_t>(static_cast<double>(beyond_cache()) / bytes) + 1, index_t{2}, index_t{1024});
}

/// Memory that is read from one end to the other, as fast as the threads of a pool can.
class Reader {
 public:
  static constexpr index_t piece = index_t{1} << 16;  ///< floats that a thread reads at a time
  static constexpr double bytes = 64e6;               ///< of one call, about

  void operator()(recycled::ThreadPool& pool) {
    constexpr auto pieces = static_cast<index_t>(bytes / (sizeof(float) * piece));
    if (next_ + pieces * piece > memory().size()) next_ = 0;
    const float* const first = memory().data() + next_;
    pool(pieces, [first](index_t p) { read(first + p * piece); });
    next_ += pieces * piece;
  }
  static double bytes_read() {
    return static_cast<double>(static_cast<index_t>(bytes / (sizeof(float) * piece)) * piece) * sizeof(float);
  }

 private:
  static const recycled::Array<float>& memory() {
    static const recycled::Array<float> memory(beyond_cache() / static_cast<index_t>(sizeof(float)), 1.0F);
    return memory;
  }
  // Eight sums, and prefetches 4 KiB ahead: as fast as anything tried (one to sixteen streams, L1 and L2, 1 to 16 KiB).
  static void read(const float* from) {
    Isa::vec sums[8];
    for (auto& sum : sums) sum = Isa::zero();
    for (index_t i = 0; i < piece; i += 8 * Isa::width) {
      for (int v = 0; v < 8; ++v) {
        recycled::simd::prefetch_l1(from + i + v * Isa::width, 4096);
        sums[v] = Isa::add(sums[v], Isa::load(from + i + v * Isa::width));
      }
    }
    for (auto& sum : sums) benchmark::DoNotOptimize(sum);
  }
  index_t next_ = 0;
};

/// Multiplies and adds in registers on all threads of a pool: nothing can do more operations a second.
struct Multiplier {
  static constexpr index_t rounds = 20000;
  static constexpr int chains = 12;
  void operator()(recycled::ThreadPool& pool) const {
    pool(pool.threads(), [](index_t) {
      Isa::vec sums[chains];
      recycled::simd::unroll<chains>([&](auto i) { sums[i] = Isa::broadcast(static_cast<float>(i)); });
      auto factor = Isa::broadcast(0.5F);
      for (index_t round = 0; round < rounds; ++round) {
        benchmark::DoNotOptimize(factor);
        recycled::simd::unroll<chains>([&](auto i) { sums[i] = Isa::fma(factor, factor, sums[i]); });
      }
      // Their sum is kept, not they: what has an address is no register.
      Isa::vec total = sums[0];
      recycled::simd::unroll<chains>([&](auto i) { total = Isa::add(total, sums[i]); });
      benchmark::DoNotOptimize(total);
    });
  }
  static double flops(int threads) { return 2.0 * rounds * chains * Isa::width * threads; }
};

}  // namespace bench
