// Ten million positions in one context: chosen from, attended to, sketched, in a window and behind a prompt.
#include "compiled/layers.hpp"
#include "reference/feed.hpp"
#include "stress/effort.hpp"

namespace {

using namespace recycled;
using reference::at, reference::Positions, reference::Random;

/// Ten million positions that share a thousand rows: the oracle over the thousand knows what comes of them.
class TenMillion : public testing::Test {
 protected:
  static constexpr index_t rows = 1000, copies = 10'000, positions = rows * copies;
  static constexpr Shape one{2, 1, 16, 8};

  TenMillion() : cache(reference::Cache<half>::random(one, rows, random)), table(at(copies), 0) {}
  KvView<half> view(index_t end) const {
    KvView<half> all = cache.view();
    all.length = end;
    all.pages = {table.data(), rows};
    return all;
  }
  std::vector<float> step(reference::AnyLayer<half>& layer, const std::vector<float>& query, index_t end) {
    std::vector<float> out(16);
    layer.step(query, view(end), out, pool);
    return out;
  }
  void expect(const std::vector<float>& out, const std::vector<float>& query, const Positions& read) {
    for (index_t r = 0; r < 2; ++r) {
      const auto truth =
          reference::attend(std::span(query).subspan(at(r * 16), 16), cache.keys(0), cache.values(0), read);
      EXPECT_TRUE(reference::near(std::span(out).subspan(at(r * 8), 8), truth));
    }
  }
  /// The row that one of the query heads weighs most.
  index_t favourite(const std::vector<float>& query) {
    long double best = -1;
    index_t row = 0;
    for (index_t r = 0; r < 2; ++r) {
      const auto all = reference::attend(std::span(query).subspan(at(r * 16), 16), cache.keys(0), cache.values(0));
      for (index_t p = 0; p < rows; ++p) {
        if (all.weights[at(p)] > best) best = all.weights[at(p)], row = p;
      }
    }
    return row;
  }
  static Positions every_row() {
    Positions all(at(rows));
    std::iota(all.begin(), all.end(), index_t{0});
    return all;
  }

  Random random{9};
  ThreadPool pool{1};
  reference::Cache<half> cache;
  std::vector<std::int32_t> table;
};

TEST_F(TenMillion, PositionsAreAttendedToAndChosenFrom) {
  const auto layer = reference::make_layer<half>(one, {.capacity = 50}, {FixedStride{2}}, {.pool = 1});
  std::vector<float> query = random.row(32);
  layer->observe(query, positions - 2);
  layer->prepare(view(positions - 2), pool);
  // Of equal scores the lowest positions: the first copies of the row that matters most.
  const auto expect_copies = [&](const std::vector<float>& asked, index_t added) {
    Positions expected;
    for (index_t i = added; i < 50; ++i) expected.push_back(favourite(asked) + i * rows);
    Positions held = layer->recycled_positions(0);
    held.resize(held.size() - at(added));
    EXPECT_EQ(held, expected);
  };
  expect_copies(query, 0);
  std::vector<float> out = step(*layer, query, positions - 1);
  EXPECT_EQ(layer->last_step(0), StepKind::recycled);
  expect(out, query, [&] {
    Positions read(50, favourite(query));
    read.push_back(rows - 2);
    return read;
  }());
  expect_copies(query, 1);
  query = random.row(32);
  out = step(*layer, query, positions);
  EXPECT_EQ(layer->last_step(0), StepKind::full);
  expect(out, query, every_row());
  expect_copies(query, 0);
  EXPECT_EQ(layer->statistics().heads[0].rows_read, static_cast<std::uint64_t>(51 + positions));
  stress::report("long run, positions", "10000000 positions, choice and counts exact");
}

TEST_F(TenMillion, PositionsHaveASketch) {
  const auto layer =
      reference::make_layer<half>(one, {.capacity = 50, .sketch = {.coordinates = 16}}, {FixedStride{1}}, {.pool = 1});
  const index_t end = stress::effort(1) > 1 ? positions : positions / 5;
  std::vector<float> query = random.row(32);
  layer->observe(random.row(64 * 32), end - 2);
  layer->prepare(view(end - 2), pool);
  step(*layer, query, end - 1);
  const std::vector<float> out = step(*layer, query, end);
  EXPECT_EQ(layer->last_step(0), StepKind::sketched);
  Positions read = layer->recycled_positions(0);
  ASSERT_EQ(read.size(), 50U);
  EXPECT_EQ(read.back(), end - 1);
  for (index_t& p : read) p %= rows;
  expect(out, query, read);
}

TEST_F(TenMillion, PositionsInAWindowAndBehindAPrompt) {
  const AttentionOptions attention{.window = 300, .sinks = 3};
  const auto layer = reference::make_layer<half>(one, {.capacity = 20, .attention = attention}, {FixedStride{3}});
  std::vector<float> query = random.row(32);
  layer->observe(query, positions - 9);
  std::vector<float> prompt_out(3 * 16);
  const std::vector<float> prompt_queries = random.row(3 * 32);
  layer->prefill(prompt_queries, view(positions - 6), prompt_out, pool);
  const auto seen = [](index_t end) {
    Positions all{0, 1, 2};
    for (index_t p = end - 300; p < end; ++p) all.push_back(p % rows);
    return all;
  };
  for (index_t t = 0; t < 3; ++t) {
    expect({prompt_out.begin() + t * 16, prompt_out.begin() + (t + 1) * 16},
           {prompt_queries.begin() + t * 32, prompt_queries.begin() + (t + 1) * 32}, seen(positions - 8 + t));
  }
  for (index_t end = positions - 5; end <= positions; ++end) {
    const std::vector<float> out = step(*layer, query, end);
    if (layer->last_step(0) == StepKind::full) expect(out, query, seen(end));
    for (const index_t p : layer->recycled_positions(0)) EXPECT_TRUE(p < 3 || (p >= end - 300 && p < end));
  }
  EXPECT_EQ(layer->statistics().heads[0].full_steps, 2U);
}

}  // namespace
