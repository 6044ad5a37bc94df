// The K largest of many ranks, floats or whole numbers, against sorting them.
#include <gtest/gtest.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include <functional>
#include <numeric>
#include <recycled/kernels/top_k.hpp>

#include "reference/page_end.hpp"
#include "reference/random.hpp"
#include "simd/instruction_sets.hpp"

namespace {

using namespace recycled;
using reference::Random;

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float smallest = std::numeric_limits<float>::denorm_min();

template <class Isa, class N>
std::vector<index_t> top_k(std::span<const N> ranks, index_t count) {
  const auto length = static_cast<index_t>(ranks.size());
  const index_t words = kernels::PositionBits::words_for(length);
  std::vector<std::uint64_t> bits(static_cast<std::size_t>(words) + 1, 0);
  bits.back() = 7;
  const kernels::PositionBits marked{bits.data(), length};
  kernels::mark_largest<Isa>(ranks, count, marked);
  EXPECT_EQ(bits.back(), 7U) << "written beyond " << length << " positions";
  const index_t first = marked.first(), last = marked.last();
  std::vector<index_t> chosen(static_cast<std::size_t>(length));
  chosen.resize(static_cast<std::size_t>(marked.drain(chosen.data())));
  EXPECT_EQ(first, chosen.empty() ? -1 : chosen.front());
  EXPECT_EQ(last, chosen.empty() ? -1 : chosen.back());
  EXPECT_EQ(marked.first(), -1) << "drained";
  return chosen;
}

template <class Isa, class N>
std::vector<index_t> top_k(const std::vector<N>& ranks, index_t count) {
  return top_k<Isa>(std::span<const N>(ranks), count);
}

/// Sorts the positions, largest rank first, NaN last, equal ranks by position.
template <class N>
std::vector<index_t> top_k_by_sorting(const std::vector<N>& ranks, index_t count) {
  std::vector<index_t> order(ranks.size());
  std::iota(order.begin(), order.end(), index_t{0});
  std::stable_sort(order.begin(), order.end(), [&](index_t i, index_t j) {
    const N a = ranks[static_cast<std::size_t>(i)], b = ranks[static_cast<std::size_t>(j)];
    return a != a ? false : b != b ? true : a > b;
  });
  order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

template <class Isa, class N>
void expect_top_k_for_every_count(const std::vector<N>& ranks) {
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
      const auto a = std::bit_cast<float>(base), b = std::bit_cast<float>(base ^ (1U << bit));
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

TYPED_TEST(TopK, TheLowestIsFoundHoweverDenormalsAreFlushed) {
  const unsigned before = _mm_getcsr();
  std::vector<float> ranks(40);
  std::vector<index_t> positions(ranks.size());
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    ranks[i] = smallest * static_cast<float>(2 + (i * 7 + 5) % ranks.size());
    positions[i] = static_cast<index_t>((i * 13 + 2) % ranks.size());
  }
  for (const unsigned mode : {0U, 0x8000U, 0x40U, 0x8040U}) {  // what comes out is zero, what goes in, both
    for (std::size_t length = 1; length <= ranks.size(); ++length) {
      _mm_setcsr(before | mode);
      const index_t lowest = kernels::lowest_rank<TypeParam>({ranks.data(), length}, positions.data());
      _mm_setcsr(before);
      // Where all of them count as zero the earliest position stands for them.
      const auto end = static_cast<std::ptrdiff_t>(length);
      const auto expected = (mode & 0x40U) != 0
                                ? std::min_element(positions.begin(), positions.begin() + end) - positions.begin()
                                : std::min_element(ranks.begin(), ranks.begin() + end) - ranks.begin();
      EXPECT_EQ(lowest, expected) << length << " ranks, mode " << mode;
    }
  }
}
#endif

/// A sketch's ranks are whole numbers, many of them equal.
TYPED_TEST(TopK, KeepsTheLargestOfShorts) {
  Random random(9);
  const auto shorts = [&](index_t length, index_t lowest, index_t highest) {
    std::vector<std::int16_t> ranks(static_cast<std::size_t>(length));
    for (std::int16_t& rank : ranks) rank = static_cast<std::int16_t>(random.between(lowest, highest));
    return ranks;
  };
  for (const index_t length : {1, 2, 31, 33, 64, 200}) {
    expect_top_k_for_every_count<TypeParam>(shorts(length, -32768, 32767));
    expect_top_k_for_every_count<TypeParam>(shorts(length, -32768, -32767));
    expect_top_k_for_every_count<TypeParam>(shorts(length, 32766, 32767));
    expect_top_k_for_every_count<TypeParam>(shorts(length, -2, 2));
  }
  for (const index_t length : {2048, 5003, 40000}) {
    for (const index_t reach : {0, 3, 400, 32767}) {
      std::vector<std::int16_t> ranks = shorts(length, -reach, reach);
      for (std::size_t i = 0; i < ranks.size(); i += 5) ranks[i] = std::numeric_limits<std::int16_t>::min();
      for (const index_t count : {index_t{1}, length / 64, length / 8, length / 2, length - 1, length})
        ASSERT_EQ(top_k<TypeParam>(ranks, count), top_k_by_sorting(ranks, count)) << count << " of " << length;
    }
  }
}

TYPED_TEST(TopK, ReadsNothingBehindTheLastRank) {
  const auto expect_all = [](const auto& ranks) {
    using N = typename std::decay_t<decltype(ranks)>::value_type;
    for (std::size_t length = 1; length <= ranks.size(); ++length) {
      reference::PageEnd page(length * sizeof(N));
      const std::span<const N> at_the_end(page.place(ranks.data(), length), length);
      const auto count = static_cast<index_t>(length + 1) / 2;
      EXPECT_EQ(top_k<TypeParam>(at_the_end, count),
                top_k_by_sorting(std::vector<N>(at_the_end.begin(), at_the_end.end()), count));
    }
  };
  const std::vector<float> ranks = Random(8).row(45);
  expect_all(ranks);
  std::vector<std::int16_t> shorts;
  for (const float rank : ranks) shorts.push_back(static_cast<std::int16_t>(100 * rank));
  expect_all(shorts);
}

}  // namespace
