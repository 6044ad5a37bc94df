// What each schedule decides, and the cosine that one of them decides by.
#include <gtest/gtest.h>

#include <cmath>
#include <recycled/recycled.hpp>
#include <vector>

#include "reference/random.hpp"
#include "reference/schedules.hpp"

namespace {

using namespace recycled;

static_assert(Schedule<FixedStride> && Schedule<QuerySimilarity> && Schedule<AlwaysFull> && Schedule<NeverFull>);
static_assert(!Schedule<int>);

/// Its moves are copies, which may throw: a layer could not be assigned as a whole or not at all.
struct OnlyCopies : FixedStride {
  std::vector<float> seen;
  OnlyCopies() = default;
  OnlyCopies(const OnlyCopies& other) = default;
  OnlyCopies& operator=(const OnlyCopies& other) = default;
  ~OnlyCopies() = default;
};
static_assert(std::copyable<OnlyCopies> && !Schedule<OnlyCopies>);
static_assert(!detail::recycles<AlwaysFull> && detail::recycles<NeverFull> && !detail::per_head<FixedStride>);

StepInfo at_step(index_t step) {
  StepInfo info;
  info.step = step;
  return info;
}

TEST(FixedStride, IsFullAtEveryStridethStep) {
  for (const index_t stride : {1, 2, 10, 15}) {
    for (index_t step = 1; step <= 60; ++step) {
      const bool full = FixedStride{stride}.decide(at_step(step)) == StepKind::full;
      EXPECT_EQ(full, reference::fixed_stride(stride).full({step, 0, 0, 0, {}, {}})) << stride << ", " << step;
    }
  }
  EXPECT_EQ(FixedStride{}.stride, 10);
}

TEST(FixedStride, LayersTakeTurns) {
  StepInfo info;
  for (info.step = 1; info.step <= 30; ++info.step) {
    int full = 0;
    for (info.layer = 0; info.layer < 20; ++info.layer) full += FixedStride{10}.decide(info) == StepKind::full ? 1 : 0;
    EXPECT_EQ(full, 2) << "of 20 layers, at every token";
  }
}

TEST(AlwaysFull, IsAlwaysFull) {
  for (index_t step = 1; step <= 9; ++step) EXPECT_EQ(AlwaysFull{}.decide(at_step(step)), StepKind::full);
}

TEST(NeverFull, IsNeverFull) {
  for (index_t step = 1; step <= 9; ++step) EXPECT_EQ(NeverFull{}.decide(at_step(step)), StepKind::recycled);
}

StepKind ask(const QuerySimilarity& schedule, index_t step, const std::vector<float>& queries,
             const std::vector<float>& full_queries, index_t head_dim) {
  StepInfo info = at_step(step);
  info.head_dim = head_dim;
  info.queries = queries;
  info.full_queries = full_queries;
  return schedule.decide(info);
}

TEST(QuerySimilarity, RecyclesAboveTheThresholdAlone) {
  const std::vector<float> x{1, 0}, diagonal{1, 1}, away{-1, 0};
  EXPECT_EQ(ask({1, 0.70F}, 1, diagonal, x, 2), StepKind::recycled);  // cosine 0.7071
  EXPECT_EQ(ask({1, 0.71F}, 1, diagonal, x, 2), StepKind::full);
  EXPECT_EQ(ask({1, -0.5F}, 1, away, x, 2), StepKind::full);
  EXPECT_EQ(ask({1, 1.0F}, 1, x, x, 2), StepKind::full);                         // 1 is not greater than 1
  EXPECT_EQ(ask({1, 0.0F}, 1, std::vector<float>{0, 3}, x, 2), StepKind::full);  // nor 0 than 0
}

TEST(QuerySimilarity, ComparesAtEveryStridethStepAlone) {
  const std::vector<float> x{1, 0}, away{-1, 0};
  for (index_t step = 1; step <= 20; ++step) {
    EXPECT_EQ(ask({5, 0.5F}, step, away, x, 2), step % 5 == 0 ? StepKind::full : StepKind::recycled) << step;
  }
}

TEST(QuerySimilarity, ComparesMeansOverTheHeads) {
  // Both heads turn against each other: the means stay.
  EXPECT_EQ(ask({1, 0.9F}, 1, {3, 1, -1, 1}, {-1, 1, 3, 1}, 2), StepKind::recycled);
  reference::Random random(3);
  for (int i = 0; i < 500; ++i) {
    const std::vector<float> then = random.row(7 * 13);
    std::vector<float> now = random.row(7 * 13);
    for (std::size_t d = 0; d < now.size(); ++d) now[d] = now[d] * 0.5F + then[d];
    const bool full = ask({1, 0.85F}, 1, now, then, 13) == StepKind::full;
    EXPECT_EQ(full, reference::query_similarity(1, 0.85F).full({1, 0, 0, 13, now, then}));
  }
}

TEST(QuerySimilarity, TakesTheSafeWayWhereNothingCanBeCompared) {
  const std::vector<float> x{1, 0}, zero{0, 0}, nan{std::nanf(""), 0};
  EXPECT_EQ(ask({1, -1.0F}, 1, zero, x, 2), StepKind::full);
  EXPECT_EQ(ask({1, -1.0F}, 1, x, zero, 2), StepKind::full);
  EXPECT_EQ(ask({1, -1.0F}, 1, nan, x, 2), StepKind::full);
  EXPECT_EQ(ask({1, -1.0F}, 1, x, nan, 2), StepKind::full);
}

TEST(MeanCosine, DependsOnDirectionsAlone) {
  const std::vector<float> a{3e18F, 4e18F}, b{6e-18F, 8e-18F}, c{-3e18F, -4e18F};
  EXPECT_FLOAT_EQ(mean_cosine(a, b, 2), 1);
  EXPECT_FLOAT_EQ(mean_cosine(a, c, 2), -1);
  EXPECT_FLOAT_EQ(mean_cosine(std::vector<float>{1, 0, 0}, std::vector<float>{0, 1, 0}, 3), 0);
}

}  // namespace
