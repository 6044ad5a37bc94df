// The baselines that go by position: SlidingWindow and StreamingLlm.
#include <gtest/gtest.h>

#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::Positions;

constexpr index_t steps = 60;

Positions last(index_t count, index_t length) {
  Positions result;
  for (index_t j = std::max(length - count, index_t{0}); j < length; ++j) result.push_back(j);
  return result;
}
Positions first_and_last(index_t sinks, index_t capacity, index_t length) {
  Positions result = last(capacity - sinks, length);
  for (index_t j = std::min(sinks, length); j-- > 0;) {
    if (result.front() > j) result.insert(result.begin(), j);
  }
  return result;
}

/// Decodes behind a prompt (of 0 tokens: none) with a rollback in the middle; expected(length): the set of each head.
template <class Policy, class Keep, class Expected>
void expect_sets(const Keep& selection, index_t prompt, index_t capacity, const Policy& policy,
                 const Expected& expected) {
  const Shape shape{4, 2, 19, 5};
  Decoder<float, Policy, Keep> decoder({1, shape}, {.capacity = capacity}, policy, selection);
  reference::Tokens tokens(shape, 6);
  if (prompt > 0) reference::prefill(decoder, tokens.next(prompt));
  for (index_t step = 0; step < steps; ++step) {
    if (step == steps / 2) decoder.rollback(3);
    reference::decode(decoder, tokens.next(1));
    for (index_t g = 0; g < 2; ++g) {
      ASSERT_EQ(decoder.layer(0).recycled_positions(g), expected(decoder.length())) << "step " << step;
    }
  }
}

TEST(SlidingWindow, KeepsTheMostRecent) {
  for (const index_t prompt : {0, 1, 60}) {
    for (const index_t capacity : {1, 12, 50, 100, 200}) {
      const auto expected = [&](index_t length) { return last(capacity, length); };
      expect_sets(SlidingWindow{}, prompt, capacity, NeverFull{}, expected);
      expect_sets(SlidingWindow{}, prompt, capacity, FixedStride{7}, expected);
    }
  }
}

TEST(StreamingLlm, KeepsItsSinksForGood) {
  for (const index_t prompt : {0, 1, 3, 60}) {
    for (const index_t capacity : {5, 12, 50, 100, 200}) {
      for (const index_t sinks : {0, 4}) {
        const auto expected = [&](index_t length) { return first_and_last(sinks, capacity, length); };
        expect_sets(StreamingLlm{sinks}, prompt, capacity, NeverFull{}, expected);
        expect_sets(StreamingLlm{sinks}, prompt, capacity, FixedStride{7}, expected);
      }
    }
  }
}

TEST(StreamingLlm, KeepsNothingElseWhereSinksAreAll) {
  expect_sets(StreamingLlm{3}, 60, 3, NeverFull{}, [](index_t) { return Positions{0, 1, 2}; });
  expect_sets(StreamingLlm{9}, 60, 3, FixedStride{7}, [](index_t) { return Positions{0, 1, 2}; });
}

}  // namespace
