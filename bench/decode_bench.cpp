// Decode steps: full, recycled, refreshing and amortised; prefill; and the selection alone. How to read a row:
//
//   full<f16>/dim:128/kv_heads:8/group:4/L:8192/K:1024/threads:2   Time    KV_MB  GB/s  of_read
//
// Time is one step of one layer; KV_MB the KV memory that it has to read (selection: the scores); of_read its GB/s over
// what the same threads of the same machine read per second at best in the same run. Layers take
// turns, so that no cache holds their rows.
#include <string_view>

#include "host.hpp"

namespace {

using namespace bench;
using recycled::bfloat16;
using recycled::half;
using recycled::q8_0;

template <class T>
constexpr std::string_view type_name = "f32";
template <>
constexpr std::string_view type_name<half> = "f16";
template <>
constexpr std::string_view type_name<bfloat16> = "bf16";
template <>
constexpr std::string_view type_name<q8_0> = "q8_0";

index_t times_to_exceed_cache(double bytes) {
  return std::clamp(static_cast<index_t>(static_cast<double>(beyond_cache()) / bytes) + 1, index_t{2}, index_t{1024});
}

/// Steps of layers that follow `policy`. Their phases are staggered over `stride` tokens, so that any stretch of the
/// measurement holds full and recycled steps in their true proportion.
template <class T, class Policy>
void decode(benchmark::State& state, const Case& c, Policy policy, index_t stride) {
  const double host_bytes = row_bytes<T>(c.shape) * static_cast<double>(c.shape.kv_heads * c.length);
  const double step_bytes =
      stride == 0 ? row_bytes<T>(c.shape) * static_cast<double>(c.shape.kv_heads * (c.capacity + 1)) : host_bytes;
  const bool recycled_alone = stride == 0;
  Layers<T, Policy> layers(c, times_to_exceed_cache(stride == 1 ? host_bytes : std::min(step_bytes, host_bytes / 8)),
                           recycled_alone ? 1 : times_to_exceed_cache(host_bytes), policy);
  recycled::ThreadPool pool(c.threads);
  // A first round chooses the sets of the prompt; the rounds behind it set the phases.
  for (index_t i = 0; i < layers.size(); ++i) {
    for (index_t phase = 0; phase <= (stride > 1 ? i % stride : 0); ++phase) layers.step(i, pool);
  }
  const double bandwidth = read_bandwidth(pool);
  const std::uint64_t before = layers.total().bytes_read;
  index_t i = 0;
  for (auto _ : state) layers.step(i++, pool);
  report(state, static_cast<double>(layers.total().bytes_read - before) / static_cast<double>(state.iterations()),
         bandwidth);
}

template <class T>
void prefill(benchmark::State& state, const Case& c) {
  const auto rows = normals(c.length * c.shape.kv_heads * c.shape.head_dim);
  recycled::Array<T> stored(c.length * c.shape.kv_heads * c.shape.head_dim / recycled::values_per_element<T>);
  recycled::encode(rows.data(), static_cast<index_t>(rows.size()), stored.data());
  const auto queries = normals(c.length * c.shape.query_size());
  std::vector<float> out(queries.size());
  const auto view = recycled::KvView<T>::position_major(stored.data(), stored.data(), c.shape, c.length);
  recycled::ThreadPool pool(c.threads);
  recycled::LayerAttention<T, recycled::AlwaysFull> layer(c.shape, {});
  const double bandwidth = read_bandwidth(pool);
  for (auto _ : state) {
    layer.clear();
    layer.prefill(queries, view, out, pool);
    benchmark::DoNotOptimize(out.data());
  }
  // Two products, two operations a multiply-add, half of the square is causal.
  const double operations = 4.0 * static_cast<double>(c.length) * static_cast<double>(c.length + 1) / 2 *
                            static_cast<double>(c.shape.query_size());
  const auto runs = static_cast<double>(state.iterations());
  report(state, row_bytes<T>(c.shape) * static_cast<double>(c.shape.kv_heads * c.length), bandwidth);
  state.counters["GFLOP/s"] = benchmark::Counter(operations * runs * 1e-9, benchmark::Counter::kIsRate);
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(c.length) * runs, benchmark::Counter::kIsRate);
}

void selection(benchmark::State& state) {
  const index_t length = state.range(0);
  const index_t count = state.range(1);
  const auto scores = normals(length);
  std::vector<float> ranks(scores.size());
  std::vector<index_t> chosen(static_cast<std::size_t>(count));
  recycled::ThreadPool pool(1);
  const double bandwidth = read_bandwidth(pool);
  for (auto _ : state) {
    recycled::TopK{}.rank({scores}, ranks);
    recycled::kernels::top_k(ranks, count, chosen.data());
    benchmark::DoNotOptimize(chosen.data());
  }
  report(state, static_cast<double>(length) * sizeof(float), bandwidth);
}

template <class F>
void add(const std::string& name, F run) {
  benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMicrosecond);
}

/// The four kinds of decode step of one case.
template <class T>
void add_decode(Case c) {
  const auto name = [&](std::string_view kind) {
    return std::string(kind) + "<" + std::string(type_name<T>) + ">" + c.name();
  };
  add(name("full"), [c](benchmark::State& s) { decode<T>(s, c, recycled::AlwaysFull{}, 1); });
  add(name("recycled"), [c](benchmark::State& s) { decode<T>(s, c, recycled::NeverFull{}, 0); });
  add(name("refresh"), [c](benchmark::State& s) { decode<T>(s, c, recycled::FixedStride{1}, 1); });
  add(name("amortised"), [c](benchmark::State& s) { decode<T>(s, c, recycled::FixedStride{10}, 10); });
}

template <class T>
void add_prefill(Case c) {
  add("prefill<" + std::string(type_name<T>) + ">" + c.name(), [c](benchmark::State& s) { prefill<T>(s, c); });
}

void add_all() {
  const auto shape = [](index_t dim, index_t kv_heads, index_t group) {
    return recycled::Shape{kv_heads * group, kv_heads, dim, dim};
  };
  for (const int threads : {1, 2}) {
    for (const index_t length : {1024, 8192, 32768}) add_decode<half>({shape(128, 8, 4), length, length / 8, threads});
    add_decode<half>({shape(128, 8, 4), 32768, 256, threads});
  }
  for (const index_t group : {1, 3, 8}) add_decode<half>({shape(64, 8, group), 8192, 1024, 2});
  add_decode<half>({shape(256, 4, 4), 8192, 1024, 2});
  add_decode<float>({shape(128, 8, 4), 8192, 1024, 2});
  add_decode<bfloat16>({shape(128, 8, 4), 8192, 1024, 2});
  add_decode<q8_0>({shape(128, 8, 4), 8192, 1024, 2});
  for (const int threads : {1, 2}) {
    for (const index_t length : {512, 4096}) add_prefill<half>({shape(128, 8, 4), length, 0, threads});
  }
  for (const index_t group : {1, 8}) add_prefill<half>({shape(128, 8, group), 2048, 0, 2});
  add_prefill<float>({shape(128, 8, 4), 2048, 0, 2});
  add_prefill<bfloat16>({shape(128, 8, 4), 2048, 0, 2});
  add_prefill<q8_0>({shape(128, 8, 4), 2048, 0, 2});
  benchmark::RegisterBenchmark("selection/scores/K", selection)
      ->Args({1024, 128})
      ->Args({8192, 1024})
      ->Args({32768, 4096})
      ->Args({131072, 4096})
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("instruction_set", recycled::simd::native::name);
  for (const int threads : {1, 2}) {
    recycled::ThreadPool pool(threads);
    benchmark::AddCustomContext("read_GB/s_threads_" + std::to_string(threads), std::to_string(read_bandwidth(pool)));
  }
  add_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
