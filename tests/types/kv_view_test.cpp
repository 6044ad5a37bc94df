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

TEST(KvView, FindsRowsThroughPages) {
  const std::vector<std::int32_t> table{7, 2, 3};
  KvView<float> view = good();
  view.pages = {table.data(), 4};
  EXPECT_EQ(view.key(3, 2), memory.data() + ((7 * 4 + 3) * 3 + 2) * 8);
  EXPECT_EQ(view.value(6, 1), memory.data() + ((2 * 4 + 2) * 3 + 1) * 5);
  EXPECT_EQ(rejection(view), "");
  view.pages.size = 1;
  EXPECT_EQ(view.key(2, 0), memory.data() + 3 * 3 * 8);
}

TEST(Pages, ARunEndsWhereTheNextRowLiesElsewhere) {
  const std::vector<std::int32_t> table{7, 2, 3, 4, 9};
  const auto expect_run = [](const Pages& pages, Range positions, Range rows) {
    const Range run = pages.run(positions);
    EXPECT_EQ(run.begin, rows.begin) << positions.begin;
    EXPECT_EQ(run.end, rows.end) << positions.begin;
  };
  expect_run({}, {3, 100}, {3, 100});
  const Pages pages{table.data(), 4};
  expect_run(pages, {0, 20}, {28, 32});
  expect_run(pages, {1, 3}, {29, 31});
  expect_run(pages, {3, 4}, {31, 32});
  expect_run(pages, {4, 20}, {8, 20});
  expect_run(pages, {5, 9}, {9, 13});
  expect_run(pages, {15, 20}, {19, 20});
  const Pages cells{table.data(), 1};
  expect_run(cells, {0, 5}, {7, 8});
  expect_run(cells, {1, 5}, {2, 5});
  expect_run(cells, {1, 3}, {2, 4});
}

TEST(KvView, RefusesPagesThatCannotBe) {
  const std::vector<std::int32_t> table{0, -2, 1};
  KvView<float> view = good();
  view.pages = {table.data(), 4};
  EXPECT_EQ(rejection(view), says("KvView.pages.table", "-2", "a page, 0 or more, at index 1"));
  const auto seen = [&](index_t positions) {
    return recycled::detail::SeenPages{view.pages, view.key_strides, view.value_strides, positions, 12};
  };
  EXPECT_EQ(message_of([&] { recycled::detail::check(view, shape, seen(8)); }), "") << "positions 0 to 7 are known";
  EXPECT_NE(message_of([&] { recycled::detail::check(view, shape, seen(7)); }), "");
  for (const index_t size : {0, -1, (1 << 20) + 1}) {
    view.pages.size = size;
    EXPECT_EQ(rejection(view), says("KvView.pages.size", std::to_string(size), "1 to 2^20 rows"));
  }
  const std::vector<std::int32_t> far{0, 2147483647, 1};
  view.pages = {far.data(), 1 << 20};
  view.length = (1 << 20) + 1;
  view.key_strides.position = index_t{1} << 14;
  EXPECT_EQ(rejection(view), says("KvView.key_strides.position", "16384",
                                  "at least one row of 8 elements, and no overflow over 2251799813685248"));
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

TEST(KvView, HeadsMustNotShareRows) {
  const auto expect = [](const auto& change, const std::string& message) {
    KvView<float> view = good();
    change(view);
    EXPECT_EQ(rejection(view), message);
  };
  const std::string apart = "rows that don't overlap: all heads within a position, or all positions within a head";
  // Head 1 of a position would begin where head 0 of the next one does, or within the row of head 0 of the last one.
  expect([](auto& view) { view.key_strides = {8, 8}; }, says("KvView.key_strides (position, head)", "8, 8", apart));
  expect(
      [](auto& view) {
        view.value_strides = {5, 49};
      },
      says("KvView.value_strides (position, head)", "5, 49", apart));
  expect(
      [](auto& view) {
        view.value_strides = {14, 5};
      },
      says("KvView.value_strides (position, head)", "14, 5", apart));
  expect([](auto& view) { view.value_strides = {5, 50}; }, "");
  expect([](auto& view) { view.value_strides = {15, 5}; }, "");
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

TEST(KvView, AStrideOfASingleRowMustNotOverflowEither) {
  const Shape one{1, 1, 8, 5};
  for (const index_t stride : {std::numeric_limits<index_t>::min(), std::numeric_limits<index_t>::max() / 4,
                               std::numeric_limits<index_t>::max()}) {
    auto view = good();
    view.length = 1;
    view.key_strides.position = stride;
    EXPECT_NE(rejection(view, one).find("KvView.key_strides.position = " + std::to_string(stride) + ", expected"),
              std::string::npos);
    view = good();
    view.value_strides.head = stride;
    EXPECT_NE(rejection(view, one).find("KvView.value_strides.head = " + std::to_string(stride) + ", expected"),
              std::string::npos);
  }
}

TEST(KvView, HeadMajorRefusesRoomThatOverflows) {
  EXPECT_EQ(message_of([] { KvView<float>::head_major(memory.data(), memory.data(), shape, 10, index_t{1} << 62); }),
            says("head_major: room of a head", "4611686018427387904 * 8", "a product below 2^63"));
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
