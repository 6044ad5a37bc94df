// exp and tanh of every instruction set over dense sweeps, within the errors that simd/math.hpp states.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <recycled/simd/math.hpp>

#include "simd/instruction_sets.hpp"

namespace {

using namespace recycled;

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

template <class Isa>
class Math : public testing::Test {
 protected:
  /// Calls check(x, f(x)) for every thousandth float of [low, high], low < high of one sign, in every lane.
  template <class F, class Check>
  static void sweep(float low, float high, const F& f, const Check& check) {
    constexpr std::uint32_t step = 1021;
    std::uint32_t bits = std::bit_cast<std::uint32_t>(std::min(std::abs(low), std::abs(high)));
    const std::uint32_t last = std::bit_cast<std::uint32_t>(std::max(std::abs(low), std::abs(high)));
    const float sign = low < 0 ? -1.0F : 1.0F;
    std::array<float, Isa::width> x, y;
    while (bits <= last) {
      for (float& lane : x) {
        lane = sign * std::bit_cast<float>(std::min(bits, last));
        bits += step;
      }
      Isa::store(y.data(), f(Isa::load(x.data())));
      for (std::size_t i = 0; i < x.size(); ++i) check(x[i], y[i]);
      if (testing::Test::HasFailure()) return;
    }
  }
  static float one(typename Isa::vec (*f)(typename Isa::vec), float x) {
    std::array<float, Isa::width> y;
    Isa::store(y.data(), f(Isa::broadcast(x)));
    return y.back();
  }
};
TYPED_TEST_SUITE(Math, testing_types::InstructionSets, testing_types::Names);

TYPED_TEST(Math, ExpIsRightTo2e7) {
  const auto check = [](float x, float y) {
    const double expected = std::exp(static_cast<double>(x));
    EXPECT_TRUE(std::abs(static_cast<double>(y) - expected) < 2e-7 * expected) << "exp(" << x << ") = " << y;
  };
  this->sweep(-87.33F, -1e-9F, simd::exp<TypeParam>, check);
  this->sweep(1e-9F, 88, simd::exp<TypeParam>, check);
  EXPECT_EQ(this->one(simd::exp<TypeParam>, 0), 1);
  EXPECT_EQ(this->one(simd::exp<TypeParam>, -0.0F), 1);
  EXPECT_EQ(this->one(simd::exp<TypeParam>, -1e-42F), 1);
}

TYPED_TEST(Math, ExpIsExactlyZeroWhereFloatsTurnSubnormal) {
  const auto check = [](float x, float y) { EXPECT_EQ(y, 0) << "exp(" << x << ")"; };
  this->sweep(-104, std::nextafter(-87.33F, -inf), simd::exp<TypeParam>, check);
  this->sweep(-3e38F, -104, simd::exp<TypeParam>, check);
  EXPECT_EQ(this->one(simd::exp<TypeParam>, -inf), 0);
  EXPECT_GT(this->one(simd::exp<TypeParam>, -87.33F), 0);
}

TYPED_TEST(Math, TanhIsRightTo3e7) {
  const auto check = [](float x, float y) {
    const double expected = std::tanh(static_cast<double>(x));
    EXPECT_TRUE(std::abs(static_cast<double>(y) - expected) < 3e-7 * std::abs(expected)) << "tanh(" << x << ") = " << y;
  };
  this->sweep(1e-9F, 100, simd::tanh<TypeParam>, check);
  this->sweep(-100, -1e-9F, simd::tanh<TypeParam>, check);
  EXPECT_EQ(this->one(simd::tanh<TypeParam>, 0), 0);
  EXPECT_EQ(this->one(simd::tanh<TypeParam>, 3e38F), 1);
  EXPECT_EQ(this->one(simd::tanh<TypeParam>, inf), 1);
  EXPECT_EQ(this->one(simd::tanh<TypeParam>, -inf), -1);
}

TYPED_TEST(Math, NaNStaysNaNInItsLaneAlone) {
  using Isa = TypeParam;
  for (std::size_t lane = 0; lane < static_cast<std::size_t>(Isa::width); ++lane) {
    for (const float odd : {nan, -nan}) {
      std::array<float, Isa::width> x, e, t;
      x.fill(-0.5F);
      x[lane] = odd;
      Isa::store(e.data(), simd::exp<Isa>(Isa::load(x.data())));
      Isa::store(t.data(), simd::tanh<Isa>(Isa::load(x.data())));
      for (std::size_t i = 0; i < x.size(); ++i) {
        EXPECT_EQ(std::isnan(e[i]), i == lane);
        EXPECT_EQ(std::isnan(t[i]), i == lane);
      }
    }
  }
}

}  // namespace
