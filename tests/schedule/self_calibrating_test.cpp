// What SelfCalibrating decides, and what it learns.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <recycled/recycled.hpp>
#include <vector>

#include "reference/messages.hpp"
#include "reference/random.hpp"
#include "reference/schedules.hpp"

namespace {

using namespace recycled;

constexpr index_t dim = 2;

StepKind ask(SelfCalibrating& schedule, const std::vector<float>& queries, const std::vector<float>& full_queries,
             index_t age = 1, index_t kv_head = 0, index_t head_dim = dim) {
  StepInfo info;
  info.step = info.age = age;
  info.kv_head = kv_head;
  info.kv_heads = 4;
  info.head_dim = head_dim;
  info.queries = queries;
  info.full_queries = full_queries;
  return schedule.decide(info);
}
/// A unit vector at this cosine from (1, 0).
std::vector<float> turned(float cosine) { return {cosine, std::sqrt(1 - cosine * cosine)}; }
const std::vector<float> straight{1, 0};

TEST(SelfCalibrating, RefreshesWhenAQueryHasTurnedAway) {
  SelfCalibrating schedule{.late = 0.5F};
  EXPECT_EQ(ask(schedule, turned(0.71F), straight), StepKind::recycled) << "the first threshold is 0.7";
  EXPECT_EQ(ask(schedule, turned(0.69F), straight), StepKind::full);
}

TEST(SelfCalibrating, GoesByTheHeadThatTurnedMost) {
  SelfCalibrating schedule{.late = 0.5F};
  EXPECT_EQ(ask(schedule, {1, 0, 0, 2, 5, 0}, {3, 0, 0, 1, 1, 0}), StepKind::recycled);
  EXPECT_EQ(ask(schedule, {1, 0, 2, 0, 5, 0}, {3, 0, 0, 1, 1, 0}), StepKind::full);
}

TEST(SelfCalibrating, TakesTheSafeWayWhereNothingCanBeCompared) {
  SelfCalibrating schedule{.thresholds = {0, 0, 0, 0}};
  const float nan = std::nanf("");
  EXPECT_EQ(ask(schedule, {1, 0}, straight), StepKind::recycled);
  for (const std::vector<float>& query : {std::vector<float>{0, 0}, {nan, 0}, {0, nan}}) {
    EXPECT_EQ(ask(schedule, query, straight), StepKind::full);
    EXPECT_EQ(ask(schedule, straight, query), StepKind::full);
    std::vector<float> among{1, 0, query[0], query[1], 1, 0};
    EXPECT_EQ(ask(schedule, among, {1, 0, 1, 0, 1, 0}), StepKind::full) << "one head of three";
  }
}

TEST(SelfCalibrating, RefreshesAtTheLatestAfterTheLongestTime) {
  SelfCalibrating schedule{.longest = 5};
  EXPECT_EQ(ask(schedule, straight, straight, 4), StepKind::recycled);
  EXPECT_EQ(ask(schedule, straight, straight, 5), StepKind::full);
}

TEST(SelfCalibrating, CalmHeadsDoNotAllRefreshAtTheSameToken) {
  SelfCalibrating schedule;
  StepInfo info{.kv_heads = 3, .head_dim = dim, .queries = straight, .full_queries = straight};
  std::map<index_t, int> refreshes;
  for (info.layer = 0; info.layer < 30; ++info.layer) {
    for (info.kv_head = 0; info.kv_head < 3; ++info.kv_head) {
      info.age = 1;
      while (schedule.decide(info) == StepKind::recycled) ++info.age;
      ++refreshes[info.age];
    }
  }
  EXPECT_EQ(refreshes.begin()->first, 48);
  EXPECT_EQ(refreshes.rbegin()->first, 64);
  for (const auto& [age, heads] : refreshes) EXPECT_LE(heads, 6) << "of 90, at age " << age;
}

TEST(SelfCalibrating, EveryHeadLearnsForItself) {
  SelfCalibrating schedule{.late = 0.5F};
  ask(schedule, straight, straight);
  schedule.observe({.step = 1, .kv_head = 2, .kv_heads = 4, .retained_mass = 0.79F});
  schedule.observe({.step = 1, .kv_head = 3, .kv_heads = 4, .retained_mass = 0.81F});
  EXPECT_EQ(schedule.thresholds.size(), 4U);
  EXPECT_FLOAT_EQ(schedule.thresholds[1], 0.7F);
  EXPECT_FLOAT_EQ(schedule.thresholds[2], 0.75F) << "it was late: refresh sooner";
  EXPECT_FLOAT_EQ(schedule.thresholds[3], 0.65F) << "it was not";
  EXPECT_EQ(ask(schedule, turned(0.72F), straight, 1, 2), StepKind::full);
  EXPECT_EQ(ask(schedule, turned(0.67F), straight, 1, 3), StepKind::recycled);
}

TEST(SelfCalibrating, AMassThatIsNoNumberWasLate) {
  SelfCalibrating schedule{.late = 0.5F};
  ask(schedule, straight, straight);
  schedule.observe({.step = 1, .kv_head = 0, .kv_heads = 4, .retained_mass = std::nanf("")});
  EXPECT_FLOAT_EQ(schedule.thresholds[0], 0.75F);
}

TEST(SelfCalibrating, ThresholdsStayWhereTheyMeanSomething) {
  SelfCalibrating schedule{.late = 0.5F};
  ask(schedule, straight, straight);
  for (int i = 0; i < 100; ++i) schedule.observe({.step = 1, .kv_head = 0, .kv_heads = 4, .retained_mass = 0});
  EXPECT_EQ(ask(schedule, straight, straight), StepKind::full) << "always late: a full step at every token";
  for (int i = 0; i < 100; ++i) schedule.observe({.step = 1, .kv_head = 0, .kv_heads = 4, .retained_mass = 1});
  EXPECT_EQ(schedule.thresholds[0], 0);
}

/// A head whose set goes stale once its query has turned beyond some cosine that nobody knows: as many refreshes are
/// late in the end as were asked for.
TEST(SelfCalibrating, AsManyRefreshesAreLateAsWereAskedFor) {
  reference::Random random(7);
  for (const float late : {0.1F, 0.3F, 0.5F, 0.8F}) {
    SelfCalibrating schedule{.late = late, .longest = 1000000};
    int refreshes = 0, were_late = 0;
    float cosine = 1;
    for (int i = 0; i < 60000; ++i) {
      cosine -= 0.02F * std::abs(random.normal());
      if (ask(schedule, turned(std::max(cosine, -1.0F)), straight) == StepKind::recycled) continue;
      const bool stale = cosine < 0.6F + 0.05F * random.normal();
      schedule.observe({.step = i, .kv_head = 0, .kv_heads = 4, .retained_mass = stale ? 0.5F : 0.9F});
      cosine = 1;
      ++refreshes;
      were_late += stale ? 1 : 0;
    }
    EXPECT_GT(refreshes, 1000);
    EXPECT_NEAR(static_cast<double>(were_late) / refreshes, static_cast<double>(late), 0.01) << refreshes;
  }
}

TEST(LeastCosine, IsTheCosineOfAnyDimension) {
  reference::Random random(5);
  for (index_t n = 1; n <= 70; ++n) {
    const std::vector<float> a = random.row(3 * n), b = random.row(3 * n);
    long double least = 1;
    for (index_t i = 0; i < 3 * n; i += n) least = std::min(least, reference::cosine(a.data() + i, b.data() + i, n));
    EXPECT_NEAR(least_cosine(a, b, n), static_cast<double>(least), 1e-6) << n;
  }
  EXPECT_FLOAT_EQ(least_cosine(std::vector<float>{3e18F, 4e18F}, std::vector<float>{6e-18F, 8e-18F}, 2), 1);
}

TEST(SelfCalibrating, ParametersThatMeanNothingAreErrors) {
  const auto message = [](const SelfCalibrating& schedule) {
    return message_of([&] { LayerAttention<float, SelfCalibrating> layer({4, 2, 16}, {.capacity = 8}, schedule); });
  };
  EXPECT_EQ(message({.late = 0.5F}), "");
  EXPECT_EQ(message({.late = 0}), says("SelfCalibrating.late", "0", "between 0 and 1"));
  EXPECT_EQ(message({.late = 1}), says("SelfCalibrating.late", "1", "between 0 and 1"));
  EXPECT_EQ(message({.late = std::nanf("")}), says("SelfCalibrating.late", "nan", "between 0 and 1"));
  EXPECT_EQ(message({.stale = 1.5F}), says("SelfCalibrating.stale", "1.5", "0 to 1"));
  EXPECT_EQ(message({.thresholds = {0.5F, std::nanf("")}}), says("SelfCalibrating.thresholds", "nan", "0 to 1.01"));
  EXPECT_EQ(message({.longest = 0}), says("SelfCalibrating.longest", "0", "at least 1"));
}

/// Where a set has room for all that is visible it holds all of it, whatever the queries do.
TEST(SelfCalibrating, LearnsNothingWhileASetLeavesNothingOut) {
  const Shape shape{2, 1, 8};
  constexpr index_t capacity = 20;
  reference::Random random(3);
  const std::vector<float> keys = random.row(index_t{60} * 8);
  for (const index_t window : {0, 12}) {
    LayerAttention<float, SelfCalibrating> layer(shape, {.capacity = capacity, .attention = {.window = window}},
                                                 {.longest = 2});
    std::vector<float> out(16);
    const auto step = [&](index_t length) {
      layer.step(random.row(16), KvView<float>::position_major(keys.data(), keys.data(), shape, length), out);
      return layer.statistics().total();
    };
    HeadStatistics count;
    for (index_t length = 1; length <= capacity; ++length) count = step(length);
    EXPECT_GT(count.full_steps, 9U);
    EXPECT_EQ(count.measured, 0U);
    EXPECT_EQ(layer.schedule().thresholds, std::vector<float>{0.7F});
    for (index_t length = capacity + 1; length <= 60; ++length) count = step(length);
    EXPECT_EQ(count.measured > 0, window == 0) << "window " << window;
  }
}

/// A refresh that measured a NaN measured nothing: neither the thresholds nor the statistics learn from it.
TEST(SelfCalibrating, LearnsNothingFromAQueryThatIsNoNumber) {
  const Shape shape{2, 1, 8};
  reference::Random random(3);
  const std::vector<float> keys = random.row(index_t{60} * 8);
  LayerAttention<float, SelfCalibrating> layer(shape, {.capacity = 8}, {.longest = 2});
  std::vector<float> query = random.row(16), out(16);
  const auto step = [&](index_t length) {
    layer.step(query, KvView<float>::position_major(keys.data(), keys.data(), shape, length), out);
  };
  for (index_t length = 40; length < 50; ++length) step(length);
  const HeadStatistics before = layer.statistics().total();
  const std::vector<float> thresholds = layer.schedule().thresholds;
  query[3] = std::nanf("");
  step(50);
  EXPECT_EQ(layer.last_step(0), StepKind::full);
  EXPECT_EQ(layer.statistics().total().measured, before.measured);
  EXPECT_EQ(layer.statistics().total().retained_mass, before.retained_mass);
  EXPECT_EQ(layer.schedule().thresholds, thresholds);
}

}  // namespace
