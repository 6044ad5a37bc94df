// The life of a layer whose refreshes read less than a full step, by a sketch or by the keys: rollback, forks, clear(),
// threads, steps cut short, and where it takes full steps all the same.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <recycled/recycled.hpp>
#include <stdexcept>
#include <vector>

#include "reference/feed.hpp"
#if defined(RECYCLED_HAS_EXCEPTIONS)
#include "reference/failing_executor.hpp"
#endif

namespace {

using namespace recycled;
using reference::Bits, reference::Token;

constexpr Shape shape{6, 2, 40, 24};

class RefreshLife : public testing::TestWithParam<bool> {
 protected:
  const SketchOptions sketch = GetParam() ? SketchOptions{.keys = true} : SketchOptions{.coordinates = 16};
  const LayerOptions options{.capacity = 20, .sketch = sketch};
};
INSTANTIATE_TEST_SUITE_P(By, RefreshLife, testing::Values(false, true),
                         [](const auto& by_keys) { return by_keys.param ? "Keys" : "Sketch"; });

TEST_P(RefreshLife, WithRoomForAllIsExact) {
  LayerOptions roomy = options;
  roomy.capacity = 200;
  Decoder<half, SelfCalibrating> decoder({1, shape}, roomy);
  Decoder<half, AlwaysFull> exact({1, shape}, {});
  reference::Tokens tokens(shape, 8);
  const std::vector<Token> prompt = tokens.next(150), rest = tokens.next(50);
  reference::prefill(decoder, prompt);
  reference::prefill(exact, prompt);
  const Bits exactly = reference::decode(exact, rest);
  EXPECT_EQ(reference::decode(decoder, rest), exactly);
  // The last one that there is room for, at a refresh.
  Decoder<half, FixedStride> always({1, shape}, roomy, {.stride = 1});
  reference::prefill(always, prompt);
  EXPECT_EQ(reference::decode(always, rest), exactly);
  EXPECT_EQ(always.layer(0).last_step(0), StepKind::full);
}

TEST_P(RefreshLife, InASlidingWindowTakesFullSteps) {
  LayerOptions windowed = options;
  windowed.attention = {.window = 60, .sinks = 4};
  Decoder<float, FixedStride> with({1, shape}, windowed, {.stride = 3});
  windowed.sketch = {};
  Decoder<float, FixedStride> without({1, shape}, windowed, {.stride = 3});
  reference::Tokens tokens(shape, 9);
  const std::vector<Token> all = tokens.next(150);
  EXPECT_EQ(reference::decode(with, all), reference::decode(without, all));
  EXPECT_EQ(with.statistics(), without.statistics());
}

TEST_P(RefreshLife, AQueryThatIsNoNumberMakesTheNextStepFull) {
  Decoder<float, FixedStride> decoder({1, shape}, options, {.stride = 2});
  reference::Tokens tokens(shape, 14);
  reference::prefill(decoder, tokens.next(101));
  reference::decode(decoder, tokens.next(1));
  Token odd = tokens.next();
  odd.query[7] = std::nanf("");  // KV head 0
  const HeadStatistics before = decoder.layer(0).statistics().heads[0];
  reference::decode(decoder, {odd});
  const HeadStatistics after = decoder.layer(0).statistics().heads[0];
  const std::uint64_t rows = after.bytes_full - before.bytes_full, keys = sketch.keys ? rows * 40 / 64 : 0;
  EXPECT_EQ(after.bytes_read - before.bytes_read, rows + keys) << "it has looked at all keys before it knew";
  EXPECT_EQ(decoder.layer(0).last_step(0), StepKind::full) << "the safe way, and no choice";
  EXPECT_EQ(decoder.layer(0).last_step(1), StepKind::sketched);
  const Bits next = reference::decode(decoder, tokens.next(1));
  EXPECT_EQ(decoder.layer(0).last_step(0), StepKind::full);
  EXPECT_EQ(decoder.layer(0).last_step(1), StepKind::recycled);
  for (const std::uint32_t word : next) EXPECT_TRUE(std::isfinite(std::bit_cast<float>(word)));
}

TEST_P(RefreshLife, FullStepsAskTheSketchIfThereIsOne) {
  LayerOptions often = options;
  often.sketch.full_every = 4;
  Decoder<float, FixedStride> decoder({1, shape}, often, {.stride = 2});
  reference::Tokens tokens(shape, 15);
  reference::prefill(decoder, tokens.next(101));
  reference::decode(decoder, tokens.next(40));
  const HeadStatistics before = decoder.layer(0).statistics().heads[1];
  EXPECT_EQ(before.full_steps, sketch.keys ? 0U : 5U);
  EXPECT_EQ(before.checked, before.full_steps) << "no sketched step asks";
  decoder.rollback(1);
  reference::decode(decoder, tokens.next(1));
  const HeadStatistics after = decoder.layer(0).statistics().heads[1];
  EXPECT_EQ(after.full_steps, before.full_steps + 1);
  EXPECT_EQ(after.checked, sketch.keys ? 0U : 6U);
}

TEST_P(RefreshLife, RollsBack) {
  Decoder<half, FixedStride> decoder({1, shape}, options, {.stride = 4});
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

/// It need not be made again: of what the state holds little more is gone than the set's evicted rows.
TEST_P(RefreshLife, RollingBackKeepsTheSketchOfWhatIsLeft) {
  Decoder<half, FixedStride> decoder({1, shape}, options, {.stride = 4});
  const auto size = [&] {
    std::ostringstream state;
    decoder.save(state);
    return state.str().size();
  };
  reference::Tokens tokens(shape, 15);
  reference::prefill(decoder, tokens.next(320));
  reference::decode(decoder, tokens.next(1));
  const std::size_t before = size();
  reference::decode(decoder, tokens.next(9));
  decoder.rollback(9);
  EXPECT_GT(size(), before - before / 20);
  EXPECT_LE(size(), before);
}

TEST_P(RefreshLife, ForksGoTheirOwnWays) {
  Decoder<half, SelfCalibrating> decoder({1, shape}, options);
  reference::Tokens tokens(shape, 11);
  reference::prefill(decoder, tokens.next(160));
  reference::decode(decoder, tokens.next(20));
  const std::vector<Token> one = tokens.next(40), other = tokens.next(40);
  Decoder<half, SelfCalibrating> fork = decoder.fork(), again = decoder.fork();
  const Bits expected = reference::decode(again, one);
  reference::decode(fork, other);
  EXPECT_EQ(reference::decode(decoder, one), expected);
}

TEST_P(RefreshLife, AfterClearIsAsNew) {
  Decoder<half, SelfCalibrating> decoder({1, shape}, options), fresh({1, shape}, options);
  reference::Tokens tokens(shape, 12);
  reference::prefill(decoder, tokens.next(300));
  reference::decode(decoder, tokens.next(100));
  decoder.clear();
  const std::vector<Token> prompt = tokens.next(90), rest = tokens.next(150);
  EXPECT_EQ(reference::prefill(decoder, prompt), reference::prefill(fresh, prompt));
  EXPECT_EQ(reference::decode(decoder, rest), reference::decode(fresh, rest));
  EXPECT_EQ(decoder.statistics(), fresh.statistics());
}

TEST_P(RefreshLife, HasTheSameBitsOnAnyNumberOfThreads) {
  for (const Shape& heads : {shape, Shape{10, 5, 40, 24}, Shape{4, 1, 64, 64}}) {
    ThreadPool three(3);
    Decoder<bfloat16, SelfCalibrating> one({2, heads}, options), other({2, heads}, options);
    reference::Tokens tokens(heads, 13);
    const std::vector<Token> prompt = tokens.next(330), rest = tokens.next(100);
    reference::prefill(one, prompt);
    reference::prefill(other, prompt, three);
    EXPECT_EQ(reference::decode(one, rest), reference::decode(other, rest, three));
    EXPECT_EQ(one.statistics(), other.statistics());
    EXPECT_GT(one.statistics()[1].heads[0].sketched_steps, 5U);
  }
}

#if defined(RECYCLED_HAS_EXCEPTIONS)
/// Whether step `which` behind a prompt has a parallel region `region` to be cut short in. If so, goes on behind it.
bool goes_on_after(const LayerOptions& options, int which, int region) {
  Decoder<float, FixedStride> decoder({1, shape}, options, {.stride = 2});
  Decoder<float, AlwaysFull> exact({1, shape}, {});
  reference::Tokens tokens(shape, 16);
  const std::vector<Token> prompt = tokens.next(80), before = tokens.next(which), next = tokens.next(1);
  reference::prefill(decoder, prompt);
  reference::prefill(exact, prompt);
  reference::decode(decoder, before);
  reference::decode(exact, before);
  const Token cut = tokens.next();
  std::vector<float> out(6 * 24);
  try {
    decoder.step(0, cut.query, cut.key, cut.value, out, reference::FailingExecutor{region});
    return false;
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(decoder.length(), exact.length());
  const Bits again = reference::decode(decoder, next), truth = reference::decode(exact, next);
  const bool refresh_by_keys = options.sketch.keys && which == 1;
  if (refresh_by_keys ||
      (decoder.layer(0).last_step(0) == StepKind::full && decoder.layer(0).last_step(1) == StepKind::full)) {
    EXPECT_EQ(again, truth);
  }
  reference::decode(decoder, tokens.next(20));
  EXPECT_GT(decoder.statistics()[0].heads[0].sketched_steps, 5U);
  return true;
}

TEST_P(RefreshLife, SurvivesAnExecutorThatThrows) {
  int times = 0;
  for (int which = 0; which < 4; ++which) {
    for (int region = 1; goes_on_after(options, which, region); ++region) ++times;
  }
  EXPECT_GE(times, 8);
}
#endif

}  // namespace
