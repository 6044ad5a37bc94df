// Codes of four bits against the sums written down, and what becomes of their logits.
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

/// What a scan needs beside codes, all rows together.
struct Rows {
  Rows(index_t count, index_t coordinates, index_t stretches)
      : weights(static_cast<std::size_t>(count * kernels::code_weight_bytes(coordinates))),
        scales(static_cast<std::size_t>(count)),
        biases(static_cast<std::size_t>(count * stretches)),
        anchors(scales),
        peaks(scales),
        factors(static_cast<std::size_t>(count)),
        offsets(static_cast<std::size_t>(count * stretches)),
        all{weights.data(), scales.data(), biases.data(), stretches, anchors.data(), factors.data(), offsets.data()} {}

  std::vector<std::int8_t> weights;
  std::vector<float> scales, biases, anchors, peaks;
  std::vector<std::int16_t> factors, offsets;
  kernels::CodeRows all;
};

/// How far a logit in fixed point may be from what it was: it is rounded, and so are its factor and its offset.
constexpr double steps_off = 1.6;

/// Codes and weights at random, or all of them as large as they may be.
template <class Isa>
void expect_exact(const Case& c, bool extreme, float soft_cap = 0) {
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
  Rows rows(c.rows, c.coordinates, 3);
  rows.biases = random.row(c.rows * 3, 4);
  rows.all.biases = rows.biases.data();
  std::vector<std::vector<float>> exact;
  for (index_t r = 0; r < c.rows; ++r) {
    exact.push_back(extreme ? std::vector<float>(static_cast<std::size_t>(c.coordinates), r % 2 == 0 ? 1.0F : -1.0F)
                            : random.row(c.coordinates));
    rows.scales[static_cast<std::size_t>(r)] =
        kernels::round_weights(exact.back().data(), c.coordinates, rows.weights.data() + r * bytes);
  }
  const index_t stride = c.positions + kernels::code_block + 5;
  std::vector<std::int16_t> steps(static_cast<std::size_t>(c.rows * stride), -77);
  std::vector<float> lse(static_cast<std::size_t>(c.rows));
  const float unit = rows.all.fix_point(c.rows, c.coordinates, soft_cap > 0);
  const kernels::CodeLogits<Isa> logits{steps.data(), stride, unit, rows.anchors.data(), rows.peaks.data()};
  kernels::scan_codes<Isa>(codes.data(), c.positions, c.coordinates, rows.all, soft_cap, logits, lse);
  for (index_t r = 0; r < c.rows; ++r) {
    const double scale = static_cast<double>(rows.scales[static_cast<std::size_t>(r)]);
    long double total = 0;
    double top = -1e9;
    for (index_t j = 0; j < c.positions; ++j) {
      int sum = 0;
      double unrounded = 0;
      for (index_t d = 0; d < c.coordinates; ++d) {
        const int code = expected[static_cast<std::size_t>(j * c.coordinates + d)];
        const int weight = rows.weights[static_cast<std::size_t>(r * bytes + d / 4 * 8 + d % 4 / 2 * 4 + d % 2)];
        sum += code * weight;
        unrounded += code * static_cast<double>(exact[static_cast<std::size_t>(r)][static_cast<std::size_t>(d)]);
      }
      ASSERT_LT(std::abs(sum), 1 << 15);
      // Each weight is off by half a step at most.
      ASSERT_NEAR(scale * sum, unrounded, 0.51 * 15 * scale * static_cast<double>(c.coordinates));
      double logit =
          scale * sum + static_cast<double>(rows.biases[static_cast<std::size_t>(r * 3 + j / kernels::code_stretch)]);
      if (soft_cap > 0) logit = static_cast<double>(soft_cap) * std::tanh(logit / static_cast<double>(soft_cap));
      ASSERT_NEAR(static_cast<double>(logits.at(r, j)), logit, steps_off * static_cast<double>(unit))
          << "row " << r << ", " << j;
      total += std::exp(static_cast<long double>(logit));
      top = std::max(top, logit);
    }
    ASSERT_NEAR(static_cast<double>(lse[static_cast<std::size_t>(r)]), static_cast<double>(std::log(total)),
                0.05 + steps_off * static_cast<double>(unit));
    ASSERT_NEAR(static_cast<double>(rows.anchors[static_cast<std::size_t>(r)]) +
                    static_cast<double>(rows.peaks[static_cast<std::size_t>(r)]),
                top, steps_off * static_cast<double>(unit));
    const std::int16_t* const behind = steps.data() + r * stride + c.positions + kernels::code_block;
    ASSERT_TRUE(std::all_of(behind, behind + 5, [](std::int16_t step) { return step == -77; }));
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
TYPED_TEST(CodeScan, LogitsAreCapped) {
  for (const float soft_cap : {0.5F, 3.0F, 30.0F}) {
    for (const index_t positions : {5, 300}) expect_exact<TypeParam>({positions, 16, 3}, false, soft_cap);
  }
}

/// Logits of any size and spread have room in their fixed point, whatever the codes.
TYPED_TEST(CodeScan, TheFixedPointHasRoomForAllLogits) {
  reference::Random random(8);
  for (int i = 0; i < 300; ++i) {
    constexpr index_t coordinates = 8, stretches = 4;
    Rows rows(2, coordinates, stretches);
    for (index_t r = 0; r < 2; ++r) {
      const std::vector<float> exact =
          random.row(coordinates, std::ldexp(1.0F, static_cast<int>(random.between(-12, 12))));
      rows.scales[static_cast<std::size_t>(r)] =
          kernels::round_weights(exact.data(), coordinates, rows.weights.data() + r * 2 * coordinates);
    }
    const std::vector<float> spread = random.row(8, std::ldexp(1.0F, static_cast<int>(random.between(-12, 12))));
    std::copy(spread.begin(), spread.end(), rows.biases.begin());
    const float unit = rows.all.fix_point(2, coordinates, i % 2 == 0);
    ASSERT_GE(unit, kernels::finest_unit);
    float of_a_row = 0;  // no coarser than one of them needs
    for (std::ptrdiff_t r = 0; r < 2; ++r) {
      Rows one(1, coordinates, stretches);
      std::copy_n(rows.weights.begin() + r * 2 * coordinates, 2 * coordinates, one.weights.begin());
      std::copy_n(rows.biases.begin() + r * stretches, stretches, one.biases.begin());
      one.scales[0] = rows.scales[static_cast<std::size_t>(r)];
      of_a_row = std::max(of_a_row, one.all.fix_point(1, coordinates, i % 2 == 0));
    }
    ASSERT_EQ(unit, of_a_row);
    for (std::size_t r = 0; r < 2; ++r) {
      for (const bool largest : {false, true}) {  // with the codes that lead to the ends
        int sum = 0;
        for (std::size_t w = 0; w < 16; ++w) {
          const int weight = rows.weights[r * 16 + w];
          sum += (weight > 0) == largest ? 15 * weight : 0;
        }
        sum /= 2;
        for (std::size_t s = 0; s < stretches; ++s) {
          const double logit = static_cast<double>(rows.scales[r]) * sum + static_cast<double>(rows.biases[r * 4 + s]);
          const double step = std::floor(sum * rows.factors[r] / 32768.0 + 0.5) + rows.offsets[r * 4 + s];
          EXPECT_LE(std::abs(step), 32767);
          EXPECT_NEAR(step * static_cast<double>(unit) + static_cast<double>(rows.anchors[r]), logit,
                      steps_off * static_cast<double>(unit) + 1e-6 * std::abs(logit));
        }
      }
      EXPECT_TRUE(i % 2 != 0 || std::abs(rows.anchors[r] / unit) <= 32767.0F) << "0 has room";
    }
  }
}
TYPED_TEST(CodeScan, OfWhatIsNoNumberThereIsNoFixedPoint) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const float odd : {nan, inf, -inf}) {
    for (std::size_t place = 0; place < 8; ++place) {
      Rows rows(2, 4, 3);
      (place < 2 ? rows.scales[place] : rows.biases[place - 2]) = odd;
      EXPECT_TRUE(std::isnan(rows.all.fix_point(2, 4, place % 2 == 0))) << odd << " at " << place;
    }
  }
}

/// The logits of known steps, against double.
TYPED_TEST(CodeScan, WeightsAndMassesAreThoseOfTheLogits) {
  constexpr index_t positions = 207, stride = 240, rows = 3;
  reference::Random random(3);
  std::vector<index_t> some{206, 0, 5, 31, 32, 127, 128};  // and two vectors' worth of others
  for (index_t p = 1; p < positions; p += 6) some.push_back(p + p % 4 / 2);
  for (const float unit : {kernels::finest_unit, 0.004F, 0.02F}) {
    std::vector<std::int16_t> steps(rows * stride), weights(stride);
    for (std::int16_t& step : steps) step = static_cast<std::int16_t>(random.between(-3000, 3000));
    const std::vector<float> anchors{0.5F, -3, 40};
    std::vector<float> peaks, lse;
    const auto logit = [&](index_t r, index_t j) {
      return static_cast<double>(unit) * steps[static_cast<std::size_t>(r * stride + j)] +
             static_cast<double>(anchors[static_cast<std::size_t>(r)]);
    };
    for (index_t r = 0; r < rows; ++r) {
      kernels::CodeLogSumExp<TypeParam> sum(unit);
      double all = 0, top = -1e9;
      for (const auto& [begin, end] : {std::pair<index_t, index_t>{0, 128}, {128, positions}}) {
        sum.add({steps.data() + r * stride + begin, steps.data() + r * stride + end});
        for (index_t j = begin; j < end; ++j) all += std::exp(logit(r, j));
        for (index_t j = begin; j < end; ++j) top = std::max(top, logit(r, j));
      }
      const float anchor = anchors[static_cast<std::size_t>(r)];
      peaks.push_back(sum.largest());
      lse.push_back(anchor + sum.value());
      EXPECT_NEAR(static_cast<double>(lse.back()), std::log(all), 0.05);
      EXPECT_NEAR(static_cast<double>(anchor + peaks.back()), top, 1e-4);
    }
    const kernels::CodeLogits<TypeParam> logits{steps.data(), stride, unit, anchors.data(), peaks.data()};
    const auto found = kernels::CodeWeights::of(logits, lse, positions, weights.data());
    for (index_t j = 0; j < positions; ++j) {
      double largest = -1e9;
      for (index_t r = 0; r < rows; ++r)
        largest = std::max(largest, logit(r, j) - static_cast<double>(lse[static_cast<std::size_t>(r)]));
      EXPECT_NEAR(static_cast<double>(found.at(j)), largest, 2 * static_cast<double>(unit));
      EXPECT_LT(weights[static_cast<std::size_t>(j)] + found.favour, kernels::CodeWeights::above_all);
    }
    EXPECT_NEAR(found.favour * static_cast<double>(unit), std::log(2), 0.5 * static_cast<double>(unit));
    for (index_t r = 0; r < rows; ++r) {
      std::vector<float> scratch(stride);
      double mass = 0;
      const float from = lse[static_cast<std::size_t>(r)];
      for (const index_t j : some) mass += std::exp(logit(r, j) - static_cast<double>(from));
      EXPECT_NEAR(static_cast<double>(logits.mass(r, from, some, scratch.data())), mass, 3e-5 * mass);
    }
  }
}

/// However the rows of a group lie to each other, and however far apart logits are.
TYPED_TEST(CodeScan, WeightsThatAreFarBelowTheLargestAreTheLowest) {
  constexpr index_t count = 64;
  std::vector<std::int16_t> steps(2 * count, -32000), weights(count);
  steps[3] = 32000;           // the first row lies far above the second,
  steps[count + 5] = -31000;  // whose largest is below everything else
  const std::vector<float> anchors{1000, -1000}, lse{1016, -1014};
  std::vector<float> peaks{32000 * kernels::finest_unit, -31000 * kernels::finest_unit};
  const kernels::CodeLogits<TypeParam> logits{steps.data(), count, kernels::finest_unit, anchors.data(), peaks.data()};
  const auto found = kernels::CodeWeights::of(logits, lse, count, weights.data());
  EXPECT_NEAR(found.at(3), -0.375F, 1e-3F);
  EXPECT_NEAR(found.at(5), 14 - 31000 * kernels::finest_unit, 1e-3F);
  EXPECT_NEAR(found.at(0), -1.625F, 1e-3F);
}

TYPED_TEST(CodeScan, ThereIsRoomToFavourTheLargestHoweverFarLogitsAreFromZero) {
  constexpr index_t count = 64;
  for (const float anchor : {0.0F, 1000.0F, -70000.0F, 200000.0F, 1e6F, -1e9F}) {
    for (std::int16_t top = 100; top < 300; ++top) {
      std::vector<std::int16_t> steps(count, 0), weights(count);
      steps[7] = top;
      kernels::CodeLogSumExp<TypeParam> sum(kernels::finest_unit);
      sum.add(steps);
      std::vector<float> peaks{sum.largest()}, lse{anchor + sum.value()};
      const kernels::CodeLogits<TypeParam> logits{steps.data(), count, kernels::finest_unit, &anchor, peaks.data()};
      const auto found = kernels::CodeWeights::of(logits, lse, count, weights.data());
      EXPECT_LT(weights[7] + found.favour, kernels::CodeWeights::above_all) << anchor << ", " << top;
      EXPECT_EQ(weights[7] - weights[8], top) << anchor;
    }
  }
}

/// What differs from the largest by no more than a few is summed up well, whatever a step is worth.
TYPED_TEST(CodeScan, OfAnyUnitTheSumIsSound) {
  for (float unit = kernels::finest_unit; unit < 1e30F; unit *= 3) {
    std::vector<std::int16_t> steps(131, -32000);
    steps[0] = steps[77] = steps[130] = 31000;
    kernels::CodeLogSumExp<TypeParam> sum(unit);
    sum.add(steps);
    const double rest = 128 * std::exp(-63000 * static_cast<double>(unit));
    EXPECT_NEAR(static_cast<double>(sum.value() - sum.largest()), std::log(3 + rest),
                0.06 + 1e-6 * static_cast<double>(sum.largest()))
        << unit;
    EXPECT_FLOAT_EQ(sum.largest(), 31000 * unit);
  }
}

TEST(Codes, TakeFourBitsACoordinate) {
  EXPECT_EQ(kernels::code_bytes(32, 24), 32 * 24 / 2);
  EXPECT_EQ(kernels::code_bytes(33, 24), 64 * 24 / 2) << "whole blocks";
  EXPECT_EQ(kernels::code_bytes(0, 24), 0);
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
