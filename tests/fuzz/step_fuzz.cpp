// Layers of any shape and option over rows and queries of any bits, in any layout: nothing is read or written that
// should not be, sets hold what they may, and what is no number stays in its KV head.
#include <algorithm>
#include <cmath>

#include "fuzz/hosted.hpp"
#include "reference/any_policy.hpp"

namespace {

using namespace recycled;
using fuzz::Bytes;
using fuzz::check;
using reference::AnySchedule;

constexpr index_t most = 40;

bool tame(const float* values, index_t count, float largest = 1000) {
  return std::all_of(values, values + count, [largest](float x) { return std::abs(x) <= largest; });
}

AnySchedule any_schedule(Bytes& bytes) {
  switch (bytes.between(0, 3) + 4 * bytes.last(0, 1)) {
    case 0:
    case 4:
      return {FixedStride{bytes.between(1, 6)}};
    case 1:
      return {QuerySimilarity{bytes.between(1, 4), 0.5F}};
    case 2:
      return {SelfCalibrating{.longest = bytes.between(1, 10)}};
    case 5:
      return {NeverFull{}};
    case 6:
      return {Budgeted{std::make_shared<Budget>(0.3F), bytes.between(1, 10)}};
    default:
      return {AlwaysFull{}};
  }
}

/// Rows are recycled as R.
template <Scalar T, Scalar R = T>
void steps(Bytes& bytes) {
  const AnySchedule schedule = any_schedule(bytes);
  const index_t block = values_per_element<T>, kv_heads = bytes.between(1, 2);
  Shape shape{kv_heads * bytes.between(1, 3), kv_heads, block * bytes.between(1, block > 1 ? 2 : 20)};
  shape.value_dim = bytes.last(0, 3) == 1 ? block * bytes.last(1, block > 1 ? 2 : 20) : shape.head_dim;
  LayerOptions options{.capacity = bytes.between(1, 12)};
  if (bytes.between(0, 2) == 0)
    options.attention = {.soft_cap = 5, .window = bytes.between(1, 20), .sinks = bytes.between(0, 3)};
  const index_t sketch = bytes.between(0, 3);
  if (sketch < 2) options.sketch = {.coordinates = 4 * bytes.between(1, 3), .full_every = bytes.between(1, 4)};
  if (sketch == 2) options.sketch = {.keys = true};
  LayerAttention<T, AnySchedule, TopK, R> layer{shape,
                                                options,
                                                schedule,
                                                {.memory = bytes.between(0, 1) == 0 ? 0 : 0.5F,
                                                 .pool = 1 + 2 * bytes.between(0, 2),
                                                 .observation_window = bytes.between(1, 3)}};
  fuzz::Rows<T> rows(fuzz::Layout::of(bytes), shape, most);
  static ThreadPool threads(2);
  const bool parallel = bytes.last(0, 3) == 1;
  const auto with_executor = [&](const auto& call) { parallel ? call(threads) : call(Serial{}); };
  std::vector<bool> sound(static_cast<std::size_t>(kv_heads), true);  // heads that have seen tame numbers alone
  const index_t group = shape.group();
  const auto token = [&](index_t position) {  // written; its query is returned
    const std::vector<float> key = bytes.numbers(kv_heads * shape.head_dim),
                             value = bytes.numbers(kv_heads * shape.value_dim);
    std::vector<float> query = bytes.numbers(shape.query_size());
    rows.write(position, key.data(), value.data());
    for (index_t g = 0; g < kv_heads; ++g) {
      if (!tame(key.data() + g * shape.head_dim, shape.head_dim) ||
          !tame(value.data() + g * shape.value_dim, shape.value_dim) ||
          !tame(query.data() + g * group * shape.head_dim, group * shape.head_dim))
        sound[static_cast<std::size_t>(g)] = false;
    }
    return query;
  };
  if (bytes.last(0, 2) == 1) {
    std::vector<float> query;
    const index_t prompt = bytes.last(1, 20);
    for (index_t p = 0; p < prompt; ++p) query = token(p);
    layer.observe(query, prompt);
  }
  while (!bytes.empty() && layer.length() + 1 < most) {
    const index_t length = layer.length() + 1;
    if (bytes.between(0, 9) == 0 && length > 1) {
      layer.rollback(bytes.between(0, layer.length()));
      continue;
    }
    const std::vector<float> query = token(length - 1);
    const KvView<T> view = rows.view(length);
    const index_t chosen = bytes.last(0, 9);
    if (chosen == 1) {
      const std::vector<float> scores = bytes.numbers(kv_heads * length);
      with_executor([&](auto&& executor) { layer.choose_by_scores(scores, view, executor); });
    }
    if (chosen == 2 && length > 1) {
      const index_t count = bytes.last(0, std::min(options.capacity, length - 1));
      std::vector<index_t> positions;
      for (index_t i = 0; i < kv_heads * count; ++i) positions.push_back((i + i / count) % (length - 1));
      with_executor([&](auto&& executor) { layer.choose_positions(positions, view, executor); });
    }
    std::vector<float> out(static_cast<std::size_t>(shape.output_size()), std::nanf(""));
    const bool prefills = bytes.between(0, 7) == 0;
    with_executor([&](auto&& executor) {
      prefills ? layer.prefill(query, view, out, executor) : layer.step(query, view, out, executor);
    });
    for (index_t g = 0; g < kv_heads; ++g) {
      const index_t size = group * shape.value_dim;
      check(!sound[static_cast<std::size_t>(g)] || tame(out.data() + g * size, size, 1001),
            "a head that sees numbers gives numbers, no larger than its values");
      const std::vector<index_t> held = layer.recycled_positions(g);
      check(static_cast<index_t>(held.size()) <= options.capacity, "sets hold at most K");
      check(std::adjacent_find(held.begin(), held.end(), std::greater_equal<>()) == held.end(), "positions ascend");
      check(held.empty() || (held.front() >= 0 && held.back() < length), "positions are those of the cache");
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  switch (bytes.between(0, 3)) {
    case 0:
      switch (bytes.last(0, 2)) {
        case 0:
          return steps<float>(bytes), 0;
        case 1:
          return steps<float, half>(bytes), 0;
        default:
          return steps<float, bfloat16>(bytes), 0;
      }
    case 1:
      steps<half>(bytes);
      break;
    case 2:
      steps<bfloat16>(bytes);
      break;
    default:
      steps<q8_0>(bytes);
  }
  return 0;
}
