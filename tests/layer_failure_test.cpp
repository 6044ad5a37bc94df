// What is left after a call that failed half way: an executor or a policy that throws in the middle of a step.
#include <gtest/gtest.h>

#include <algorithm>
#include <new>
#include <recycled/recycled.hpp>
#include <stdexcept>

#include "reference/failing_executor.hpp"
#include "reference/random.hpp"

namespace {

using namespace recycled;
using reference::FailingExecutor;

constexpr Shape shape{.query_heads = 4, .kv_heads = 2, .head_dim = 16, .value_dim = 16};

struct Token {
  std::vector<float> query, key, value;
  explicit Token(reference::Random& random) : query(random.row(64)), key(random.row(32)), value(random.row(32)) {}
};

struct Fixture {
  Decoder<float, NeverFull> recycled{{1, shape}, {.capacity = 4}};
  Decoder<float, AlwaysFull> exact{{1, shape}, {}};
  reference::Random random{5};
  std::vector<float> out = std::vector<float>(64), truth = std::vector<float>(64);

  explicit Fixture(int tokens) {
    for (int i = 0; i < tokens; ++i) both(Token(random));
  }
  /// A step that fails in its `region`-th parallel region; returns its token.
  Token fail(int region) {
    Token t(random);
    FailingExecutor failing{region};
    EXPECT_THROW(recycled.step(0, t.query, t.key, t.value, out, failing), std::runtime_error);
    return t;
  }
  void both(const Token& t) {
    recycled.step(0, t.query, t.key, t.value, out);
    exact.step(0, t.query, t.key, t.value, truth);
  }
};

TEST(Failure, AnExecutorThatThrowsLeavesTheLengthAndMakesTheNextStepFull) {
  for (const int region : {1, 2}) {
    Fixture f(20);
    const Token token = f.fail(region);
    EXPECT_EQ(f.recycled.length(), 20);
    f.both(token);  // the same token again
    EXPECT_EQ(f.recycled.layer(0).last_step(0), StepKind::full);
    EXPECT_EQ(f.out, f.truth);
    f.both(Token(f.random));
    EXPECT_EQ(f.recycled.layer(0).last_step(0), StepKind::recycled);
  }
}

TEST(Failure, TokensCanBeTakenBackAfterAnExecutorThatThrew) {
  for (const int region : {1, 2}) {
    Fixture f(20);
    const Token token = f.fail(region);
    f.recycled.truncate(f.recycled.length());
    f.recycled.rollback(3);
    f.exact.rollback(3);
    f.both(token);
    EXPECT_EQ(f.out, f.truth);
  }
}

TEST(Failure, OfThePromptsChoiceIsMadeGoodByTheNextStep) {
  // Regions of a step after a prompt: the prompt's pieces and choice, then the step's own two.
  for (const int region : {1, 2, 3, 4}) {
    Decoder<float, NeverFull> failed{{1, shape}, {.capacity = 4}};
    Decoder<float, NeverFull> sound{{1, shape}, {.capacity = 4}};
    reference::Random random(6);
    const auto queries = random.row(30 * 64), keys = random.row(30 * 32), values = random.row(30 * 32);
    std::vector<float> prompt_out(30 * 64), a(64), b(64);
    failed.prefill(0, queries, keys, values, prompt_out);
    sound.prefill(0, queries, keys, values, prompt_out);
    const Token token(random);
    FailingExecutor failing{region};
    EXPECT_THROW(failed.step(0, token.query, token.key, token.value, a, failing), std::runtime_error);
    EXPECT_EQ(failed.length(), 30);
    failed.step(0, token.query, token.key, token.value, a);
    sound.step(0, token.query, token.key, token.value, b);
    if (region <= 2) {
      EXPECT_EQ(a, b);
    } else {  // the choice was made and lost again
      EXPECT_EQ(failed.layer(0).last_step(1), StepKind::full);
    }
  }
}

TEST(Failure, OfPrefillLeavesNoTokenBehind) {
  Decoder<float> decoder{{1, shape}, {.capacity = 4}};
  reference::Random random(7);
  const auto queries = random.row(30 * 64), keys = random.row(30 * 32), values = random.row(30 * 32);
  std::vector<float> out(30 * 64);
  FailingExecutor failing{1};
  EXPECT_THROW(decoder.prefill(0, queries, keys, values, out, failing), std::runtime_error);
  EXPECT_EQ(decoder.length(), 0);
  EXPECT_EQ(decoder.layer(0).length(), 0);
  decoder.prefill(0, queries, keys, values, out);
  EXPECT_EQ(decoder.length(), 30);
}

struct ThrowsOnce {
  int calls = 0;
  StepKind decide(const StepInfo& /*info*/) {
    if (++calls == 3) throw std::runtime_error("no decision");
    return StepKind::full;
  }
};

TEST(Failure, AScheduleThatThrowsLeavesTheStepUntaken) {
  Decoder<float, ThrowsOnce> decoder{{1, shape}, {.capacity = 4}};
  reference::Random random(8);
  std::vector<float> out(64);
  for (int i = 1; i <= 2; ++i) {
    const Token t(random);
    decoder.step(0, t.query, t.key, t.value, out);
  }
  const Token token(random);
  EXPECT_THROW(decoder.step(0, token.query, token.key, token.value, out), std::runtime_error);
  EXPECT_EQ(decoder.length(), 2);
  decoder.step(0, token.query, token.key, token.value, out);
  EXPECT_EQ(decoder.length(), 3);
  EXPECT_EQ(decoder.statistics()[0].heads[0].full_steps, 3U);
}

/// Fails when it is assigned to, as a copy that takes memory may.
struct Unassignable {
  inline static bool fails = false;
  Unassignable() = default;
  ~Unassignable() = default;
  Unassignable(const Unassignable&) = default;
  Unassignable(Unassignable&&) noexcept = default;
  Unassignable& operator=(Unassignable&&) noexcept = default;
  Unassignable& operator=(const Unassignable& /*other*/) {
    if (fails) throw std::bad_alloc();
    return *this;
  }
  static void rank(const Scores& scores, std::span<float> ranks) {
    std::copy(scores.log_weights.begin(), scores.log_weights.end(), ranks.begin());
  }
};

TEST(Failure, OfASelectionsAssignmentLeavesThePromptToChoose) {
  using Own = Decoder<float, NeverFull, Unassignable>;
  const std::vector<index_t> positions{1, 2, 3, 4};
  for (const bool by_rollback : {true, false}) {
    Own failed{{1, shape}, {.capacity = 4}}, sound{{1, shape}, {.capacity = 4}};
    reference::Random random(9);
    const auto queries = random.row(30 * 64), keys = random.row(30 * 32), values = random.row(30 * 32);
    std::vector<float> prompt_out(30 * 64), a(64), b(64);
    for (Own* own : {&failed, &sound}) own->prefill(0, queries, keys, values, prompt_out);
    Unassignable::fails = true;
    const auto call = [&] { by_rollback ? failed.rollback(1) : failed.choose_positions(0, positions); };
    EXPECT_THROW(call(), std::bad_alloc);
    Unassignable::fails = false;
    EXPECT_EQ(failed.length(), 30);
    for (int i = 0; i < 3; ++i) {
      const Token token(random);
      failed.step(0, token.query, token.key, token.value, a);
      sound.step(0, token.query, token.key, token.value, b);
      EXPECT_EQ(a, b);
      EXPECT_EQ(failed.layer(0).recycled_positions(1), sound.layer(0).recycled_positions(1));
    }
  }
}

TEST(Failure, ADecoderThatWasMovedFromHoldsNothing) {
  Decoder<float> decoder{{1, shape}, {.capacity = 4}};
  const Decoder<float> moved = std::move(decoder);
  EXPECT_EQ(decoder.length(), 0);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(moved.layers(), 1);
}

TEST(Failure, WhileHeadsAttendByASketchMakesTheNextStepFull) {
  constexpr Shape many{5, 5, 16};
  reference::Random random(5);
  for (const int region : {1, 2}) {
    Decoder<float, FixedStride> decoder({1, many}, {.capacity = 8, .sketch = {.coordinates = 8}}, {.stride = 1});
    const auto step = [&](auto&& executor) {
      std::vector<float> out(80);
      decoder.step(0, random.row(80), random.row(80), random.row(80), out, executor);
    };
    for (int i = 0; i < 60; ++i) step(Serial{});
    EXPECT_EQ(decoder.layer(0).last_step(0), StepKind::sketched);
    EXPECT_THROW(step(FailingExecutor{region}), std::runtime_error);
    EXPECT_EQ(decoder.length(), 60);
    step(Serial{});
    for (index_t g = 0; g < 5; ++g) EXPECT_EQ(decoder.layer(0).last_step(g), StepKind::full);
  }
}

}  // namespace
