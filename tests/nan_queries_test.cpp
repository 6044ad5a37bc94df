// A query that is no number: its own step and its own head are spoilt, and the next step chooses again.
#include <gtest/gtest.h>

#include <cmath>

#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::Cache;
using reference::heads_with_nan;

constexpr Shape shape{6, 3, 32, 64};
constexpr index_t prompt = 80;
constexpr index_t length = 120;

/// One step whose query is no number, then sound ones.
template <class Policy>
void expect_full_after_nan(const Policy& policy, const LayerOptions& options, bool nan_in_prompt) {
  reference::Random random(5);
  auto cache = Cache<float>::random(shape, length, random);
  LayerAttention<float, Policy> layer(shape, options, policy);
  std::vector<float> query = random.row(shape.query_size()), out(reference::at(shape.output_size()));
  std::vector<float> spoilt = query;
  spoilt[70] = std::nanf("");  // a query head of KV head 1
  layer.observe(nan_in_prompt ? spoilt : query, prompt);
  if (!nan_in_prompt) {
    index_t end = prompt + 1;
    for (; end <= prompt + 3; ++end) layer.step(query, cache.view(end), out);
    layer.step(spoilt, cache.view(end), out);  // step 4: a full one
    ASSERT_EQ(layer.last_step(1), StepKind::full);
    EXPECT_EQ(heads_with_nan(out, shape), (std::vector<bool>{false, true, false}));
  }
  layer.step(query, cache.view(layer.length() + 1), out);
  EXPECT_EQ(layer.last_step(1), StepKind::full);
  EXPECT_EQ(layer.last_step(0), StepKind::recycled);
  EXPECT_EQ(heads_with_nan(out, shape), (std::vector<bool>{false, false, false}));
  layer.step(query, cache.view(layer.length() + 1), out);
  EXPECT_EQ(layer.last_step(1), StepKind::recycled);
  EXPECT_EQ(layer.recycled_positions(1).size(), std::size_t{12});
}

TEST(NanQuery, OfAFullStepMakesTheNextOneFull) {
  expect_full_after_nan(FixedStride{4}, {.capacity = 12}, false);
  expect_full_after_nan(FixedStride{4}, {.capacity = 12, .attention = {.window = 30, .sinks = 2}}, false);
}

TEST(NanQuery, OfThePromptMakesTheFirstStepFull) {
  expect_full_after_nan(NeverFull{}, {.capacity = 12}, true);
  expect_full_after_nan(NeverFull{}, {.capacity = 12, .attention = {.window = 30, .sinks = 2}}, true);
}

TEST(NanQuery, AnywhereInTheObservationWindowMakesTheFirstStepFull) {
  reference::Random random(5);
  const auto cache = Cache<float>::random(shape, length, random);
  for (const std::size_t token : {0U, 1U, 2U}) {
    LayerAttention<float, NeverFull> layer(shape, {.capacity = 12, .attention = {.window = 30}}, {},
                                           {.observation_window = 3});
    std::vector<float> queries = random.row(3 * shape.query_size());
    std::vector<float> out(reference::at(shape.output_size()));
    queries[token * reference::at(shape.query_size()) + 70] = std::nanf("");  // a query head of KV head 1
    layer.observe(queries, prompt);
    layer.step(random.row(shape.query_size()), cache.view(prompt + 1), out);
    EXPECT_EQ(layer.last_step(0), StepKind::recycled);
    EXPECT_EQ(layer.last_step(1), StepKind::full) << "token " << token;
    EXPECT_EQ(layer.last_step(2), StepKind::recycled);
  }
}

TEST(NanQuery, NeverFreezesASchedule) {
  reference::Random random(5);
  const auto cache = Cache<float>::random(shape, length, random);
  LayerAttention<float, QuerySimilarity> layer(shape, {.capacity = 12}, {1, 0.5F});
  std::vector<float> query = random.row(shape.query_size()), out(reference::at(shape.output_size()));
  layer.observe(query, prompt);
  layer.step(query, cache.view(prompt + 1), out);
  EXPECT_EQ(layer.last_step(0), StepKind::recycled);
  const std::vector<float> spoilt(query.size(), std::nanf(""));
  layer.step(spoilt, cache.view(prompt + 2), out);
  EXPECT_EQ(layer.last_step(0), StepKind::full);  // a query that can't be compared is not similar
  layer.step(query, cache.view(prompt + 3), out);
  EXPECT_EQ(layer.last_step(0), StepKind::full);  // nor is anything similar to it
  layer.step(query, cache.view(prompt + 4), out);
  EXPECT_EQ(layer.last_step(0), StepKind::recycled);
  EXPECT_EQ(heads_with_nan(out, shape), (std::vector<bool>{false, false, false}));
}

}  // namespace
