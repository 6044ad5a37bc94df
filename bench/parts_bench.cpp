// What a step is made of besides attention: choosing a set from scores, and a parallel region.
#include "host.hpp"

namespace {

using namespace bench;

void selection(benchmark::State& state) {
  const index_t length = state.range(0);
  const index_t count = state.range(1);
  const auto scores = normals(length);
  std::vector<float> ranks(scores.size());
  std::vector<std::uint64_t> words(static_cast<std::size_t>(recycled::kernels::PositionBits::words_for(length)));
  for (auto _ : state) {
    recycled::TopK{}.rank({scores}, ranks);
    recycled::kernels::mark_largest(ranks, count, {words.data(), length});
    benchmark::DoNotOptimize(words.data());
  }
}
BENCHMARK(selection)
    ->ArgNames({"scores", "K"})
    ->Args({1024, 128})
    ->Args({8192, 1024})
    ->Args({32768, 4096})
    ->Args({131072, 4096})
    ->Unit(benchmark::kMicrosecond);

/// A region whose pieces do nothing, as one follows the other within a step.
void region(benchmark::State& state) {
  recycled::ThreadPool pool(static_cast<int>(state.range(0)));
  for (auto _ : state) pool(64, [](index_t i) { benchmark::DoNotOptimize(i); });
}
BENCHMARK(region)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
