// Codes of four bits against the sums written down.
#include <gtest/gtest.h>

#include <array>
#include <recycled/kernels/code_scan.hpp>
#include <vector>

#include "reference/page_end.hpp"
#include "reference/random.hpp"
#include "simd/instruction_sets.hpp"

namespace {

using namespace recycled;

template <class>
class CodeScan : public testing::Test {};
TYPED_TEST_SUITE(CodeScan, testing_types::InstructionSets, testing_types::Names);

struct Case {
  index_t positions, coordinates, rows;
};

/// Codes and weights at random, or all of them as large as they may be.
template <class Isa>
void expect_exact(const Case& c, bool extreme) {
  reference::Random random(static_cast<std::uint64_t>(c.positions * 100 + c.coordinates + c.rows));
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(kernels::code_bytes(c.positions, c.coordinates)), 0xFF);
  std::vector<int> expected(static_cast<std::size_t>(c.positions * c.coordinates));
  for (index_t j = 0; j < c.positions; ++j) {
    for (index_t d = 0; d < c.coordinates; d += 4) {
      unsigned four = 0;
      for (unsigned i = 0; i < 4; ++i) {
        const unsigned code = extreme ? 15U : static_cast<unsigned>(random.between(0, 15));
        expected[static_cast<std::size_t>(j * c.coordinates + d) + i] = static_cast<int>(code);
        four += code << std::array{0, 8, 4, 12}.at(i);
      }
      kernels::set_codes(codes.data(), c.coordinates, j, d, four);
    }
  }
  const index_t bytes = kernels::code_weight_bytes(c.coordinates);
  std::vector<std::int8_t> weights(static_cast<std::size_t>(c.rows * bytes));
  std::vector<float> scales;
  std::vector<std::vector<float>> exact;
  for (index_t r = 0; r < c.rows; ++r) {
    exact.push_back(extreme ? std::vector<float>(static_cast<std::size_t>(c.coordinates), r % 2 == 0 ? 1.0F : -1.0F)
                            : random.row(c.coordinates));
    scales.push_back(kernels::round_weights(exact.back().data(), c.coordinates, weights.data() + r * bytes));
  }
  const index_t stride = c.positions + kernels::code_block + 5;
  std::vector<std::int16_t> sums(static_cast<std::size_t>(c.rows * stride), -77);
  std::vector<float> lse(static_cast<std::size_t>(c.rows));
  const std::vector<float> biases = random.row(c.rows * 3);
  kernels::scan_codes<Isa>(codes.data(), c.positions, c.coordinates, weights.data(),
                           {sums.data(), stride, scales.data(), biases.data(), 3}, lse);
  for (index_t r = 0; r < c.rows; ++r) {
    const double scale = static_cast<double>(scales[static_cast<std::size_t>(r)]);
    long double total = 0;
    for (index_t j = 0; j < c.positions; ++j) {
      int sum = 0;
      double unrounded = 0;
      for (index_t d = 0; d < c.coordinates; ++d) {
        const int code = expected[static_cast<std::size_t>(j * c.coordinates + d)];
        const int weight = weights[static_cast<std::size_t>(r * bytes + d / 4 * 8 + d % 4 / 2 * 4 + d % 2)];
        sum += code * weight;
        unrounded += code * static_cast<double>(exact[static_cast<std::size_t>(r)][static_cast<std::size_t>(d)]);
      }
      ASSERT_LT(std::abs(sum), 1 << 15);
      ASSERT_EQ(sums[static_cast<std::size_t>(r * stride + j)], sum) << "row " << r << ", " << j;
      // Each weight is off by half a step at most.
      ASSERT_NEAR(scale * sum, unrounded, 0.51 * 15 * scale * static_cast<double>(c.coordinates));
      total += std::exp(static_cast<long double>(
          scale * sum + static_cast<double>(biases[static_cast<std::size_t>(r * 3 + j / kernels::code_stretch)])));
    }
    ASSERT_NEAR(static_cast<double>(lse[static_cast<std::size_t>(r)]), static_cast<double>(std::log(total)), 0.04);
  }
}

TYPED_TEST(CodeScan, IsTheSumOfCodesTimesRoundedWeights) {
  for (const index_t positions : {1, 31, 32, 33, 100, 320}) {
    for (const index_t coordinates : {4, 8, 12, 32, 48, 64}) {
      for (const index_t rows : {1, 2, 3, 4, 5, 8}) expect_exact<TypeParam>({positions, coordinates, rows}, false);
    }
  }
}
TYPED_TEST(CodeScan, NeverOverflows) {
  for (const index_t coordinates : {4, 32, 64}) expect_exact<TypeParam>({70, coordinates, 3}, true);
}

/// The logits of known sums, capped and not, against double.
TYPED_TEST(CodeScan, LogitsAreScaledAndCapped) {
  constexpr index_t positions = 207, stride = 240, rows = 3;
  reference::Random random(3);
  std::vector<std::int16_t> sums(rows * stride);
  for (std::int16_t& sum : sums) sum = static_cast<std::int16_t>(random.between(-3000, 3000));
  const std::vector<float> scales{0.004F, 0.001F, 0}, lse{2, 1, 4.5F}, biases{0, 3, 1, -1, 0.5F, -2};
  std::vector<index_t> some{206, 0, 5, 31, 32, 127, 128};  // and two vectors' worth of others
  for (index_t p = 1; p < positions; p += 6) some.push_back(p + p % 4 / 2);
  for (const float soft_cap : {0.0F, 3.0F}) {
    const kernels::CodeLogits<TypeParam> logits{sums.data(), stride, scales.data(), biases.data(), 2, soft_cap};
    const auto expected = [&](index_t r, index_t j) {
      const double plain = static_cast<double>(scales[static_cast<std::size_t>(r)]) *
                               static_cast<double>(sums[static_cast<std::size_t>(r * stride + j)]) +
                           static_cast<double>(biases[static_cast<std::size_t>(r * 2 + j / kernels::code_stretch)]);
      const double cap = static_cast<double>(soft_cap);
      return cap > 0 ? cap * std::tanh(plain / cap) : plain;
    };
    std::vector<float> weights(stride), scratch(stride);
    logits.log_weights(lse, positions, weights.data());
    for (index_t j = 0; j < positions; ++j) {
      double largest = -1e9;
      for (index_t r = 0; r < rows; ++r) {
        largest = std::max(largest, expected(r, j) - static_cast<double>(lse[static_cast<std::size_t>(r)]));
      }
      EXPECT_NEAR(static_cast<double>(weights[static_cast<std::size_t>(j)]), largest, 1e-5);
    }
    for (index_t r = 0; r < rows; ++r) {
      double mass = 0, all = 0, top = -1e9;
      for (const index_t j : some) mass += std::exp(expected(r, j) - 2);
      EXPECT_NEAR(static_cast<double>(logits.mass(r, 2, some, scratch.data())), mass, 1e-5 * mass);
      kernels::CodeLogSumExp<TypeParam> sum;
      for (const auto& [begin, end] : {std::pair<index_t, index_t>{0, 128}, {128, positions}}) {
        sum.add(logits, r, begin, end);
        for (index_t j = begin; j < end; ++j) {
          all += std::exp(expected(r, j));
          top = std::max(top, expected(r, j));
        }
      }
      EXPECT_NEAR(static_cast<double>(sum.value()), std::log(all), 0.04);
      EXPECT_NEAR(static_cast<double>(logits.largest(r, 0, positions)), top, 1e-5);
    }
  }
}

/// Of logits that are no numbers the others of the group speak; where there is no other, nobody does.
TYPED_TEST(CodeScan, LogitsThatAreNoNumbersCountForNothing) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  constexpr index_t stride = 256, count = 2;
  reference::Random random(6);
  std::vector<std::int16_t> sums(2 * stride);
  for (std::int16_t& sum : sums) sum = static_cast<std::int16_t>(random.between(-300, 300));
  std::vector<index_t> all(200);
  std::iota(all.begin(), all.end(), index_t{0});
  const std::vector<float> lse{0, 0};
  for (const float soft_cap : {0.0F, 3.0F}) {
    const auto logits_of = [&](const std::vector<float>& scales, const std::vector<float>& biases) {
      return kernels::CodeLogits<TypeParam>{sums.data(), stride, scales.data(), biases.data(), count, soft_cap};
    };
    const std::vector<float> sound{0.01F, 0.01F}, first{nan, 0.01F}, second{0.01F, nan}, none{nan, nan},
        biases(4, 0.5F);
    for (const index_t length : {16, 130, 199}) {
      std::vector<float> expected(stride), weights(stride), scratch(stride);
      logits_of(second, biases).log_weights(lse, length, weights.data());
      logits_of(sound, biases).log_weights({lse.data(), 1}, length, expected.data());
      EXPECT_TRUE(std::equal(weights.begin(), weights.begin() + length, expected.begin()));
      logits_of(first, biases).log_weights(lse, length, weights.data());
      for (index_t j = 0; j < length; ++j) EXPECT_FALSE(std::isnan(weights[static_cast<std::size_t>(j)]));
      logits_of(none, biases).log_weights(lse, length, weights.data());
      EXPECT_TRUE(std::all_of(weights.begin(), weights.begin() + length, [](float x) { return x == -inf; }));
      // One stretch is no number, the other one is.
      const std::vector<float> half_known{0.5F, nan, 0.5F, nan};
      logits_of(sound, half_known).log_weights(lse, length, weights.data());
      for (index_t j = 0; j < length; ++j) EXPECT_EQ(weights[static_cast<std::size_t>(j)] > -inf, j < 128) << j;
      EXPECT_TRUE(std::isnan(logits_of(none, biases).mass(0, 0, {all.data(), 16}, scratch.data())));
      EXPECT_TRUE(std::isnan(logits_of(sound, half_known).mass(0, 0, {all.data() + 100, 60}, scratch.data())));
      EXPECT_TRUE(std::isnan(logits_of(sound, half_known).mass(0, 0, {all.data() + 126, 3}, scratch.data())));
    }
  }
}

/// What differs from the largest by no more than a few is summed up well, however large it is.
TYPED_TEST(CodeScan, OfLargeLogitsTheSumIsSound) {
  std::vector<std::int16_t> sums(128, -1000);
  for (const float bias : {1e3F, 1e6F, 1e9F, 1e30F}) {
    const float scale = bias / 1000;
    const kernels::CodeLogits<TypeParam> logits{sums.data(), 128, &scale, &bias, 1};
    kernels::CodeLogSumExp<TypeParam> sum;
    sum.add(logits, 0, 0, 128);
    const double one = static_cast<double>(scale) * -1000 + static_cast<double>(bias);
    EXPECT_NEAR(static_cast<double>(sum.value()), one + std::log(128), 0.04 + 1e-6 * static_cast<double>(bias));
  }
}

TYPED_TEST(CodeScan, OfAQueryThatIsNoNumberTheSumIsNone) {
  std::vector<std::int16_t> sums(64, 0);
  const float scale = std::nanf("");
  kernels::CodeLogSumExp<TypeParam> sum;
  reference::Random random(4);
  const float bias = 1;
  sum.add({sums.data(), 64, &scale, &bias, 1}, 0, 0, random.between(40, 41));
  EXPECT_TRUE(std::isnan(sum.value()));
}

TEST(RoundWeights, OfWhatIsNoNumberScaleToNaN) {
  std::vector<std::int8_t> weights(16, 1);
  for (const float odd : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    const std::vector<float> exact{1, 2, odd, 3, 1, 1, 1, 1};
    EXPECT_TRUE(std::isnan(kernels::round_weights(exact.data(), 8, weights.data())));
    EXPECT_EQ(weights, std::vector<std::int8_t>(16, 0));
  }
  const std::vector<float> zeros(8, 0.0F);
  EXPECT_EQ(kernels::round_weights(zeros.data(), 8, weights.data()), 0);
}

}  // namespace
