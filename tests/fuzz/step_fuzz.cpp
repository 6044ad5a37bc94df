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
  switch (bytes.between(0, 3)) {
    case 0:
      return {FixedStride{bytes.between(1, 6)}};
    case 1:
      return {QuerySimilarity{bytes.between(1, 4), 0.5F}};
    case 2:
      return {SelfCalibrating{.longest = bytes.between(1, 10)}};
    default:
      return {AlwaysFull{}};
  }
}

/// Rows are recycled as R.
template <Scalar T, Scalar R = T>
void steps(Bytes& bytes) {
  const AnySchedule schedule = any_schedule(bytes);
  const index_t block = values_per_element<T>, kv_heads = bytes.between(1, 2);
  const Shape shape{kv_heads * bytes.between(1, 3), kv_heads, block * bytes.between(1, block > 1 ? 2 : 20)};
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
  const index_t row = shape.kv_heads * shape.head_dim;
  fuzz::Rows<T> rows(fuzz::Layout::of(bytes), shape, most);
  std::vector<bool> sound(static_cast<std::size_t>(kv_heads), true);  // heads that have seen tame numbers alone
  while (!bytes.empty() && layer.length() + 1 < most) {
    const index_t length = layer.length() + 1;
    if (bytes.between(0, 9) == 0 && length > 1) {
      layer.rollback(bytes.between(0, layer.length()));
      continue;
    }
    const std::vector<float> key = bytes.numbers(row), value = bytes.numbers(row),
                             query = bytes.numbers(shape.query_size());
    rows.write(length - 1, key.data(), value.data());
    const KvView<T> view = rows.view(length);
    std::vector<float> out(query.size(), std::nanf(""));
    if (bytes.between(0, 7) == 0) {
      layer.prefill(query, view, out);
    } else {
      layer.step(query, view, out);
    }
    const index_t group = shape.group() * shape.head_dim;
    for (index_t g = 0; g < kv_heads; ++g) {
      const auto head = static_cast<std::size_t>(g);
      sound[head] = sound[head] && tame(key.data() + g * shape.head_dim, shape.head_dim) &&
                    tame(value.data() + g * shape.head_dim, shape.head_dim) && tame(query.data() + g * group, group);
      check(!sound[head] || tame(out.data() + g * group, group, 1001),
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
