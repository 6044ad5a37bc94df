// From logits to the positions worth keeping: each step against the obvious way to do it.
#include <gtest/gtest.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include <functional>
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
constexpr float smallest = std::numeric_limits<float>::denorm_min();

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

template <class Isa>
std::vector<index_t> top_k(std::span<const float> ranks, index_t count) {
  std::vector<index_t> chosen(static_cast<std::size_t>(count) + 1, -7);
  kernels::top_k<Isa>(ranks, count, chosen.data());
  EXPECT_EQ(chosen.back(), -7) << "written beyond " << count << " positions";
  chosen.pop_back();
  return chosen;
}

/// Sorts the positions, largest rank first, NaN last, equal ranks by position.
std::vector<index_t> top_k_by_sorting(const std::vector<float>& ranks, index_t count) {
  std::vector<index_t> order(ranks.size());
  std::iota(order.begin(), order.end(), index_t{0});
  std::stable_sort(order.begin(), order.end(), [&](index_t i, index_t j) {
    const float a = ranks[static_cast<std::size_t>(i)], b = ranks[static_cast<std::size_t>(j)];
    return std::isnan(a) ? false : std::isnan(b) ? true : a > b;
  });
  order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

template <class Isa>
void expect_top_k_for_every_count(const std::vector<float>& ranks) {
  for (index_t count = 0; count <= static_cast<index_t>(ranks.size()); ++count) {
    ASSERT_EQ(top_k<Isa>(ranks, count), top_k_by_sorting(ranks, count)) << count << " of " << ranks.size();
  }
}

template <class>
class TopK : public testing::Test {};
TYPED_TEST_SUITE(TopK, testing_types::InstructionSets, testing_types::Names);

TYPED_TEST(TopK, KeepsTheLargestForEveryCount) {
  Random random(1);
  for (const index_t length : {0, 1, 2, 3, 10, 64, 257}) expect_top_k_for_every_count<TypeParam>(random.row(length));
}

TYPED_TEST(TopK, EqualRanksGoToTheLowerPosition) {
  Random random(2);
  expect_top_k_for_every_count<TypeParam>(std::vector<float>(100, -3.5F));
  EXPECT_EQ(top_k<TypeParam>(std::vector<float>(100, -3.5F), 3), (std::vector<index_t>{0, 1, 2}));
  for (const index_t kinds : {2, 5}) {
    std::vector<float> ranks(200);
    for (float& rank : ranks) rank = -static_cast<float>(random.between(1, kinds)) / 3;
    expect_top_k_for_every_count<TypeParam>(ranks);
  }
}

TYPED_TEST(TopK, OrdersOddNumbersAsFloatsAreAndNaNBelowAll) {
  const std::vector<float> odd{0.0F,      -0.0F,   inf,      -inf, nan, -nan,  smallest,
                               -smallest, 3.4e38F, -3.4e38F, 1,    -1,  1e-38F};
  Random random(3);
  for (int round = 0; round < 20; ++round) {
    std::vector<float> ranks(60);
    for (float& rank : ranks)
      rank = odd[static_cast<std::size_t>(random.between(0, static_cast<index_t>(odd.size()) - 1))];
    expect_top_k_for_every_count<TypeParam>(ranks);
  }
  EXPECT_EQ(top_k<TypeParam>(std::vector<float>{nan, -inf, nan}, 1), (std::vector<index_t>{1}));
  EXPECT_EQ(top_k<TypeParam>(std::vector<float>{-0.0F, 0.0F}, 1), (std::vector<index_t>{0}));
  EXPECT_EQ(top_k<TypeParam>(std::vector<float>{nan, nan, nan}, 2), (std::vector<index_t>{0, 1}));
}

TYPED_TEST(TopK, TellsApartFloatsThatDifferInAnyBit) {
  for (int bit = 0; bit < 31; ++bit) {
    for (const std::uint32_t base : {0U, 0x80000000U, 0x3F800000U, 0xC2F6E979U}) {
      const float a = std::bit_cast<float>(base), b = std::bit_cast<float>(base ^ (1U << bit));
      if (!std::isfinite(a) || !std::isfinite(b)) continue;
      for (const auto& ranks : {std::vector<float>{a, b, a}, std::vector<float>{b, a, b}}) {
        expect_top_k_for_every_count<TypeParam>(ranks);
      }
    }
  }
}

TYPED_TEST(TopK, HandlesLongInputsWithFewDistinctLeadingBits) {
  Random random(4);
  std::vector<float> ranks(20000);
  for (float& rank : ranks) rank = -1.0F - static_cast<float>(random.between(0, 3000)) * 1.2e-7F;
  for (const index_t count : {1, 2047, 4096, 19999})
    EXPECT_EQ(top_k<TypeParam>(ranks, count), top_k_by_sorting(ranks, count));
}

TYPED_TEST(TopK, HandlesLongInputsOfEveryKind) {
  Random random(5);
  const std::vector<float> around_zero{0.0F, -0.0F, smallest, -smallest, 2 * smallest, -2 * smallest};
  const std::vector<std::function<float(float)>> kinds{
      [](float x) { return x; },
      [](float x) { return -std::exp(4 * x); },
      [](float x) {
        return x > 1.5F ? inf : x < -1 ? -inf : x > 0 ? nan : x;
      },
      [](float x) { return std::round(x); },
      [&](float x) { return around_zero[static_cast<std::size_t>(std::abs(x) * 100) % around_zero.size()]; },
      [](float x) { return x > 2.5F ? x : -3.5F; },
  };
  for (const index_t length : {2047, 2048, 5003, 40000}) {
    for (const auto& kind : kinds) {
      std::vector<float> ranks = random.row(length);
      std::transform(ranks.begin(), ranks.end(), ranks.begin(), kind);
      for (const index_t count : {index_t{1}, index_t{33}, length / 64, length / 8, length / 2, length - 1, length}) {
        ASSERT_EQ(top_k<TypeParam>(ranks, count), top_k_by_sorting(ranks, count)) << count << " of " << length;
      }
    }
  }
}

/// As many as are gathered at most, and one more, none of which the sample knows of.
TYPED_TEST(TopK, GathersUpTo4096) {
  for (const index_t among : {4095, 4096, 4097}) {
    std::vector<float> ranks(9000, -inf);
    index_t left = among;
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      if (i % 35 == 0) {
        ranks[i] = nan;
      } else if (left > 0) {
        ranks[i] = static_cast<float>(left-- * 7919 % 9001);
      }
    }
    ASSERT_EQ(left, 0);
    for (const index_t count : {1, 2000, 4000})
      EXPECT_EQ(top_k<TypeParam>(ranks, count), top_k_by_sorting(ranks, count)) << count << " of " << among;
  }
}

#if defined(__SSE2__)
TYPED_TEST(TopK, EndsAndFillsTheChoiceWhereDenormalsAreFlushed) {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);  // flush to zero, denormals are zero
  for (const index_t zeros : {20, 100, 3000}) {
    std::vector<float> ranks(40, 1);
    ranks.resize(static_cast<std::size_t>(40 + zeros), 0);
    std::vector<index_t> first(60);
    std::iota(first.begin(), first.end(), index_t{0});
    EXPECT_EQ(top_k<TypeParam>(ranks, 60), first);
    for (std::size_t i = 40; i < ranks.size(); ++i) ranks[i] = static_cast<float>(i % 2) * smallest;
    EXPECT_EQ(top_k<TypeParam>(ranks, 60), first);
    ranks.insert(ranks.end(), 4000, -inf);
    EXPECT_EQ(top_k<TypeParam>(ranks, 60), first);
  }
  _mm_setcsr(before);
}
#endif

TYPED_TEST(TopK, ReadsNothingBehindTheLastRank) {
  const std::vector<float> ranks = Random(8).row(45);
  for (std::size_t length = 1; length <= ranks.size(); ++length) {
    reference::PageEnd page(length * sizeof(float));
    const std::span<const float> at_the_end(page.place(ranks.data(), length), length);
    const auto count = static_cast<index_t>(length + 1) / 2;
    EXPECT_EQ(top_k<TypeParam>(at_the_end, count),
              top_k_by_sorting(std::vector<float>(at_the_end.begin(), at_the_end.end()), count));
  }
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
