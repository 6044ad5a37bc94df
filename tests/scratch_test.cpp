// Layers that share a scratch compute what they would alone, whatever others left in it; copies share nothing.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <memory>

#include "reference/feed.hpp"
#include "reference/messages.hpp"

namespace {

using namespace recycled;
using reference::Bits;
using reference::Token;
using reference::Tokens;

constexpr Shape narrow{6, 2, 40};
constexpr Shape wide{4, 4, 96, 64};
constexpr index_t prompt = 100;
constexpr index_t steps = 60;

/// Ranks that change at recycled steps, too: their logits are in the scratch.
struct Growing {
  static void rank(const Scores& scores, std::span<float> ranks) {
    std::copy(scores.log_weights.begin(), scores.log_weights.end(), ranks.begin());
  }
  static void attended(const Attended& seen, std::span<float> ranks) {
    for (std::size_t s = 0; s < ranks.size(); ++s) ranks[s] = std::max(ranks[s], seen.log_weights[s]);
  }
};

/// The prompt (-1) or step i of two decoders fed the same tokens, one of which shares `scratch`: they agree to the bit.
using Pair = std::function<void(index_t i, ThreadPool& pool)>;

template <class T, class Policy, class Keep = TopK>
Pair pair(const std::shared_ptr<Scratch>& scratch, const Shape& shape, const LayerOptions& options,
          const Policy& policy, const Keep& keep = {}) {
  struct State {
    std::vector<Token> tokens;
    Decoder<T, Policy, Keep> alone, sharing;
  };
  auto state = std::make_shared<State>(State{
      Tokens(shape, 3).next(prompt + steps), {{2, shape}, options, policy, keep}, {{2, shape}, options, policy, keep}});
  state->sharing.share(scratch);
  return [state](index_t i, ThreadPool& pool) {
    if (i < 0) {
      const std::vector<Token> first(state->tokens.begin(), state->tokens.begin() + prompt);
      EXPECT_EQ(reference::prefill(state->sharing, first, pool), reference::prefill(state->alone, first));
    } else {
      const std::vector<Token> one{state->tokens[reference::at(prompt + i)]};
      EXPECT_EQ(reference::decode(state->sharing, one, pool), reference::decode(state->alone, one)) << i;
      EXPECT_EQ(state->sharing.statistics(), state->alone.statistics()) << i;
    }
  };
}

/// Every kind of layer: types, shapes, schedules, a sliding window, a selection that looks on.
std::vector<Pair> pairs(const std::shared_ptr<Scratch>& scratch) {
  return {
      pair<half>(scratch, narrow, {.capacity = 20}, QuerySimilarity{4, 0.9F}, TopK{.pool = 3, .observation_window = 5}),
      pair<q8_0>(scratch, wide, {.capacity = 31}, FixedStride{3}),
      pair<float>(scratch, {8, 1, 24}, {.capacity = 5}, AlwaysFull{}),
      pair<bfloat16>(scratch, narrow, {.capacity = 9, .attention = {.window = 50, .sinks = 4}}, FixedStride{5}),
      pair<float>(scratch, narrow, {.capacity = 90}, NeverFull{}, TopK{.pool = 1, .observation_window = 5}),
      pair<float>(scratch, narrow, {.capacity = 12}, NeverFull{}, Growing{})};
}

/// All pairs in turn; before every turn somebody else works in the scratch.
template <class F>
void expect_no_difference(const std::shared_ptr<Scratch>& scratch, int threads, const F& disturb) {
  ThreadPool pool(threads);
  const std::vector<Pair> all = pairs(scratch);
  for (index_t i = -1; i < steps; ++i) {
    for (const Pair& pair : all) {
      disturb();
      pair(i, pool);
    }
  }
}

TEST(Scratch, SharedByUnlikeLayersChangesNoBit) {
  for (const int threads : {1, 3}) {
    expect_no_difference(std::make_shared<Scratch>(), threads, [] {});
  }
}

TEST(Scratch, MayHoldAnything) {
  const auto scratch = std::make_shared<Scratch>();
  constexpr Shape large{12, 4, 128};
  Decoder<float, FixedStride> other({1, large}, {.capacity = 40}, {2});
  other.share(scratch);
  std::vector<Token> tokens = Tokens(large, 4).next(400);
  for (Token& token : tokens) {
    std::fill(token.query.begin(), token.query.end(), std::numeric_limits<float>::quiet_NaN());
  }
  reference::decode(other, tokens);
  expect_no_difference(scratch, 2, [&] { reference::decode(other, {tokens.front()}); });
}

#if defined(RECYCLED_HAS_EXCEPTIONS)
TEST(Scratch, MayBeLeftInTheMiddleOfAStep) {
  const auto scratch = std::make_shared<Scratch>();
  Decoder<half, FixedStride> other({1, wide}, {.capacity = 12}, {2});
  other.share(scratch);
  Tokens tokens(wide, 5);
  reference::decode(other, tokens.next(200));
  int turn = 0;
  expect_no_difference(scratch, 1, [&] {
    int regions = turn++ % 2;  // attention, or what follows it
    const auto failing = [&](index_t n, const auto& f) {
      const bool fails = regions-- == 0;
      for (index_t i = 0; i < (fails ? n / 2 : n); ++i) f(i);
      if (fails) throw std::runtime_error("cancelled");
    };
    EXPECT_THROW(reference::decode(other, tokens.next(1), failing), std::runtime_error);
    other.truncate(200);
    if (turn % 3 == 0) {
      reference::decode(other, tokens.next(1));
      other.truncate(200);
    }
  });
}
#endif

TEST(Scratch, IsNotSharedByACopy) {
  const auto scratch = std::make_shared<Scratch>();
  Decoder<half> original({2, narrow}, {.capacity = 20});
  original.share(scratch);
  Tokens tokens(narrow, 1);
  reference::prefill(original, tokens.next(prompt));
  const long users = scratch.use_count();
  EXPECT_EQ(users, 1 + original.layers());
  Decoder fork = original.fork();
  const LayerAttention layer = original.layer(0);
  EXPECT_EQ(scratch.use_count(), users);
  EXPECT_NE(layer.scratch(), nullptr);
  EXPECT_EQ(fork.layer(0).scratch(), fork.layer(1).scratch());
  const std::vector<Token> next = tokens.next(1);
  EXPECT_EQ(reference::decode(fork, next), reference::decode(original, next));
}

TEST(Scratch, StaysWithWhatIsAssignedTo) {
  const auto scratch = std::make_shared<Scratch>();
  LayerAttention<float> other(narrow, {.capacity = 20});
  LayerAttention<float> layer(wide, {.capacity = 10});
  layer.share(scratch);
  const auto others = other.scratch();
  layer = other;
  EXPECT_EQ(layer.scratch(), scratch);
  EXPECT_EQ(other.scratch(), others);
  EXPECT_EQ(layer.shape().head_dim, narrow.head_dim);
  const LayerAttention<float>& same = layer;
  layer = same;
  EXPECT_EQ(layer.scratch(), scratch);

  Decoder<float> sharing({2, narrow}, {.capacity = 20});
  sharing.share(scratch);
  const Decoder<float> source({3, wide}, {.capacity = 20});
  sharing = source;
  EXPECT_EQ(sharing.layer(2).scratch(), scratch);
  const Decoder<float>& itself = sharing;
  sharing = itself;
  EXPECT_EQ(sharing.layer(2).scratch(), scratch);
  reference::decode(sharing, Tokens(wide, 1).next(2));
}

TEST(Scratch, MovesWithItsLayer) {
  const auto scratch = std::make_shared<Scratch>();
  LayerAttention<float> layer(narrow, {.capacity = 20});
  layer.share(scratch);
  LayerAttention<float> moved = std::move(layer);
  EXPECT_EQ(moved.scratch(), scratch);
  layer = moved;  // NOLINT(bugprone-use-after-move): what was moved from may be assigned to
  EXPECT_EQ(scratch.use_count(), 2);
  EXPECT_NE(layer.scratch(), nullptr);
}

TEST(Scratch, OfNobodyIsRefused) {
  LayerAttention<float> layer(narrow, {.capacity = 20});
  EXPECT_EQ(message_of([&] { layer.share(nullptr); }), "recycled: scratch = nullptr, expected a scratch");
  Decoder<float> decoder({2, narrow}, {.capacity = 20});
  EXPECT_EQ(message_of([&] { decoder.share(nullptr); }), "recycled: scratch = nullptr, expected a scratch");
  reference::decode(decoder, Tokens(narrow, 1).next(2));
}

}  // namespace
