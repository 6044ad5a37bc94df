// Selections and schedules of a user's own: the paper's baselines in a few lines each, against naive versions.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::Positions;
using reference::Real;
using reference::Token;

/// Longformer: the most recent positions.
struct SlidingWindow {
  void rank(const Scores& /*scores*/, std::span<float> ranks) const {
    for (std::size_t j = 0; j < ranks.size(); ++j) ranks[j] = static_cast<float>(j);
  }
};

/// StreamingLLM: the first positions for good, and the most recent.
struct Streaming {
  std::size_t sinks = 4;
  void rank(const Scores& /*scores*/, std::span<float> ranks) const {
    for (std::size_t j = 0; j < ranks.size(); ++j) {
      ranks[j] = j < sinks ? std::numeric_limits<float>::infinity() : static_cast<float>(j);
    }
  }
};

/// H2O: half of the set recent, the other half by the weight that each position has gathered since it was seen first.
struct HeavyHitters {
  std::size_t recent = 0;
  std::map<index_t, float> gathered = {};

  void rank(const Scores& scores, std::span<float> ranks) {
    for (std::size_t j = 0; j < ranks.size(); ++j) {
      ranks[j] = gathered[static_cast<index_t>(j)] = std::exp(scores.log_weights[j]);
      if (j + recent >= ranks.size()) ranks[j] = newcomer_rank;
    }
  }
  void attended(const Attended& seen, std::span<float> ranks) {
    const index_t newest = *std::max_element(seen.positions.begin(), seen.positions.end());
    for (std::size_t s = 0; s < ranks.size(); ++s) {
      float& sum = gathered[seen.positions[s]];
      sum += std::exp(seen.log_weights[s]);
      ranks[s] = seen.positions[s] + static_cast<index_t>(recent) > newest ? newcomer_rank : sum;
    }
  }
};

constexpr Shape shape{4, 2, 16};
constexpr index_t prompt = 60;
constexpr index_t capacity = 12;
constexpr index_t steps = 50;

template <class Keep, class Expected>
void expect_sets(const Keep& selection, const Expected& expected) {
  Decoder<float, NeverFull, Keep> decoder({1, shape}, {.capacity = capacity}, {}, selection);
  reference::Tokens tokens(shape, 6);
  reference::prefill(decoder, tokens.next(prompt));
  for (index_t length = prompt + 1; length <= prompt + steps; ++length) {
    reference::decode(decoder, tokens.next(1));
    for (index_t g = 0; g < 2; ++g) EXPECT_EQ(decoder.layer(0).recycled_positions(g), expected(length));
  }
  EXPECT_EQ(decoder.statistics()[0].total().full_steps, 0U);
}

Positions last(index_t count, index_t length) {
  Positions result;
  for (index_t j = length - count; j < length; ++j) result.push_back(j);
  return result;
}

TEST(OwnSelection, SlidingWindowKeepsTheMostRecent) {
  expect_sets(SlidingWindow{}, [](index_t length) { return last(capacity, length); });
}

TEST(OwnSelection, StreamingKeepsItsSinksForGood) {
  expect_sets(Streaming{4}, [](index_t length) {
    Positions expected{0, 1, 2, 3};
    for (const index_t p : last(capacity - 4, length)) expected.push_back(p);
    return expected;
  });
}

TEST(OwnSelection, StreamingSinksOutliveFullSteps) {
  Decoder<float, FixedStride, Streaming> decoder({1, shape}, {.capacity = 3}, {7}, Streaming{3});
  reference::Tokens tokens(shape, 6);
  reference::prefill(decoder, tokens.next(prompt));
  for (index_t step = 0; step < 30; ++step) {
    reference::decode(decoder, tokens.next(1));
    // No place is left for anything else: the new token is attended to, and leaves.
    EXPECT_EQ(decoder.layer(0).recycled_positions(1), (Positions{0, 1, 2}));
  }
}

/// H2O as one writes it down: attention over the kept positions, weights added up, recent half, heaviest of the others.
class NaiveHeavyHitters {
 public:
  NaiveHeavyHitters(const std::vector<Token>& tokens, index_t g) : g_(g) {
    for (const Token& token : tokens) append(token);
    kept_ = last(length(), length());
    gather(tokens.back());
    evict();
  }
  /// False if two weights are too close for float arithmetic to tell apart.
  bool step(const Token& token) {
    append(token);
    kept_.push_back(length() - 1);
    gather(token);
    return evict();
  }
  const Positions& kept() const { return kept_; }

 private:
  index_t length() const { return static_cast<index_t>(keys_.size()); }
  void append(const Token& token) { keys_.push_back({token.key.data() + g_ * 16, token.key.data() + (g_ + 1) * 16}); }
  void gather(const Token& token) {
    std::vector<Real> largest(kept_.size(), 0);
    for (index_t h = 2 * g_; h < 2 * g_ + 2; ++h) {
      const auto row = reference::attend({token.query.data() + h * 16, 16}, keys_, keys_, kept_);
      for (std::size_t i = 0; i < kept_.size(); ++i) largest[i] = std::max(largest[i], row.weights[i]);
    }
    for (std::size_t i = 0; i < kept_.size(); ++i) gathered_[kept_[i]] += largest[i];
  }
  bool evict() {
    Real least = 0;
    while (static_cast<index_t>(kept_.size()) > capacity) {
      const auto lightest = std::min_element(kept_.begin(), kept_.end() - capacity / 2,
                                             [&](index_t a, index_t b) { return gathered_[a] < gathered_[b]; });
      least = gathered_[*lightest];
      kept_.erase(lightest);
    }
    return std::none_of(kept_.begin(), kept_.end() - capacity / 2,
                        [&](index_t p) { return gathered_[p] - least < 1e-6L; });
  }

  index_t g_;
  reference::Rows keys_;
  std::map<index_t, Real> gathered_;
  Positions kept_;
};

TEST(OwnSelection, HeavyHittersGatherWhatRecycledStepsAttended) {
  for (const index_t g : {0, 1}) {
    Decoder<float, NeverFull, HeavyHitters> decoder({1, shape}, {.capacity = capacity}, {}, {capacity / 2});
    reference::Tokens tokens(shape, 6);
    const std::vector<Token> first = tokens.next(prompt);
    reference::prefill(decoder, first);
    NaiveHeavyHitters naive(first, g);
    int different_from_window = 0;
    for (index_t step = 0; step < steps; ++step) {
      const std::vector<Token> one = tokens.next(1);
      reference::decode(decoder, one);
      if (!naive.step(one[0])) GTEST_SKIP() << "two weights are equal to float precision";
      ASSERT_EQ(decoder.layer(0).recycled_positions(g), naive.kept()) << "step " << step;
      different_from_window += naive.kept() == last(capacity, prompt + step + 1) ? 0 : 1;
    }
    EXPECT_EQ(different_from_window, steps);
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
