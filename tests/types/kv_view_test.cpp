// Where a view finds its rows, and which views are turned away.
#include <gtest/gtest.h>

#include <recycled/types/kv_view.hpp>
#include <vector>

#include "reference/messages.hpp"

namespace {

using namespace recycled;

constexpr Shape shape{6, 3, 8, 5};

template <Scalar T>
std::string rejection(const KvView<T>& view, const Shape& of = shape) {
  return message_of([&] { recycled::detail::check(view, of); });
}

const std::vector<float> memory(10000);

KvView<float> good() { return KvView<float>::position_major(memory.data(), memory.data(), shape, 10); }

TEST(KvView, FindsRowsByPositionAndHead) {
  const KvView<float> view{memory.data(), memory.data() + 1, {100, 20}, {7, 300}, 10};
  EXPECT_EQ(view.key(3, 2), memory.data() + 3 * 100 + 2 * 20);
  EXPECT_EQ(view.value(3, 2), memory.data() + 1 + 3 * 7 + 2 * 300);
}

TEST(KvView, PositionMajorPacksTheHeadsOfAPosition) {
  const auto view = good();
  EXPECT_EQ(view.length, 10);
  EXPECT_EQ(view.key(4, 2), memory.data() + (4 * 3 + 2) * 8);
  EXPECT_EQ(view.value(4, 2), memory.data() + (4 * 3 + 2) * 5);
  EXPECT_EQ(rejection(view), "");
}

TEST(KvView, HeadMajorLeavesRoomInEveryHead) {
  const auto view = KvView<float>::head_major(memory.data(), memory.data(), shape, 10, 64);
  EXPECT_EQ(view.length, 10);
  EXPECT_EQ(view.key(4, 2), memory.data() + (2 * 64 + 4) * 8);
  EXPECT_EQ(view.value(4, 2), memory.data() + (2 * 64 + 4) * 5);
  EXPECT_EQ(rejection(view), "");
}

TEST(KvView, CountsQ8RowsInBlocks) {
  const std::vector<q8_0> blocks(1000);
  const Shape wide{4, 2, 96, 64};
  const auto view = KvView<q8_0>::position_major(blocks.data(), blocks.data(), wide, 5);
  EXPECT_EQ(view.key(4, 1), blocks.data() + (4 * 2 + 1) * 3);
  EXPECT_EQ(view.value(4, 1), blocks.data() + (4 * 2 + 1) * 2);
  EXPECT_EQ(rejection(view, wide), "");
}

TEST(KvView, LayoutsTakeAShapeWithoutValueDimAndRefuseOneThatCannotBe) {
  const auto view = KvView<float>::position_major(memory.data(), memory.data(), {6, 3, 8}, 10);
  EXPECT_EQ(view.value_strides.position, 3 * 8);
  EXPECT_EQ(message_of([] {
              KvView<float>::position_major(memory.data(), memory.data(), {6, 4, 8}, 10);
            }),
            says("Shape.query_heads", "6", "a multiple of kv_heads = 4"));
  EXPECT_EQ(message_of([] {
              KvView<q8_0>::head_major(nullptr, nullptr, {4, 4, 40}, 10, 20);
            }),
            says("Shape.head_dim", "40", "a multiple of 32 for this KV type"));
}

TEST(KvView, MustHoldTheNewToken) {
  for (const index_t length : {0, -1}) {
    auto view = good();
    view.length = length;
    EXPECT_EQ(rejection(view),
              says("KvView.length", std::to_string(length), "at least 1: the new token's row is already in it"));
  }
}

TEST(KvView, MustPointSomewhere) {
  auto view = good();
  view.keys = nullptr;
  EXPECT_EQ(rejection(view), says("KvView.keys", "null", "a pointer to the first key"));
  view = good();
  view.values = nullptr;
  EXPECT_EQ(rejection(view), says("KvView.values", "null", "a pointer to the first value"));
}

TEST(KvView, RowsMustNotOverlap) {
  const auto expectation = [](index_t row, index_t count) {
    return "at least one row of " + std::to_string(row) + " elements, and no overflow over " + std::to_string(count);
  };
  auto view = good();
  view.key_strides.position = 7;
  EXPECT_EQ(rejection(view), says("KvView.key_strides.position", "7", expectation(8, 10)));
  view = good();
  view.key_strides.head = 0;
  EXPECT_EQ(rejection(view), says("KvView.key_strides.head", "0", expectation(8, 3)));
  view = good();
  view.value_strides.position = -24;
  EXPECT_EQ(rejection(view), says("KvView.value_strides.position", "-24", expectation(5, 10)));
  view = good();
  view.value_strides.head = 4;
  EXPECT_EQ(rejection(view), says("KvView.value_strides.head", "4", expectation(5, 3)));
}

TEST(KvView, StridesMustNotOverflow) {
  auto view = good();
  view.key_strides.position = std::numeric_limits<index_t>::max() / 4;
  EXPECT_NE(rejection(view).find("KvView.key_strides.position = 2305843009213693951, expected"), std::string::npos);
  view = good();
  view.value_strides.head = std::numeric_limits<index_t>::max();
  EXPECT_NE(rejection(view).find("KvView.value_strides.head = 9223372036854775807, expected"), std::string::npos);
  view = good();
  view.length = index_t{1} << 40;
  view.key_strides.position = index_t{1} << 23;
  EXPECT_NE(rejection(view).find("KvView.key_strides.position = 8388608, expected"), std::string::npos);
  view = good();
  view.length = (index_t{1} << 40) + 1;
  EXPECT_NE(rejection(view).find("KvView.length = 1099511627777, expected at most 2^40"), std::string::npos);
}

TEST(KvView, StridesThatLeadNowhereAreNotAsked) {
  auto view = good();
  view.length = 1;
  view.key_strides.position = view.value_strides.position = 0;
  EXPECT_EQ(rejection(view), "");
  view.key_strides.head = view.value_strides.head = 0;
  EXPECT_NE(rejection(view), "");
  EXPECT_EQ(rejection(view, {6, 1, 8, 5}), "");
}

}  // namespace
