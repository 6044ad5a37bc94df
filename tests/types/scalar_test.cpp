// Rounding to every KV type, and back.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <recycled/types/scalar.hpp>
#include <vector>

#include "reference/random.hpp"

namespace {

using namespace recycled;

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

float to_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }

template <class T>
std::uint16_t bits_of(T x) {
  return Eigen::numext::bit_cast<std::uint16_t>(x);
}
template <class T>
T from_bits(std::uint16_t bits) {
  return Eigen::numext::bit_cast<T>(bits);
}
template <class T>
T encoded(float x) {
  T result;
  encode(&x, 1, &result);
  return result;
}
template <class T>
float decoded(T x) {
  float result = nan;
  decode(&x, 1, &result);
  return result;
}

/// Every finite value of T stays, and what lies between two goes to the nearer or, half way, to the even one.
template <class T>
void expect_round_to_nearest_even() {
  for (std::uint16_t low = 0;; ++low) {
    const auto high = static_cast<std::uint16_t>(low + 1);
    const float a = decoded(from_bits<T>(low)), b = decoded(from_bits<T>(high));
    ASSERT_EQ(bits_of(encoded<T>(a)), low);
    if (std::isinf(b)) break;
    const auto middle = static_cast<float>((static_cast<double>(a) + static_cast<double>(b)) / 2);
    if (middle == a || middle == b) continue;  // float has nothing between the smallest bfloat16s
    const std::uint16_t even = low % 2 == 0 ? low : high;
    ASSERT_EQ(bits_of(encoded<T>(middle)), even) << middle;
    ASSERT_EQ(bits_of(encoded<T>(-middle)), even | 0x8000) << -middle;
    ASSERT_EQ(bits_of(encoded<T>(std::nextafter(middle, 0.0F))), low) << middle;
    ASSERT_EQ(bits_of(encoded<T>(std::nextafter(middle, inf))), high) << middle;
  }
}

template <class T>
void expect_odd_values_to_survive() {
  EXPECT_EQ(decoded(encoded<T>(inf)), inf);
  EXPECT_EQ(decoded(encoded<T>(-inf)), -inf);
  EXPECT_TRUE(std::isnan(decoded(encoded<T>(nan))));
  EXPECT_TRUE(std::signbit(decoded(encoded<T>(-0.0F))));
}

TEST(Half, RoundsToNearestEven) { expect_round_to_nearest_even<half>(); }
TEST(Half, KeepsInfinityNaNAndTheSignOfZero) { expect_odd_values_to_survive<half>(); }
TEST(Half, EndsAt65504) {
  EXPECT_EQ(decoded(encoded<half>(65519.0F)), 65504.0F);
  EXPECT_EQ(decoded(encoded<half>(65520.0F)), inf);
}
TEST(Half, HasTheValuesOfIEEE754) {
  EXPECT_EQ(decoded(from_bits<half>(0x3C00)), 1.0F);
  EXPECT_EQ(decoded(from_bits<half>(0xC580)), -5.5F);
  EXPECT_EQ(decoded(from_bits<half>(0x0001)), std::ldexp(1.0F, -24));
}

TEST(Bfloat16, RoundsToNearestEven) { expect_round_to_nearest_even<bfloat16>(); }
TEST(Bfloat16, KeepsInfinityNaNAndTheSignOfZero) { expect_odd_values_to_survive<bfloat16>(); }
TEST(Bfloat16, IsTheUpperHalfOfAFloat) {
  for (std::uint32_t bits = 0; bits < 0x7F80; bits += 3) {
    EXPECT_EQ(decoded(from_bits<bfloat16>(static_cast<std::uint16_t>(bits))), to_float(bits << 16));
  }
}

TEST(Float, IsKeptBitByBit) {
  const std::vector<float> values{0, -0.0F, 1, -inf, 1e-45F, nan};
  std::vector<float> row(values.size()), back(values.size());
  encode(values.data(), 6, row.data());
  decode(row.data(), 6, back.data());
  EXPECT_EQ(std::memcmp(values.data(), back.data(), sizeof(float) * 6), 0);
}

/// GGML's quantize_row_q8_0_ref, one block: d = max|x| / 127, quants = round(x / d), d stored as a half.
q8_0 ggml_block(const float* x) {
  float amax = 0;
  for (int i = 0; i < 32; ++i) amax = amax > std::fabs(x[i]) ? amax : std::fabs(x[i]);
  const float d = amax / 127;
  const float id = d != 0 ? 1.0F / d : 0.0F;
  q8_0 block{half(d), {}};
  for (int i = 0; i < 32; ++i) block.quants[i] = static_cast<std::int8_t>(std::roundf(x[i] * id));
  return block;
}

bool same(const q8_0& a, const q8_0& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

TEST(Q8, RowsAreQuantisedBlockByBlockAsGgmlDoes) {
  reference::Random random(1);
  for (const float size : {1e-7F, 1e-3F, 1.0F, 300.0F, 1e6F}) {
    std::vector<float> row = random.row(96 * 20, size);
    row[40] = size * 20;  // one large value squeezes its block, not its neighbours'
    std::vector<q8_0> blocks(3 * 20);
    encode(row.data(), 96 * 20, blocks.data());
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      EXPECT_TRUE(same(blocks[b], ggml_block(row.data() + 32 * b))) << "block " << b << " of size " << size;
    }
  }
}

TEST(Q8, TiesRoundAwayFromZero) {
  std::vector<float> row(32, 0.0F);
  row[0] = 127;  // the scale is 1
  row[1] = 2.5F;
  row[2] = -2.5F;
  row[3] = 3.5F;
  q8_0 block;
  encode(row.data(), 32, &block);
  EXPECT_EQ(static_cast<float>(block.scale), 1);
  EXPECT_EQ((std::vector<int>{block.quants[0], block.quants[1], block.quants[2], block.quants[3], block.quants[4]}),
            (std::vector<int>{127, 3, -3, 4, 0}));
}

TEST(Q8, ZerosStayZero) {
  const std::vector<float> row(32, 0.0F);
  EXPECT_EQ(reference::rounded<q8_0>(row), row);
}

TEST(Q8, DecodesScaleTimesQuant) {
  q8_0 blocks[2] = {{half(0.5F), {}}, {half(-2.0F), {}}};
  for (int i = 0; i < 32; ++i) blocks[0].quants[i] = blocks[1].quants[i] = static_cast<std::int8_t>(4 * i - 128);
  std::vector<float> row(64);
  decode(blocks, 64, row.data());
  for (std::size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(row[i], 0.5F * (4 * static_cast<float>(i) - 128));
    EXPECT_EQ(row[32 + i], -2 * (4 * static_cast<float>(i) - 128));
  }
}

TEST(Q8, IsOffByHalfAQuantAtMost) {
  const std::vector<float> row = reference::Random(2).row(320);
  const std::vector<float> back = reference::rounded<q8_0>(row);
  for (std::size_t b = 0; b < 10; ++b) {
    float largest = 0;
    for (std::size_t i = 32 * b; i < 32 * b + 32; ++i) largest = std::max(largest, std::abs(row[i]));
    // Half a quant, and the rounding of the scale to a half.
    const float bound = largest * (0.5F / 127 + 0x1p-11F) * 1.0001F;
    for (std::size_t i = 32 * b; i < 32 * b + 32; ++i) EXPECT_TRUE(std::abs(back[i] - row[i]) <= bound) << i;
  }
}

TEST(Q8, NaNAndInfinityAreNotLostAndStayInTheirBlock) {
  for (const float odd : {nan, -nan, inf, -inf}) {
    for (const std::size_t place : {32U, 40U, 63U}) {
      std::vector<float> row(96, 1.0F);
      row[place] = odd;
      const std::vector<float> back = reference::rounded<q8_0>(row);
      for (std::size_t i = 0; i < 96; ++i) EXPECT_EQ(std::isfinite(back[i]), i / 32 != 1) << odd << " at " << place;
    }
  }
}

TEST(Q8, ValuesTooSmallForTheScaleBecomeZero) {
  const std::vector<float> tiny(32, 1e-44F);  // the inverse of its scale overflows
  EXPECT_EQ(reference::rounded<q8_0>(tiny), std::vector<float>(32, 0.0F));
}

TEST(Scalar, ElementsHoldThePublishedNumberOfValues) {
  EXPECT_EQ(values_per_element<float>, 1);
  EXPECT_EQ(values_per_element<half>, 1);
  EXPECT_EQ(values_per_element<bfloat16>, 1);
  EXPECT_EQ(values_per_element<q8_0>, 32);
  EXPECT_EQ(sizeof(q8_0), 34U);
  EXPECT_EQ(offsetof(q8_0, quants), 2U);
  static_assert(!Scalar<double> && !Scalar<int> && !Scalar<const float>);
}

}  // namespace
