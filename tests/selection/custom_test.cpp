// Selections and schedules of a user's own, in a few lines each: what they are told, and what becomes of their answers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::Positions;
using reference::Real;
using reference::Token;

constexpr Shape shape{4, 2, 16};
constexpr index_t prompt = 60;
constexpr index_t capacity = 12;

/// Every ninth position for good, whether a full step ranks it or it joins where none does; else by score.
struct Pins {
  void rank(const Scores& scores, std::span<float> ranks) const {
    for (std::size_t j = 0; j < ranks.size(); ++j) ranks[j] = pinned(static_cast<index_t>(j), scores.log_weights[j]);
  }
  void attended(const Attended& seen, std::span<float> ranks) const {
    for (std::size_t s = 0; s < ranks.size(); ++s) ranks[s] = pinned(seen.positions[s], ranks[s]);
  }
  static float pinned(index_t position, float other) {
    return position % 9 == 0 ? std::numeric_limits<float>::infinity() : other;
  }
};

TEST(OwnSelection, PinsForGoodWhatItRanksAtInfinity) {
  for (const index_t stride : {7, 1000}) {
    Decoder<float, FixedStride, Pins> decoder({1, shape}, {.capacity = capacity}, {stride});
    reference::Tokens tokens(shape, 6);
    for (index_t own = 0; own < prompt; ++own) {
      reference::decode(decoder, tokens.next(1));
      for (index_t g = 0; g < 2; ++g) {
        const Positions held = decoder.layer(0).recycled_positions(g);
        EXPECT_EQ(static_cast<index_t>(held.size()), std::min(own + 1, capacity));
        EXPECT_EQ(std::count_if(held.begin(), held.end(), [](index_t p) { return p % 9 == 0; }), own / 9 + 1);
      }
    }
  }
}

/// Also where nothing is missing and the host's rows are read: then the logits stand by position.
struct Witness {
  std::vector<float>* sums;
  void rank(const Scores& scores, std::span<float> ranks) const {
    std::copy(scores.log_weights.begin(), scores.log_weights.end(), ranks.begin());
  }
  void attended(const Attended& seen, std::span<float> /*ranks*/) const {
    float sum = 0;
    for (const float w : seen.log_weights) sum += std::exp(w);
    sums->push_back(sum);
  }
};

TEST(OwnSelection, AttendedWeightsOfOneQueryHeadAddUpToOne) {
  for (const AttentionOptions& attention : {AttentionOptions{}, AttentionOptions{.window = 20, .sinks = 3}}) {
    for (const index_t room : {5, 30, 200}) {
      std::vector<float> sums;
      Decoder<float, FixedStride, Witness> decoder({1, {1, 1, 16}}, {.capacity = room, .attention = attention}, {9},
                                                   {&sums});
      reference::Tokens tokens({1, 1, 16}, 6);
      reference::decode(decoder, tokens.next(90));
      EXPECT_EQ(sums.size(), 80U - 1);  // the first step and every ninth are full
      for (const float sum : sums) EXPECT_NEAR(sum, 1, 1e-5F);
    }
  }
}

/// A schedule in ten lines: each KV head refreshes when its set has gone stale, sooner the less it still held.
struct Stale {
  static constexpr bool per_head = true;
  std::vector<index_t> patience = std::vector<index_t>(64, 4);

  StepKind decide(const StepInfo& info) const {
    return info.age >= patience[reference::at(info.kv_head)] ? StepKind::full : StepKind::recycled;
  }
  void observe(const Refresh& refresh) {
    index_t& steps_to_wait = patience[reference::at(refresh.kv_head)];
    steps_to_wait = refresh.retained_mass > 0.7F ? steps_to_wait + 1 : std::max(steps_to_wait / 2, index_t{1});
  }
};

TEST(OwnSchedule, LearnsFromEveryRefreshOfEachHead) {
  Decoder<float, Stale> decoder({1, shape}, {.capacity = 20});
  std::vector<index_t> patience(2, 4);
  reference::Schedule schedule{
      [&](const reference::Question& q) { return q.age >= patience[reference::at(q.kv_head)]; }, true,
      [&](index_t g, Real mass) {
        index_t& wait = patience[reference::at(g)];
        wait = mass > 0.7L ? wait + 1 : std::max(wait / 2, index_t{1});
      }};
  reference::Layer model({.shape = {4, 2, 16, 16}, .capacity = 20}, schedule);
  reference::Tokens tokens(shape, 12);
  const std::vector<Token> first = tokens.next(prompt);
  reference::prefill(decoder, first);
  model.prefill(first);
  bool apart = false;
  for (index_t step = 0; step < 80; ++step) {
    const std::vector<Token> one = tokens.next(1);
    reference::decode(decoder, one);
    model.step(one[0]);
    for (index_t g = 0; g < 2; ++g) {
      ASSERT_EQ(decoder.layer(0).last_step(g) == StepKind::full, model.head(g).last.full) << "step " << step;
      ASSERT_EQ(decoder.layer(0).recycled_positions(g), model.head(g).held) << "step " << step;
      ASSERT_EQ(decoder.layer(0).schedule().patience[reference::at(g)], patience[reference::at(g)]);
    }
    apart = apart || model.head(0).last.full != model.head(1).last.full;
  }
  EXPECT_TRUE(apart);
}

/// The scores as they are; says so, or not.
struct Plain {
  std::shared_ptr<int> asked = std::make_shared<int>(0);
  bool says_so = false;
  void rank(const Scores& scores, std::span<float> ranks) const {
    ++*asked;
    std::copy(scores.log_weights.begin(), scores.log_weights.end(), ranks.begin());
  }
  bool ranks_are_scores() const { return says_so; }
};

TEST(ASelectionThatRanksByScores, IsNotAsked) {
  const auto run = [](auto selection, const AttentionOptions& attention) {
    Decoder<float, FixedStride, decltype(selection)> decoder({1, shape}, {.capacity = capacity, .attention = attention},
                                                             {.stride = 3}, selection);
    reference::Tokens tokens(shape, 6);
    reference::prefill(decoder, tokens.next(prompt));
    std::vector<std::vector<Positions>> sets;
    for (int step = 0; step < 20; ++step) {
      reference::decode(decoder, tokens.next(1));
      sets.push_back({decoder.layer(0).recycled_positions(0), decoder.layer(0).recycled_positions(1)});
    }
    return sets;
  };
  for (const AttentionOptions& attention : {AttentionOptions{}, AttentionOptions{.window = 30, .sinks = 2}}) {
    const Plain asked, spared{.says_so = true};
    const auto sets = run(asked, attention);
    EXPECT_GT(*asked.asked, 0);
    EXPECT_EQ(run(spared, attention), sets);
    EXPECT_EQ(*spared.asked, 0);
    EXPECT_EQ(run(TopK{.pool = 1}, attention), sets);
  }
}

}  // namespace
