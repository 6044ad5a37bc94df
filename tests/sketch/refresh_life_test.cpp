// The life of a layer that keeps a sketch: rollback, forks, clear(), threads, and steps cut short.
#include <gtest/gtest.h>

#include <bit>
#include <recycled/recycled.hpp>
#include <stdexcept>
#include <vector>

#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::Bits, reference::Token;

constexpr Shape shape{6, 2, 40, 24};
constexpr LayerOptions sketched{.capacity = 20, .sketch = {.coordinates = 16}};

TEST(SketchedLife, RollsBack) {
  Decoder<half, FixedStride> decoder({1, shape}, sketched, {.stride = 4});
  reference::Tokens tokens(shape, 10);
  Decoder<half, AlwaysFull> exact({1, shape}, {});
  const std::vector<Token> prompt = tokens.next(320);  // far from where new axes are looked for
  const std::vector<Token> before = tokens.next(20);
  reference::prefill(decoder, prompt);
  reference::prefill(exact, prompt);
  reference::decode(decoder, before);
  reference::decode(exact, before);
  for (const int rejected : {1, 2, 3, 9, 30}) {
    SCOPED_TRACE(rejected);
    Decoder<half, FixedStride> back = decoder.fork(), other = decoder.fork();
    const std::vector<Token> next = tokens.next(1), rest = tokens.next(60);
    Decoder<half, AlwaysFull> truth = exact.fork();
    const Bits exact_after = reference::decode(truth, next);
    Bits after[2];
    for (auto* one : {&back, &other}) {
      reference::decode(*one, tokens.next(rejected));
      one->rollback(rejected);
      EXPECT_EQ(reference::decode(*one, next), exact_after);
      EXPECT_EQ(one->layer(0).last_step(0), StepKind::full) << "a token that is gone had cost another its place";
      after[one == &other ? 1 : 0] = reference::decode(*one, rest);
    }
    // What was taken back leaves no trace but the order in which rows stand.
    for (std::size_t i = 0; i < after[0].size(); ++i) {
      ASSERT_NEAR(std::bit_cast<float>(after[0][i]), std::bit_cast<float>(after[1][i]), 1e-5F) << i;
    }
    for (index_t g = 0; g < 2; ++g) {
      EXPECT_EQ(back.layer(0).recycled_positions(g), other.layer(0).recycled_positions(g));
    }
    EXPECT_GT(back.statistics()[0].heads[0].sketched_steps, 10U);
  }
}

TEST(SketchedLife, ForksGoTheirOwnWays) {
  Decoder<half, SelfCalibrating> decoder({1, shape}, sketched);
  reference::Tokens tokens(shape, 11);
  reference::prefill(decoder, tokens.next(160));
  reference::decode(decoder, tokens.next(20));
  const std::vector<Token> one = tokens.next(40), other = tokens.next(40);
  Decoder<half, SelfCalibrating> fork = decoder.fork(), again = decoder.fork();
  const Bits expected = reference::decode(again, one);
  reference::decode(fork, other);
  EXPECT_EQ(reference::decode(decoder, one), expected);
}

TEST(SketchedLife, AfterClearIsAsNew) {
  Decoder<half, SelfCalibrating> decoder({1, shape}, sketched), fresh({1, shape}, sketched);
  reference::Tokens tokens(shape, 12);
  reference::prefill(decoder, tokens.next(300));
  reference::decode(decoder, tokens.next(100));
  decoder.clear();
  const std::vector<Token> prompt = tokens.next(90), rest = tokens.next(150);
  EXPECT_EQ(reference::prefill(decoder, prompt), reference::prefill(fresh, prompt));
  EXPECT_EQ(reference::decode(decoder, rest), reference::decode(fresh, rest));
  EXPECT_EQ(decoder.statistics(), fresh.statistics());
}

TEST(SketchedLife, HasTheSameBitsOnAnyNumberOfThreads) {
  ThreadPool three(3);
  Decoder<bfloat16, SelfCalibrating> one({2, shape}, sketched), other({2, shape}, sketched);
  reference::Tokens tokens(shape, 13);
  const std::vector<Token> prompt = tokens.next(130), rest = tokens.next(100);
  reference::prefill(one, prompt);
  reference::prefill(other, prompt, three);
  EXPECT_EQ(reference::decode(one, rest), reference::decode(other, rest, three));
  EXPECT_GT(one.statistics()[1].heads[0].sketched_steps, 5U);
}

#if defined(RECYCLED_HAS_EXCEPTIONS)
struct Failing {
  int left;  ///< parallel regions, the last of which throws
  template <class F>
  void operator()(index_t tasks, const F& task) {
    if (--left == 0) throw std::runtime_error("cancelled");
    for (index_t i = 0; i < tasks; ++i) task(i);
  }
};

TEST(SketchedLife, SurvivesAnExecutorThatThrows) {
  for (int region = 1; region <= 6; ++region) {
    SCOPED_TRACE(region);
    Decoder<float, FixedStride> failed({1, shape}, sketched, {.stride = 2});
    Decoder<float, AlwaysFull> exact({1, shape}, {});
    reference::Tokens tokens(shape, 16);
    const std::vector<Token> prompt = tokens.next(80);
    reference::prefill(failed, prompt);
    reference::prefill(exact, prompt);
    std::vector<float> out(6 * 24);
    bool threw = false;
    for (int step = 0; step < 6 && !threw; ++step) {
      const Token token = tokens.next();
      Failing failing{step == 0 ? region : region - 3};  // regions of the prompt's choice come first
      if (failing.left < 1) failing.left = 100;
      try {
        failed.step(0, token.query, token.key, token.value, out, failing);
        reference::decode(exact, {token});
      } catch (const std::runtime_error&) {
        threw = true;
      }
    }
    ASSERT_TRUE(threw);
    EXPECT_EQ(failed.length(), exact.length());
    const std::vector<Token> next = tokens.next(1);
    const Bits again = reference::decode(failed, next), truth = reference::decode(exact, next);
    if (failed.layer(0).last_step(0) == StepKind::full) {
      EXPECT_EQ(again, truth);
    }
    reference::decode(failed, tokens.next(20));
    EXPECT_GT(failed.statistics()[0].heads[0].sketched_steps, 5U);
  }
}
#endif

}  // namespace
