// Page tables that are wrong somewhere a layer has not looked yet, however it came to its length.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <recycled/recycled.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "reference/feed.hpp"
#include "reference/messages.hpp"
#include "reference/page_end.hpp"

namespace {

using namespace recycled;
using reference::at;

constexpr Shape shape{2, 1, 8};
constexpr index_t known = 20;
using Layer = LayerAttention<float, FixedStride>;

/// Rows behind a table, a cell each.
struct Paged {
  Paged() : rows(at((known + 8) * 8), 0.25F), table(at(known + 8)) { std::iota(table.begin(), table.end(), 0); }
  KvView<float> view(index_t length) const {
    KvView<float> kv = KvView<float>::position_major(rows.data(), rows.data(), shape, length);
    kv.pages = {table.data(), 1};
    return kv;
  }
  std::vector<float> rows;
  std::vector<std::int32_t> table;
};

Layer made() { return Layer(shape, {.capacity = 4}, {.stride = 1}); }
const std::vector<float> query(16, 0.5F);

std::string message_of_step(Layer& layer, const KvView<float>& kv) {
  std::vector<float> out(16);
  return message_of([&] { layer.step(query, kv, out); });
}

void steps(Layer& layer, const Paged& paged, index_t length) {
  while (layer.length() < length) ASSERT_EQ(message_of_step(layer, paged.view(layer.length() + 1)), "");
}

std::string message_of_choice(Layer& layer, const KvView<float>& kv) {
  return message_of([&] { layer.choose_positions(std::vector<index_t>{3, 1}, kv); });
}

/// Every call that takes a view refuses it, and names the page.
void expect_refused(Layer& layer, const Paged& paged, index_t wrong) {
  const index_t length = layer.length();
  std::vector<float> out(16);
  std::vector<std::string> messages{message_of_step(layer, paged.view(length + 1)),
                                    message_of([&] { layer.prefill(query, paged.view(length + 1), out); })};
  for (index_t seen = std::max(length, wrong + 1); seen <= length + 1; ++seen) {
    messages.push_back(message_of_choice(layer, paged.view(seen)));
    messages.push_back(message_of([&] { layer.choose_by_scores(std::vector<float>(at(seen)), paged.view(seen)); }));
  }
  const std::string expected = "recycled: KvView.pages.table = -1, expected a page, 0 or more, at index ";
  EXPECT_EQ(messages, std::vector<std::string>(messages.size(), expected + std::to_string(wrong)));
  EXPECT_EQ(layer.length(), length);
}

TEST(PageTable, IsLookedAtWhereTheLayerHasNotSeenIt) {
  Paged paged, other;
  const auto contiguous = KvView<float>::position_major(paged.rows.data(), paged.rows.data(), shape, known);
  const std::pair<const char*, std::function<Layer()>> ways[] = {
      {"observed",
       [] {
         Layer layer = made();
         layer.observe(query, known);
         return layer;
       }},
      {"loaded",
       [&] {
         Layer layer = made(), loaded = made();
         steps(layer, other, known);
         std::stringstream state;
         layer.save(state);
         loaded.load(state);
         return loaded;
       }},
      {"seen through another table",
       [&] {
         Layer layer = made();
         steps(layer, other, known);
         return layer;
       }},
      {"seen without a table",
       [&] {
         Layer layer = made();
         layer.observe(query, known);
         layer.prepare(contiguous);
         return layer;
       }},
  };
  for (const auto& [name, way] : ways) {
    SCOPED_TRACE(name);
    for (const index_t wrong : {index_t{0}, known / 2, known - 1, known}) {
      Layer layer = way();
      paged.table[at(wrong)] = -1;
      expect_refused(layer, paged, wrong);
      paged.table[at(wrong)] = static_cast<std::int32_t>(wrong);
      EXPECT_EQ(message_of_step(layer, paged.view(known + 1)), "");
    }
  }
}

TEST(PageTable, IsLookedAtAgainWherePositionsWereTakenBack) {
  for (const index_t kept : {10, 0}) {
    Paged paged;
    Layer layer = made();
    steps(layer, paged, known);
    kept > 0 ? layer.truncate(kept) : layer.clear();
    layer.observe(query, known);
    for (const index_t wrong : {kept, known - 1}) {
      paged.table[at(wrong)] = -1;
      expect_refused(layer, paged, wrong);
      EXPECT_EQ(message_of([&] { layer.prepare(paged.view(known)); }),
                "recycled: KvView.pages.table = -1, expected a page, 0 or more, at index " + std::to_string(wrong));
      paged.table[at(wrong)] = static_cast<std::int32_t>(wrong);
    }
    steps(layer, paged, known + 2);
  }
}

TEST(PageTable, BehindTheLengthMayChangeUntilItsPositionsCome) {
  Paged paged;
  Layer layer = made();
  layer.observe(query, known);
  layer.prepare(paged.view(known + 4));  // the host's table is longer already
  paged.table[known + 2] = -1;
  steps(layer, paged, known + 2);
  expect_refused(layer, paged, known + 2);
}

/// A new position in row 0 says nothing about where the others are.
TEST(PageTable, ThatWasSeenStillBoundsStrides) {
  Paged paged;
  Layer layer = made();
  steps(layer, paged, known);
  paged.table[known] = 0;
  for (const index_t stride : {index_t{0}, index_t{-7}, index_t{7}, std::numeric_limits<index_t>::max() / 128}) {
    const auto with = [&](index_t length) {
      KvView<float> kv = paged.view(length);
      kv.key_strides.position = stride;
      return kv;
    };
    const std::vector<std::string> messages{message_of_choice(layer, with(known)),
                                            message_of_choice(layer, with(known + 1)),
                                            message_of_step(layer, with(known + 1))};
    const std::string expected = "recycled: KvView.key_strides.position = " + std::to_string(stride) +
                                 ", expected at least one row of 8 elements, and no overflow over 20";
    EXPECT_EQ(messages, std::vector<std::string>(3, expected));
  }
  steps(layer, paged, known + 1);
}

/// Rows that were far out once don't count where they no longer are.
TEST(PageTable, OfASmallerCacheMayHaveShorterStrides) {
  constexpr Shape two{2, 2, 8};
  const std::vector<float> rows(4096);
  std::vector<std::int32_t> table(8);
  LayerAttention<float, FixedStride> layer(two, {.capacity = 4}, {.stride = 1});
  const auto view = [&](index_t room, index_t length) {
    KvView<float> kv = KvView<float>::head_major(rows.data(), rows.data(), two, room, room);
    kv.length = length;
    kv.pages = {table.data(), 1};
    return kv;
  };
  std::vector<float> out(16);
  std::iota(table.begin(), table.end(), 100);
  layer.step(query, view(200, 1), out);
  layer.step(query, view(200, 2), out);
  std::iota(table.begin(), table.end(), 0);
  EXPECT_EQ(message_of([&] { layer.step(query, view(8, 3), out); }), "");
}

/// Also where rows are fetched before they are needed.
TEST(PageTable, IsReadAsFarAsTheLengthGoes) {
  constexpr index_t rows_there = 400;
  const Shape few{2, 2, 8};
  const std::vector<float> rows(at(rows_there * 2 * 8), 0.25F), queries(2 * 16, 0.5F);
  std::vector<float> out(queries.size());
  for (const index_t in_page : {1, 4}) {
    std::vector<std::int32_t> table(at(rows_there / in_page));
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(i * 7 % table.size());
    reference::PageEnd memory(table.size() * sizeof(std::int32_t));
    for (const index_t length : {2, 3, 64, 95, 96, 97, 192, 256, 384, 400}) {
      KvView<float> kv = KvView<float>::position_major(rows.data(), rows.data(), few, length);
      kv.pages = {memory.place(table.data(), at((length + in_page - 1) / in_page)), in_page};
      LayerAttention<float, FixedStride> layer(few, {.capacity = 4}, {.stride = 1});
      layer.prefill(queries, kv, out);
      layer.clear();
      layer.step(std::span(queries).first(16), kv, std::span(out).first(16));
      EXPECT_FLOAT_EQ(out[0], 0.25F);
    }
  }
}

}  // namespace
