// One token through one layer: every kind of step beside the machine's own limits and beside other engines.
//
//   full        attention over all L positions                 recycled    over the K + 1 rows of a set
//   refresh     a full step that also scores and selects       amortised   a token on average, a refresh every 10
//   sketched    a refresh by a sketch of the keys                          tokens
//   recycled_f16, amortised_f16   the same where the host has f32 or q8_0, and rows are recycled as f16
//
// All data are random, but the query turns from token to token, so that refreshes replace a part of their sets.
// Layers take turns, so that no cache holds their rows; repetitions of all rows of a group take turns, so that all see
// the same machine.
#include "command_line.hpp"

namespace {

using namespace bench;
using recycled::bfloat16;
using recycled::half;
using recycled::q8_0;

/// What a group measures beside the full step.
struct Wanted {
  bool recycling = false;
  bool sketch = false;
  bool peers = false;
};

template <class T>
void decode(const Case& c, const Wanted& wanted, Run& run) {
  if (!std::regex_search(id<T>(c), run.options.only)) return;
  recycled::ThreadPool pool(c.threads);
  const double host_bytes = row_bytes<T>(c.shape) * static_cast<double>(c.shape.kv_heads * c.length);
  const double set_bytes = row_bytes<T>(c.shape) * static_cast<double>(c.shape.kv_heads * (c.capacity + 1));
  // Steps that read the host's rows need as many layers as there are memories; those that read sets need sets enough.
  const index_t full_layers = times_to_exceed_cache(host_bytes);
  // By tens: of ten layers in turn one is at its refresh.
  const index_t set_layers = (std::max(full_layers, times_to_exceed_cache(set_bytes)) + 9) / 10 * 10;
  const Memories<T> memories(c, full_layers);
  const TurningQuery query(c.shape);
  // A sketch belongs to its layer.
  constexpr recycled::SketchOptions sketch{.coordinates = 32, .full_every = index_t{1} << 40};
  const index_t sketched_layers = std::max(
      full_layers, times_to_exceed_cache(static_cast<double>(c.shape.kv_heads * c.length * sketch.coordinates) / 2));
  const auto make_as = [&]<class R>(R /*type*/, bool made, index_t count, auto policy, index_t stride, index_t tokens,
                                    const recycled::SketchOptions& with = {}) {
    using Made = Layers<T, decltype(policy), R>;
    return made ? std::make_unique<Made>(c, memories, query, count, policy, stride, tokens, pool, with) : nullptr;
  };
  const auto make = [&](auto... arguments) { return make_as(T{}, arguments...); };
  const auto full = make(true, full_layers, recycled::AlwaysFull{}, 1, 1);
  const auto recycled = make(wanted.recycling, set_layers, recycled::NeverFull{}, 1, 1);
  const auto refresh = make(wanted.recycling, full_layers, recycled::FixedStride{1}, 1, 10);
  const auto sketched = make(wanted.sketch, sketched_layers, recycled::FixedStride{1}, 1, 10, sketch);
  const auto amortised = make(wanted.recycling, set_layers, recycled::FixedStride{10}, 10, 1);
  using AsHalf = std::conditional_t<std::is_same_v<T, float> || std::is_same_v<T, q8_0>, half, T>;
  const bool mixed = wanted.recycling && !std::is_same_v<AsHalf, T>;
  const auto recycled_half = make_as(AsHalf{}, mixed, set_layers, recycled::NeverFull{}, 1, 1);
  const auto amortised_half = make_as(AsHalf{}, mixed, set_layers, recycled::FixedStride{10}, 10, 1);

  Group group;
  Reader reader;
  reader(pool);  // its memory is made by the first call
  group.add("read", [&] { reader(pool); });
  group.add("fma", [&] { Multiplier{}(pool); });
  const auto add = [&](const char* name, const auto& layers, int steps = 1) {
    if (layers == nullptr) return;
    group.add(name, [&, steps] {
      for (int i = 0; i < steps; ++i) layers->step(pool);
    });
  };
  add("full", full);
  add("recycled", recycled);
  add("refresh", refresh);
  add("sketched", sketched);
  add("amortised", amortised, 10);
  add("recycled_f16", recycled_half);
  add("amortised_f16", amortised_half, 10);
  if (wanted.peers) {
    run.peers.add(
        group,
        [&](bool position_major, const std::string& type) {
          return "decode " + type + (position_major ? " position_major " : " head_major ") +
                 std::to_string(c.shape.head_dim) + " " + std::to_string(c.shape.kv_heads) + " " +
                 std::to_string(c.shape.group()) + " " + std::to_string(c.length) + " " + std::to_string(c.threads) +
                 " " + std::to_string(beyond_cache());
        },
        type_name<T>, c.position_major);
  }

  auto times = group.run();
  for (const char* ten : {"amortised", "amortised_f16"}) {
    for (double& us : times[ten]) us /= 10;
  }
  const double read = run.read(c.threads, Reader::bytes_read() / median(times["read"]));
  const double fma = run.fma(c.threads, Multiplier::flops(c.threads) / median(times["fma"]));
  std::vector<Row> rows;
  const auto take = [&](const char* name, const auto& layers) {
    if (layers == nullptr) return;
    const double bytes = layers->bytes_a_step();
    Row row{name, type_name<T>, c, layout(c.position_major), bytes, c.flops() * bytes / host_bytes, times[name]};
    row.of_read = row.bytes / row.median() / read;
    row.of_fma = row.flops / row.median() / fma;
    run.peers.compare(times, row);
    rows.push_back(row);
  };
  take("full", full);
  take("recycled", recycled);
  take("refresh", refresh);
  take("sketched", sketched);
  take("amortised", amortised);
  take("recycled_f16", recycled_half);
  take("amortised_f16", amortised_half);
  for (const Row& row : run.peers.rows(times, rows.front())) rows.push_back(row);
  for (const Row& row : rows) print(row);
  std::printf("%-37s %2d %36.1f GB/s %26.1f GFLOP/s\n", "machine", c.threads, read * 1e-3, fma * 1e-3);
  run.rows.insert(run.rows.end(), rows.begin(), rows.end());
}

recycled::Shape shape(index_t dim, index_t kv_heads, index_t group) { return {kv_heads * group, kv_heads, dim, dim}; }

}  // namespace

int main(int argc, char** argv) {
  Run run(argc, argv);
  const auto measure = [&]<class T>(T /*type*/, const Case& c, const Wanted& wanted = {}) {
    decode<T>(c, wanted, run);
  };
  print_header();
  constexpr Wanted all{.recycling = true, .peers = true};
  constexpr Wanted ours{.recycling = true};
  const recycled::Shape usual = shape(128, 8, 4);
  // Growth with the context, K fixed; then K in proportion.
  for (index_t length = 1024; length <= 131072; length *= 2) measure(half{}, {usual, length, 512, 2}, all);
  for (const index_t length : {8192, 32768, 131072}) measure(half{}, {usual, length, length / 8, 2}, all);
  measure(half{}, {usual, 8192, 1024, 1}, all);
  // Refreshes by a sketch, as many rows as half of a full refresh's set.
  constexpr Wanted with_sketch{.recycling = true, .sketch = true, .peers = true};
  for (const index_t dim : {64, 128}) {
    for (const index_t length : {8192, 32768}) measure(half{}, {shape(dim, 8, 4), length, length / 16, 2}, with_sketch);
  }
  // Types and layouts.
  measure(q8_0{}, {usual, 8192, 1024, 2}, all);
  measure(q8_0{}, {usual, 8192, 1024, 1}, ours);
  measure(bfloat16{}, {usual, 8192, 1024, 2}, all);
  measure(0.0F, {usual, 8192, 1024, 2}, all);
  measure(half{}, {usual, 8192, 1024, 2, true}, all);
  measure(half{}, {usual, 8192, 1024, 1, true}, ours);
  measure(half{}, {shape(64, 3, 3), 7168, 896, 2, true}, all);  // SmolLM2-135M
  // Groups.
  for (const index_t group : {1, 8}) measure(half{}, {shape(128, 8, group), 8192, 1024, 2}, all);
  // Every shape, the full step alone.
  for (const index_t dim : {64, 128, 256}) {
    for (const index_t group : {1, 3, 4, 8}) {
      for (const index_t length : {8192, 32768}) {
        for (const int threads : {1, 2}) {
          const Case c{shape(dim, dim == 256 ? 4 : 8, group), length, 0, threads};
          measure(half{}, c);
          measure(bfloat16{}, c);
        }
      }
    }
  }
  run.save();
}
