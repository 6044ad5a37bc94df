// Every piece of a step on a thread of its own: the bits are those of one thread, and under ThreadSanitizer
// (tests/run --tsan) no two pieces touch the same memory. A pool may give all pieces to one thread.
#include <gtest/gtest.h>

#include "reference/feed.hpp"
#include "reference/own_threads.hpp"

namespace {

using namespace recycled;
using reference::Bits;
using reference::Tokens;

constexpr Shape shape{10, 5, 64, 32};
constexpr index_t prompt = 120;
constexpr index_t steps = 30;

/// A life of a decoder, with sets that the host chooses in between.
template <class Decoder, class E>
Bits live(Decoder decoder, E&& executor) {
  Tokens tokens(shape, 3);
  Bits all = reference::prefill(decoder, tokens.next(prompt), executor);
  for (index_t i = 0; i < steps; ++i) {
    if (i % 10 == 8) {
      const std::vector<float> scores = reference::Random(7).row(shape.kv_heads * decoder.length());
      decoder.choose_by_scores(0, scores, executor);
    }
    const Bits one = reference::decode(decoder, tokens.next(1), executor);
    all.insert(all.end(), one.begin(), one.end());
    if (i == 15) decoder.rollback(3);
  }
  return all;
}

template <class T, class Policy, class Keep = TopK, class R = T>
void expect_same_bits(const LayerOptions& options, const Policy& schedule, const Keep& selection = {}) {
  const Decoder<T, Policy, Keep, R> decoder({2, shape}, options, schedule, selection);
  EXPECT_EQ(live(decoder, reference::OwnThreads{}), live(decoder, Serial{}));
}

TEST(Pieces, OfASketchedStep) {
  const LayerOptions options{.capacity = 20, .sketch = {.coordinates = 16, .full_every = 5}};
  expect_same_bits<half>(options, FixedStride{3}, TopK{.pool = 1});
  expect_same_bits<float>(options, SelfCalibrating{.late = 0.3F}, TopK{.memory = 0.5F});
}

TEST(Pieces, OfAStepThatReadsAllKeys) {
  expect_same_bits<half>({.capacity = 20, .sketch = {.keys = true}}, FixedStride{3});
  expect_same_bits<bfloat16>({.capacity = 20, .sketch = {.full_every = 4, .keys = true}}, FixedStride{3},
                             HeavyHitters{.recent = 5});
}

TEST(Pieces, OfEverySelectionAndTypeOfRows) {
  expect_same_bits<q8_0>({.capacity = 31}, FixedStride{4}, TopK{.observation_window = 5});
  expect_same_bits<float, QuerySimilarity, TopK, half>({.capacity = 20}, {3, 0.8F});
  expect_same_bits<bfloat16>({.capacity = 20, .attention = {.soft_cap = 20, .window = 60, .sinks = 3}}, FixedStride{3},
                             HeavyHitters{.recent = 5, .observation_window = 8});
  expect_same_bits<half>({.capacity = 20}, NeverFull{}, Keyformer{.recent = 5, .observation_window = 8});
  expect_same_bits<half>({.capacity = 200}, FixedStride{3});
}

}  // namespace
