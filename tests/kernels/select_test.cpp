// From logits to ranks: each step against the obvious way to do it.
#include <gtest/gtest.h>

#include <numeric>
#include <recycled/kernels/select.hpp>

#include "reference/page_end.hpp"
#include "reference/random.hpp"
#include "simd/instruction_sets.hpp"

namespace {

using namespace recycled;
using reference::Random;

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

template <class>
class MaxPool : public testing::Test {};
TYPED_TEST_SUITE(MaxPool, testing_types::InstructionSets, testing_types::Names);

TYPED_TEST(MaxPool, TakesTheLargestOfTheWindowCutAtTheEnds) {
  Random random(5);
  for (const index_t length : {1, 2, 3, 4, 7, 8, 20, 65}) {
    std::vector<float> values = random.row(length);
    values[static_cast<std::size_t>(length / 2)] = -inf;
    for (index_t width = 1; width <= 2 * length + 5; width += 2) {
      std::vector<float> expected;
      for (index_t j = 0; j < length; ++j) {
        const auto first = values.begin() + std::max(j - width / 2, index_t{0});
        const auto last = values.begin() + std::min(j + width / 2 + 1, length);
        expected.push_back(*std::max_element(first, last));
      }
      std::vector<float> pooled(values.size(), nan);
      reference::PageEnd page(values.size() * sizeof(float));
      kernels::max_pool<TypeParam>({page.place(values.data(), values.size()), values.size()}, width, pooled);
      EXPECT_EQ(pooled, expected) << "width " << width << " over " << length;
    }
  }
}

TYPED_TEST(MaxPool, OfNothingIsNothing) {
  std::vector<float> none;
  kernels::max_pool<TypeParam>(none, 7, none);
  EXPECT_TRUE(none.empty());
}

TYPED_TEST(MaxPool, NaNHidesNoNeighbour) {
  for (std::size_t poisoned = 0; poisoned < 40; ++poisoned) {
    std::vector<float> values = Random(9).row(40), pooled(40), expected(40);
    values[poisoned] = -inf;
    kernels::max_pool<TypeParam>(values, 7, expected);
    values[poisoned] = nan;
    kernels::max_pool<TypeParam>(values, 7, pooled);
    for (std::size_t j = 0; j < pooled.size(); ++j) {
      if (j == poisoned) continue;
      EXPECT_EQ(pooled[j], expected[j]) << "NaN at " << poisoned << ", pooled at " << j;
    }
  }
}

template <class>
class GroupLogWeights : public testing::Test {};
TYPED_TEST_SUITE(GroupLogWeights, testing_types::InstructionSets, testing_types::Names);

TYPED_TEST(GroupLogWeights, AreTheLargestOfTheGroup) {
  Random random(6);
  for (const index_t group : {1, 2, 3, 11}) {
    constexpr index_t length = 50, stride = 53;
    const std::vector<float> logits = random.row(group * stride, 5);
    const std::vector<float> lse = random.row(group, 3);
    std::vector<float> weights(length + 1, -7), expected(length + 1, -7);
    kernels::group_log_weights<TypeParam>(logits.data(), stride, lse, length, weights.data());
    for (index_t j = 0; j < length; ++j) {
      float largest = -inf;
      for (index_t r = 0; r < group; ++r) {
        largest =
            std::max(largest, logits[static_cast<std::size_t>(r * stride + j)] - lse[static_cast<std::size_t>(r)]);
      }
      expected[static_cast<std::size_t>(j)] = largest;
    }
    EXPECT_TRUE(same_bits(weights, expected)) << "group of " << group;
  }
}

TYPED_TEST(GroupLogWeights, OfHiddenPositionsAreMinusInfinity) {
  const std::vector<float> logits{1, -inf, -inf, 2, 3, -inf}, lse{0.5F, 0.25F};
  std::vector<float> weights(3);
  kernels::group_log_weights<TypeParam>(logits.data(), 3, lse, 3, weights.data());
  EXPECT_EQ(weights, (std::vector<float>{1.75F, 2.75F, -inf}));
}

template <class Isa>
float mass(const std::vector<float>& logits, float lse, const std::vector<index_t>& positions) {
  std::vector<float> scratch(static_cast<std::size_t>(simd::padded<Isa>(static_cast<index_t>(positions.size()))), nan);
  return kernels::StepLogits<Isa>{logits.data(), 0}.mass(0, lse, positions, scratch.data());
}

template <class>
class Mass : public testing::Test {};
TYPED_TEST_SUITE(Mass, testing_types::InstructionSets, testing_types::Names);

TYPED_TEST(Mass, IsTheShareOfTheWeightsOnThePositions) {
  Random random(7);
  constexpr index_t length = 300;
  const std::vector<float> logits = random.row(length, 4);
  long double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<long double>(logit));
  const auto lse = static_cast<float>(std::log(sum));
  for (const index_t count : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 299, 300}) {
    std::vector<index_t> positions(length);
    std::iota(positions.begin(), positions.end(), index_t{0});
    std::shuffle(positions.begin(), positions.end(), std::mt19937(static_cast<unsigned>(count)));
    positions.resize(static_cast<std::size_t>(count));
    long double expected = 0;
    for (const index_t p : positions)
      expected += std::exp(static_cast<long double>(logits[static_cast<std::size_t>(p)]));
    const float actual = mass<TypeParam>(logits, lse, positions);
    EXPECT_TRUE(std::abs(actual - expected / sum) <= 4e-6L * (expected / sum)) << count << " positions: " << actual;
  }
}

TYPED_TEST(Mass, OfHiddenPositionsIsZeroAndNaNShows) {
  const std::vector<float> logits{-inf, 0, nan};
  EXPECT_EQ(mass<TypeParam>(logits, 0, std::vector<index_t>{0}), 0);
  EXPECT_EQ(mass<TypeParam>(logits, 0, std::vector<index_t>{0, 1}), 1);
  EXPECT_TRUE(std::isnan(mass<TypeParam>(logits, 0, std::vector<index_t>{1, 2})));
  for (const std::size_t place : {0U, 7U, 15U, 20U}) {  // in a whole vector, and behind it
    std::vector<index_t> many(21, 0);
    many[place] = 1;
    EXPECT_EQ(mass<TypeParam>(logits, 0, many), 1);
    many[place] = 2;
    EXPECT_TRUE(std::isnan(mass<TypeParam>(logits, 0, many))) << place;
  }
}

}  // namespace
