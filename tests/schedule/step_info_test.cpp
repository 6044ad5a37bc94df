// What a schedule is told before a step and after a full one, and what the statistics count.
#include <gtest/gtest.h>

#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::Token;

constexpr Shape shape{6, 2, 32, 64};

struct Asked {
  StepInfo info;
  std::vector<float> queries, full_queries;
};

/// Full at every fourth step, and writes down what it is told.
template <bool PerHead>
struct Recorder {
  static constexpr bool per_head = PerHead;
  std::vector<Asked>* asked;
  std::vector<Refresh>* learnt;
  StepKind decide(const StepInfo& info) const {
    asked->push_back(
        {info, {info.queries.begin(), info.queries.end()}, {info.full_queries.begin(), info.full_queries.end()}});
    return info.step % 4 == 0 ? StepKind::full : StepKind::recycled;
  }
  void observe(const Refresh& refresh) const { learnt->push_back(refresh); }
};

template <bool PerHead>
class Told {
 public:
  Told() {
    Decoder<float, Recorder<PerHead>> decoder({1, shape}, {.capacity = 9}, {&asked, &learnt});
    prompt = tokens.next(30);
    steps = tokens.next(10);
    reference::prefill(decoder, prompt);
    reference::decode(decoder, steps);
    statistics = decoder.statistics()[0];
  }
  reference::Tokens tokens{shape, 4};
  std::vector<Asked> asked;
  std::vector<Refresh> learnt;
  std::vector<Token> prompt, steps;
  LayerStatistics statistics;
};

TEST(StepInfo, OfALayerHoldsAllQueries) {
  const Told<false> told;
  ASSERT_EQ(told.asked.size(), 10U);
  for (std::size_t i = 0; i < 10; ++i) {
    const auto step = static_cast<index_t>(i) + 1;
    const Asked& asked = told.asked[i];
    EXPECT_EQ(asked.info.step, step);
    EXPECT_EQ(asked.info.length, 30 + step);
    EXPECT_EQ(asked.info.age, (step - 1) % 4 + 1);
    EXPECT_EQ(asked.info.kv_head, 0);
    EXPECT_EQ(asked.info.kv_heads, 2);
    EXPECT_EQ(asked.info.head_dim, 32);
    EXPECT_EQ(asked.queries, told.steps[i].query);
    const std::size_t last_full = (i + 1 + 3) / 4 * 4 - 4;  // the step before this one that was full, or 0
    EXPECT_EQ(asked.full_queries, last_full == 0 ? told.prompt.back().query : told.steps[last_full - 1].query);
  }
}

TEST(StepInfo, OfAKvHeadHoldsItsGroupsQueries) {
  const Told<true> told;
  ASSERT_EQ(told.asked.size(), 20U);
  for (std::size_t i = 0; i < 20; ++i) {
    const std::size_t g = i % 2;
    const Asked& asked = told.asked[i];
    const auto group = [g](const std::vector<float>& all) {
      return std::vector<float>(all.begin() + static_cast<index_t>(g) * 96,
                                all.begin() + static_cast<index_t>(g + 1) * 96);
    };
    EXPECT_EQ(asked.info.kv_head, static_cast<index_t>(g));
    EXPECT_EQ(asked.info.step, static_cast<index_t>(i / 2) + 1);
    EXPECT_EQ(asked.queries, group(told.steps[i / 2].query));
    const std::size_t last_full = (i / 2 + 1 + 3) / 4 * 4 - 4;
    EXPECT_EQ(asked.full_queries, group(last_full == 0 ? told.prompt.back().query : told.steps[last_full - 1].query));
  }
}

TEST(Refresh, FollowsEveryMeasuredFullStepHeadByHead) {
  const Told<false> told;
  ASSERT_EQ(told.learnt.size(), 4U);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(told.learnt[i].step, i < 2 ? 4 : 8);
    EXPECT_EQ(told.learnt[i].kv_head, static_cast<index_t>(i % 2));
    EXPECT_EQ(told.learnt[i].kv_heads, 2);
  }
  EXPECT_EQ(told.statistics.heads[1].measured, 2U);
  EXPECT_NEAR(told.statistics.heads[1].retained_mass,
              static_cast<double>(told.learnt[1].retained_mass) + static_cast<double>(told.learnt[3].retained_mass),
              1e-6);
}

/// The retained mass of a full step that looks at `position`, after 3 keys of many directions had their turn.
float retained(index_t position) {
  const Shape one{1, 1, 8};
  std::vector<Asked> asked;
  std::vector<Refresh> learnt;
  Decoder<float, Recorder<false>> decoder({1, one}, {.capacity = 1}, {&asked, &learnt}, {.pool = 1});
  const auto axis = [](index_t i) {
    std::vector<float> v(8, 0.0F);
    v[reference::at(i)] = 30;
    return v;
  };
  std::vector<float> out(8);
  for (index_t j = 0; j < 3; ++j) decoder.step(0, axis(1), axis(j), axis(j), out);
  decoder.step(0, axis(position), axis(7), axis(7), out);
  EXPECT_EQ(decoder.layer(0).last_step(0), StepKind::full);
  return learnt.at(0).retained_mass;
}

TEST(Refresh, MeasuresHowStaleTheSetHadBecome) {
  EXPECT_FLOAT_EQ(retained(2), 1);  // the newest is held
  EXPECT_FLOAT_EQ(retained(0), 0);  // the oldest had left long ago
  EXPECT_FLOAT_EQ(retained(7), 1);  // the token's own row always counts
}

template <class T>
void expect_bytes(std::uint64_t bytes_of_a_row) {
  Decoder<T, FixedStride> decoder({1, shape}, {.capacity = 9}, {4});
  reference::Tokens tokens(shape, 4);
  reference::prefill(decoder, tokens.next(30));
  reference::decode(decoder, tokens.next(4));
  const std::uint64_t rows = 3 * (9 + 1) + 34;
  const LayerStatistics statistics = decoder.statistics()[0];
  for (const HeadStatistics& head : statistics.heads) {
    EXPECT_EQ(head.rows_read, rows);
    EXPECT_EQ(head.bytes_read, rows * bytes_of_a_row);
    EXPECT_EQ(head.recycled_steps, 3U);
    EXPECT_EQ(head.full_steps, 1U);
  }
  EXPECT_EQ(statistics.total().rows_read, 2 * rows);
}

TEST(Statistics, AddUpInEveryCount) {
  const LayerStatistics layer{{{1, 2, 3, 4, 5, 6, 7, 8.5, 9, 10.5}, {20, 30, 40, 50, 60, 70, 80, 90, 100, 110}}};
  EXPECT_TRUE((layer.total() == HeadStatistics{21, 32, 43, 54, 65, 76, 87, 98.5, 109, 120.5}));
}

TEST(Statistics, CountTheBytesOfKeysAndValues) {
  expect_bytes<float>(96 * 4);
  expect_bytes<half>(96 * 2);
  expect_bytes<bfloat16>(96 * 2);
  expect_bytes<q8_0>(3 * 34);
}

}  // namespace
