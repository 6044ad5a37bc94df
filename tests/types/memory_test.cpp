// Arrays, and sizes that no memory has.
#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <recycled/types/memory.hpp>

#include "reference/messages.hpp"
#include "reference/replaced_new.hpp"

namespace {

using namespace recycled;
using recycled::detail::checked_product;

constexpr index_t largest = std::numeric_limits<index_t>::max();

std::uintptr_t address(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

TEST(Array, StartsEmptyAndHoldsWhatItIsGiven) {
  Array<int> none;
  EXPECT_EQ(none.size(), 0);
  EXPECT_EQ(none.begin(), none.end());
  const Array<int> sevens(5, 7);
  EXPECT_EQ(sevens.size(), 5);
  EXPECT_EQ(std::accumulate(sevens.begin(), sevens.end(), 0), 35);
}

TEST(Array, KeepsItsContentsWhenItGrows) {
  Array<index_t> array(1000);
  std::iota(array.begin(), array.end(), index_t{0});
  array.resize(1 << 20);
  for (index_t i = 0; i < 1000; ++i) ASSERT_EQ(array[i], i);
  array.resize(3);
  EXPECT_EQ(array.size(), 3);
  EXPECT_EQ(array[2], 2);
}

TEST(Array, CopiesShareNothing) {
  Array<int> a(3, 1);
  Array<int> b = a;
  b[0] = 2;
  EXPECT_EQ(a[0], 1);
  const Array<int> c = std::move(b);
  EXPECT_EQ(c[0], 2);
  a.assign(2, 9);
  EXPECT_EQ(a.size(), 2);
  EXPECT_EQ(a[1], 9);
}

TEST(Array, StartsOnACacheLineAndLargeOnesOnAHugePage) {
  for (const index_t bytes : {1, 63, 64, 1000, 100000}) {
    EXPECT_EQ(address(Array<char>(bytes).data()) % 64, 0U) << bytes;
  }
  const index_t huge = index_t{1} << 21;
  EXPECT_EQ(address(Array<char>(huge).data()) % static_cast<std::uintptr_t>(huge), 0U);
  EXPECT_EQ(address(Array<double>(huge).data()) % static_cast<std::uintptr_t>(huge), 0U);
}

template <class T>
class FreshArray : public testing::Test {};
using Types = testing::Types<float, half, bfloat16, q8_0, index_t>;
TYPED_TEST_SUITE(FreshArray, Types);

// A constructor that writes zeros would have to touch every page of a cache of gigabytes.
TYPED_TEST(FreshArray, HoldsWhatMemoryHeld) {
  reference::filling = 0x5A;
  Array<TypeParam> array(100);
  array.resize(1000);
  reference::filling = -1;
  const auto* bytes = reinterpret_cast<const unsigned char*>(array.data());
  for (std::size_t i = 0; i < 1000 * sizeof(TypeParam); ++i) ASSERT_EQ(bytes[i], 0x5A) << "byte " << i;
}

TEST(Array, RefusesSizesThatNoMemoryHasAndStaysAsItWas) {
  const std::string expectation = "0 to 2^48 bytes' worth of elements";
  Array<double> array(3, 1.5);
  EXPECT_EQ(message_of([&] { array.resize(-1); }), says("array size", "-1", expectation));
  EXPECT_EQ(message_of([&] { array.resize(largest); }), says("array size", "9223372036854775807", expectation));
  EXPECT_EQ(message_of([&] { array.assign((index_t{1} << 45) + 1, 0); }),
            says("array size", "35184372088833", expectation));
  EXPECT_EQ(message_of([] { Array<char>(-5); }), says("array size", "-5", expectation));
  EXPECT_EQ(array.size(), 3);
  EXPECT_EQ(array[2], 1.5);
}

TEST(CheckedProduct, IsTheProduct) {
  EXPECT_EQ(checked_product(0, largest, "x"), 0);
  EXPECT_EQ(checked_product(largest, 0, "x"), 0);
  EXPECT_EQ(checked_product(largest, 1, "x"), largest);
  EXPECT_EQ(checked_product(1, largest, "x"), largest);
  EXPECT_EQ(checked_product(3037000499, 3037000499, "x"), 9223372030926249001);
}

TEST(CheckedProduct, RefusesWhatDoesNotFitOrIsNegative) {
  const auto rejection = [](index_t a, index_t b) { return message_of([&] { checked_product(a, b, "cache size"); }); };
  EXPECT_EQ(rejection(largest, 2), says("cache size", "9223372036854775807 * 2", "a product below 2^63"));
  EXPECT_EQ(rejection(2, largest), says("cache size", "2 * 9223372036854775807", "a product below 2^63"));
  EXPECT_EQ(rejection(index_t{1} << 32, index_t{1} << 31),
            says("cache size", "4294967296 * 2147483648", "a product below 2^63"));
  EXPECT_EQ(rejection(-1, 5), says("cache size", "-1 * 5", "a product below 2^63"));
  EXPECT_EQ(rejection(5, -1), says("cache size", "5 * -1", "a product below 2^63"));
}

struct Careful {
  int value = 0;
  void validate() const { recycled::detail::require(value >= 0, "Careful.value", value, "7"); }
};
struct Careless {};

TEST(Validate, AsksPoliciesThatCanCheckThemselves) {
  EXPECT_EQ(message_of([] { recycled::detail::validate(Careful{}); }), "");
  EXPECT_EQ(message_of([] { recycled::detail::validate(Careful{-3}); }), says("Careful.value", "-3", "7"));
  recycled::detail::validate(Careless{});
}

}  // namespace
