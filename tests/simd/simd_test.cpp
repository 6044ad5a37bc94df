// Every vector operation of every instruction set, lane by lane, against the definitions in simd/generic.hpp.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <recycled/simd/math.hpp>

#include "reference/page_end.hpp"
#include "reference/random.hpp"
#include "simd/instruction_sets.hpp"

namespace {

using namespace recycled;

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// Equal numbers, zeros of either sign, or two NaNs.
testing::AssertionResult same(float actual, float expected) {
  if (actual == expected || (std::isnan(actual) && std::isnan(expected))) return testing::AssertionSuccess();
  return testing::AssertionFailure() << actual << ", expected " << expected;
}

template <class Isa>
class Simd : public testing::Test {
 protected:
  using vec = typename Isa::vec;
  static constexpr int width = Isa::width;
  using Lanes = std::array<float, static_cast<std::size_t>(width)>;

  static vec pack(const Lanes& lanes) { return Isa::load(lanes.data()); }
  static Lanes unpack(vec v) {
    Lanes lanes;
    Isa::store(lanes.data(), v);
    return lanes;
  }
  template <class F>
  static Lanes make(const F& f) {
    Lanes lanes;
    for (std::size_t i = 0; i < lanes.size(); ++i) lanes[i] = f(static_cast<int>(i));
    return lanes;
  }
  /// Compares op(a, b) with scalar(a, b) for all pairs of ordinary and odd numbers, in changing lanes.
  template <class Op, class Scalar>
  static void for_all_pairs(const Op& op, const Scalar& scalar) {
    const std::vector<float> numbers{0,   -0.0F, 1,   -1, 1.5F,   3.25F,  -7,    1e-30F, -1e30F,
                                     inf, -inf,  nan, 2,  -2.75F, 1e-40F, 88.5F, 0.1F,   -1e-3F};
    const auto number = [&](std::size_t i) { return numbers[i % numbers.size()]; };
    for (std::size_t shift = 0; shift < numbers.size(); ++shift) {
      for (std::size_t start = 0; start < numbers.size(); ++start) {
        const Lanes a = make([&](int i) { return number(start + static_cast<std::size_t>(i)); });
        const Lanes b = make([&](int i) { return number(start + shift + static_cast<std::size_t>(i)); });
        const Lanes result = unpack(op(pack(a), pack(b)));
        for (std::size_t i = 0; i < a.size(); ++i) {
          EXPECT_TRUE(same(result[i], scalar(a[i], b[i]))) << a[i] << " and " << b[i] << " in lane " << i;
        }
      }
    }
  }
};
TYPED_TEST_SUITE(Simd, testing_types::InstructionSets, testing_types::Names);

TYPED_TEST(Simd, BroadcastZeroLoadAndStoreFillEveryLane) {
  using Isa = TypeParam;
  EXPECT_EQ(this->unpack(Isa::zero()), this->make([](int) { return 0.0F; }));
  EXPECT_EQ(this->unpack(Isa::broadcast(2.5F)), this->make([](int) { return 2.5F; }));
  const auto lanes = this->make([](int i) { return 1.0F + static_cast<float>(i); });
  EXPECT_EQ(this->unpack(this->pack(lanes)), lanes);
}

TYPED_TEST(Simd, StoresRoundToTheNearestHalfAndBfloat) {
  using Isa = TypeParam;
  const auto expect = [&]<class T>(const std::vector<float>& numbers, T /*type*/) {
    for (std::size_t start = 0; start < numbers.size(); start += Isa::width) {
      const auto lanes =
          this->make([&](int i) { return numbers[(start + static_cast<std::size_t>(i)) % numbers.size()]; });
      std::array<T, static_cast<std::size_t>(Isa::width)> stored;
      Isa::store(stored.data(), this->pack(lanes));
      for (std::size_t i = 0; i < lanes.size(); ++i) {
        EXPECT_TRUE(same(static_cast<float>(stored[i]), static_cast<float>(static_cast<T>(lanes[i])))) << lanes[i];
      }
    }
  };
  std::vector<float> numbers{0,     -0.0F, inf,     -inf,     nan,   -nan,    65504,
                             65519, 65520, 3.4e38F, -3.4e38F, 1e-8F, 5.9e-8F, 2e-39F};
  numbers.push_back(std::bit_cast<float>(0x7F800001));  // a NaN that is only in the bits that are rounded away
  reference::Random random(11);
  for (int i = 0; i < 4000; ++i) numbers.push_back(std::ldexp(random.normal(), i % 60 - 35));
  for (std::uint32_t i = 0; i < 4000; ++i) numbers.push_back(std::bit_cast<float>(0x38000000 + i * 0x800));  // ties
  expect(numbers, half{});
  expect(numbers, bfloat16{});
}

TYPED_TEST(Simd, ArithmeticIsTheScalarOne) {
  using Isa = TypeParam;
  this->for_all_pairs([](auto a, auto b) { return Isa::add(a, b); }, [](float a, float b) { return a + b; });
  this->for_all_pairs([](auto a, auto b) { return Isa::sub(a, b); }, [](float a, float b) { return a - b; });
  this->for_all_pairs([](auto a, auto b) { return Isa::mul(a, b); }, [](float a, float b) { return a * b; });
  this->for_all_pairs([](auto a, auto b) { return Isa::div(a, b); }, [](float a, float b) { return a / b; });
}

TYPED_TEST(Simd, FmaRoundsOnceOrTwice) {
  using Isa = TypeParam;
  reference::Random random(1);
  for (int round = 0; round < 100; ++round) {
    const auto a = this->make([&](int) { return random.normal(); });
    const auto b = this->make([&](int) { return random.normal(); });
    const auto c = this->make([&](int) { return random.normal(); });
    const auto result = this->unpack(Isa::fma(this->pack(a), this->pack(b), this->pack(c)));
    for (std::size_t i = 0; i < a.size(); ++i) {
      const volatile float product = a[i] * b[i];
      EXPECT_TRUE(result[i] == std::fma(a[i], b[i], c[i]) || result[i] == product + c[i]) << "lane " << i;
    }
  }
}

TYPED_TEST(Simd, MaxMinAndSelectTakeTheSecondWhereAnyIsNaN) {
  using Isa = TypeParam;
  this->for_all_pairs([](auto a, auto b) { return Isa::max(a, b); }, [](float a, float b) { return a > b ? a : b; });
  this->for_all_pairs([](auto a, auto b) { return Isa::min(a, b); }, [](float a, float b) { return a < b ? a : b; });
  this->for_all_pairs([](auto a, auto b) { return Isa::select_less(a, b, Isa::broadcast(1), Isa::broadcast(2)); },
                      [](float a, float b) { return a < b ? 1.0F : 2.0F; });
}

TYPED_TEST(Simd, GreaterMaskHasABitForEveryLaneThatIsGreater) {
  using Isa = TypeParam;
  const auto ones = this->make([](int) { return 1.0F; });
  for (std::size_t lane = 0; lane < ones.size(); ++lane) {
    const unsigned bit = 1U << lane;
    auto other = ones;
    for (const auto& [x, above] : {std::pair{1.5F, true}, {inf, true}, {0.5F, false}, {-inf, false}, {nan, false}}) {
      other[lane] = x;
      EXPECT_EQ(Isa::greater_mask(this->pack(other), this->pack(ones)), above ? bit : 0U) << x << " in lane " << lane;
    }
    other[lane] = 0.5F;
    EXPECT_EQ(Isa::greater_mask(this->pack(ones), this->pack(other)), bit) << "lane " << lane;
  }
  EXPECT_EQ(Isa::greater_mask(Isa::broadcast(0), Isa::broadcast(-0.0F)), 0U);
}

TYPED_TEST(Simd, RoundGivesTheNearestWholeNumber) {
  using Isa = TypeParam;
  for (float x = -300; x < 300; x += 0.13F) {
    const float result = this->unpack(Isa::round(Isa::broadcast(x)))[0];
    EXPECT_EQ(result, std::nearbyint(x)) << x;
  }
  const auto large =
      this->make([](int i) { return (i % 2 == 0 ? 1.0F : -1.0F) * (4194303.25F - static_cast<float>(i)); });
  const auto result = this->unpack(Isa::round(this->pack(large)));
  for (std::size_t i = 0; i < large.size(); ++i) EXPECT_EQ(result[i], std::nearbyint(large[i]));
}

TYPED_TEST(Simd, ScalingByAPowerOfTwoIsExact) {
  using Isa = TypeParam;
  for (int first = -126; first <= 127; ++first) {
    const auto n = this->make([&](int i) { return static_cast<float>(std::min(first + i, 127)); });
    const auto a = this->make([](int i) { return 1.0F + static_cast<float>(i) / 16; });
    const auto result = this->unpack(Isa::scale_by_power_of_2(this->pack(a), this->pack(n)));
    for (std::size_t i = 0; i < n.size(); ++i) EXPECT_EQ(result[i], std::ldexp(a[i], static_cast<int>(n[i]))) << n[i];
  }
}

TYPED_TEST(Simd, ShortsSaturateAndRound) {
  using Isa = TypeParam;
  constexpr auto lanes = static_cast<std::size_t>(Isa::code_lanes);
  using Shorts = std::array<std::int16_t, lanes>;
  reference::Random random(17);
  const std::array<std::int16_t, 8> ends{0, 1, -1, 127, -128, 32767, -32767, -32768};
  for (int round = 0; round < 400; ++round) {
    Shorts a, b, sum, difference, product, larger, all;
    const auto number = [&](std::size_t i) {
      return round < 64 ? ends.at((i + static_cast<std::size_t>(round)) % 8)
                        : static_cast<std::int16_t>(random.between(-32768, 32767));
    };
    for (std::size_t i = 0; i < lanes; ++i) a[i] = number(i);
    for (std::size_t i = 0; i < lanes; ++i)
      b[i] = round < 64 ? ends.at((i + static_cast<std::size_t>(round / 8)) % 8) : number(i);
    const auto x = Isa::load_sums16(a.data()), y = Isa::load_sums16(b.data());
    Isa::store(sum.data(), Isa::add_saturated(x, y));
    Isa::store(difference.data(), Isa::sub_saturated(x, y));
    Isa::store(product.data(), Isa::multiply_high(x, y));
    Isa::store(larger.data(), Isa::max(x, y));
    Isa::store(all.data(), Isa::broadcast_sums16(a[0]));
    const unsigned mask = Isa::greater_mask(x, y);
    for (std::size_t i = 0; i < lanes; ++i) {
      EXPECT_EQ(sum[i], std::clamp(a[i] + b[i], -32768, 32767)) << a[i] << " + " << b[i];
      EXPECT_EQ(difference[i], std::clamp(a[i] - b[i], -32768, 32767)) << a[i] << " - " << b[i];
      if (a[i] != -32768 || b[i] != -32768) {
        EXPECT_EQ(product[i], std::floor(a[i] * b[i] / 32768.0 + 0.5)) << a[i] << " * " << b[i];
      }
      EXPECT_EQ(larger[i], std::max(a[i], b[i]));
      EXPECT_EQ(all[i], a[0]);
      EXPECT_EQ((mask >> i) & 1, a[i] > b[i] ? 1U : 0U) << a[i] << " > " << b[i];
    }
    EXPECT_EQ(static_cast<std::uint64_t>(mask) >> lanes, 0U);
  }
}

TYPED_TEST(Simd, ShortsBecomeFloatsAndBack) {
  using Isa = TypeParam;
  for (int first = -32768; first + Isa::width < 32767; first += 97) {
    std::array<std::int16_t, static_cast<std::size_t>(Isa::width)> shorts, back;
    for (std::size_t i = 0; i < shorts.size(); ++i) shorts[i] = static_cast<std::int16_t>(first + static_cast<int>(i));
    const auto floats = Isa::load_sums(shorts.data());
    const auto lanes = this->unpack(floats);
    for (std::size_t i = 0; i < shorts.size(); ++i) EXPECT_EQ(lanes[i], shorts[i]);
    Isa::store_sums(back.data(), Isa::add(floats, Isa::broadcast(first % 2 == 0 ? 0.375F : -0.375F)));
    EXPECT_EQ(back, shorts);
  }
}

TYPED_TEST(Simd, AddBfloatsTakesEveryLaneOnce) {
  using Isa = TypeParam;
  std::array<std::int16_t, static_cast<std::size_t>(Isa::code_lanes)> bits;
  float all = 0;
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const float number = std::ldexp(1.5F, static_cast<int>(i % 8)) + static_cast<float>(i);
    const auto rounded = static_cast<bfloat16>(number);
    bits[i] = Eigen::numext::bit_cast<std::int16_t>(rounded);
    all += static_cast<float>(rounded);
  }
  EXPECT_EQ(Isa::reduce_add(Isa::add_bfloats(Isa::zero(), Isa::load_sums16(bits.data()))), all);
  EXPECT_EQ(Isa::reduce_add(Isa::add_bfloats(Isa::broadcast(2), Isa::load_sums16(bits.data()))), all + 2 * Isa::width);
}

TYPED_TEST(Simd, ReductionsTakeEveryLaneOnce) {
  using Isa = TypeParam;
  const auto powers = this->make([](int i) { return std::ldexp(1.0F, i); });  // every set of lanes has a sum of its own
  const float all = std::ldexp(1.0F, Isa::width) - 1;
  EXPECT_EQ(Isa::reduce_add(this->pack(powers)), all);
  for (int largest = 0; largest < Isa::width; ++largest) {
    const auto lanes = this->make([&](int i) { return i == largest ? -1.0F : i % 2 == 0 ? -inf : -5.0F; });
    EXPECT_EQ(Isa::reduce_max(this->pack(lanes)), -1.0F) << "largest in lane " << largest;
  }
  EXPECT_EQ(Isa::reduce_max(Isa::broadcast(-inf)), -inf);
  EXPECT_TRUE(std::isnan(Isa::reduce_add(Isa::add(this->pack(powers), Isa::broadcast(nan)))));
}

TYPED_TEST(Simd, StoreSumsAddsUpFourVectorsAndWritesFourFloats) {
  using Isa = TypeParam;
  const auto vector = [&](float factor) {
    return Isa::mul(this->pack(this->make([](int i) { return std::ldexp(1.0F, i); })), Isa::broadcast(factor));
  };
  const float all = std::ldexp(1.0F, Isa::width) - 1;
  std::array<float, 6> sums;
  sums.fill(-7);
  Isa::store_sums(sums.data() + 1, vector(1), vector(3), vector(5), vector(11));
  EXPECT_EQ(sums, (std::array<float, 6>{-7, all, 3 * all, 5 * all, 11 * all, -7}));
}

TYPED_TEST(Simd, RowsOfEveryTypeLoadAsFloats) {
  using Isa = TypeParam;
  const auto check = [&]<class T>(T) {
    constexpr index_t dim = 96;
    const std::vector<float> row = reference::Random(2).row(dim, 5);
    constexpr index_t elements = dim / values_per_element<T>;
    Array<T> stored(elements + 1);  // the row starts at element 1: unaligned
    encode(row.data(), dim, stored.data() + 1);
    const std::vector<float> expected = reference::rounded<T>(row);
    for (index_t i = 0; i < dim; i += Isa::width) {
      const auto lanes = this->unpack(simd::load<Isa>(stored.data() + 1, i));
      for (index_t j = 0; j < Isa::width; ++j) {
        EXPECT_EQ(lanes[static_cast<std::size_t>(j)], expected[static_cast<std::size_t>(i + j)])
            << testing_types::type_name<T>() << " value " << i + j;
      }
    }
  };
  check(float{});
  check(half{});
  check(bfloat16{});
  check(q8_0{});
}

TYPED_TEST(Simd, LoadsOfHalvesKeepSubnormalsInfinityAndNaN) {
  using Isa = TypeParam;
  std::vector<half> halfs;
  std::vector<bfloat16> bfloats;
  for (std::uint32_t bits = 0; bits < 65536; bits += 7) {
    halfs.push_back(Eigen::numext::bit_cast<half>(static_cast<std::uint16_t>(bits)));
    bfloats.push_back(Eigen::numext::bit_cast<bfloat16>(static_cast<std::uint16_t>(bits)));
  }
  const auto check = [&](const auto& values) {
    for (std::size_t i = 0; i + this->width <= values.size(); i += this->width) {
      const auto lanes = this->unpack(Isa::load(values.data() + i));
      for (std::size_t j = 0; j < lanes.size(); ++j) {
        ASSERT_TRUE(same(lanes[j], static_cast<float>(values[i + j]))) << "pattern " << 7 * (i + j);
      }
    }
  };
  check(halfs);
  check(bfloats);
}

TYPED_TEST(Simd, LoadFirstFillsWithZerosAndReadsNothingBeyondTheRow) {
  using Isa = TypeParam;
  const auto check = [&]<class T>(T) {
    for (index_t n = 0; n < Isa::width; ++n) {
      const index_t dim = 2 * Isa::width + n;
      std::vector<T> stored(static_cast<std::size_t>(dim));
      const std::vector<float> row = reference::Random(3).row(dim);
      encode(row.data(), dim, stored.data());
      const std::vector<float> expected = reference::rounded<T>(row);
      reference::PageEnd page(stored.size() * sizeof(T));
      const T* at_the_end = page.place(stored.data(), stored.size());
      const auto lanes = this->unpack(simd::load_first<Isa>(at_the_end, 2 * Isa::width, n));
      for (index_t j = 0; j < Isa::width; ++j) {
        EXPECT_EQ(lanes[static_cast<std::size_t>(j)], j < n ? expected[static_cast<std::size_t>(dim - n + j)] : 0)
            << testing_types::type_name<T>() << ", lane " << j << " of " << n;
      }
    }
  };
  check(float{});
  check(half{});
  check(bfloat16{});
}

TYPED_TEST(Simd, WholeLoadsReadNothingBeyondTheRow) {
  using Isa = TypeParam;
  const auto check = [&]<class T>(T) {
    constexpr index_t dim = 64;
    const std::vector<float> row = reference::Random(4).row(dim);
    std::vector<T> stored(static_cast<std::size_t>(dim / values_per_element<T>));
    encode(row.data(), dim, stored.data());
    reference::PageEnd page(stored.size() * sizeof(T));
    const T* at_the_end = page.place(stored.data(), stored.size());
    const auto lanes = this->unpack(simd::load<Isa>(at_the_end, dim - Isa::width));
    EXPECT_EQ(lanes.back(), reference::rounded<T>(row).back());
  };
  check(float{});
  check(half{});
  check(bfloat16{});
  check(q8_0{});
}

}  // namespace
