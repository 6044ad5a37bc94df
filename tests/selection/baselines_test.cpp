// The paper's baselines that go by scores: what they keep, step by step, against naive versions; what all refuse.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "reference/lockstep.hpp"
#include "reference/messages.hpp"
#include "selection/eviction.hpp"

namespace {

using namespace recycled;
using reference::at, reference::Eviction, reference::Positions, reference::Real, reference::Token;

constexpr index_t steps = 60;

TEST(SnapKv, IsTopKThatIsNeverRefreshed) {
  reference::Lockstep<float, NeverFull> both(
      {.shape = {6, 2, 19, 5}, .capacity = 12, .pool = 7, .observation_window = 16}, {}, reference::never_full());
  both.prefill(60);
  both.step(steps);
  EXPECT_EQ(both.decoder().statistics()[0].total().full_steps, 0U);
}

/// What becomes of a prompt and the tokens behind it.
struct Case {
  Shape shape{4, 2, 16};
  index_t prompt = 60;
  index_t capacity = 12;
  index_t recent = 6;
  index_t window = 1000;
  index_t stride = 1000;      // of full steps
  std::set<index_t> backs{};  // at these steps four tokens are taken back
};

const Case cases[] = {
    {},
    {.shape = {6, 2, 37, 21}},
    {.shape = {3, 3, 5}},
    {.shape = {5, 1, 33}, .recent = 3},
    {.window = 1},
    {.window = 9},
    {.capacity = 60},
    {.capacity = 90},   // room for a while
    {.capacity = 500},  // room for all
    {.prompt = 5},
    {.capacity = 12, .recent = 12},  // no place but for recent ones
    {.capacity = 12, .recent = 99},
    {.capacity = 12, .recent = 99, .stride = 7},
    {.stride = 7},
    {.window = 1, .stride = 7},
    {.shape = {6, 2, 37, 21}, .window = 9, .stride = 11, .backs = {20, 21, 40}},
    {.backs = {10, 30, 31}},
    {.prompt = 58, .capacity = 80, .backs = {10, 30}},  // the first before anything had to leave
};

/// Fails unless the sets of `selection` and of naive eviction agree at every step. `share` as in Eviction.
template <class Keep>
void expect_naive_sets(const Case& c, const Keep& selection, const Eviction::Share& share, bool averaged) {
  Decoder<float, FixedStride, Keep> decoder({1, c.shape}, {.capacity = c.capacity}, {c.stride}, selection);
  reference::Tokens tokens(c.shape, 6);
  const std::vector<Token> prompt = tokens.next(c.prompt);
  std::vector<Eviction> naive;
  for (index_t g = 0; g < c.shape.kv_heads; ++g) {
    naive.emplace_back(c.shape, g, c.capacity, c.recent, share);
    naive.back().prefill(prompt, c.window, averaged);
  }
  reference::prefill(decoder, prompt);
  index_t step = 0;
  for (index_t i = 0; i < steps; ++i) {
    if (c.backs.contains(i)) {
      decoder.rollback(4);
      step -= 4;
      for (Eviction& head : naive) head.truncate(decoder.length());
    }
    ++step;
    const std::vector<Token> one = tokens.next(1);
    reference::decode(decoder, one);
    for (index_t g = 0; g < c.shape.kv_heads; ++g) {
      Eviction& head = naive[at(g)];
      head.step(one[0], step % c.stride == 0);
      ASSERT_EQ(decoder.layer(0).recycled_positions(g), head.kept()) << "step " << i << ", head " << g;
      ASSERT_GT(head.gap(), 1e-5L) << "too close for float arithmetic: take other tokens";
    }
  }
}

TEST(HeavyHitters, KeepWhatGatheredTheMost) {
  const auto weights = [](index_t, const Positions&, const std::vector<Real>& w) { return w; };
  for (const Case& c : cases) {
    SCOPED_TRACE(&c - cases);
    expect_naive_sets(c, HeavyHitters{.recent = c.recent, .observation_window = c.window}, weights, false);
  }
}

/// Keyformer's score, in long double; the noise is the library's.
Eviction::Share keyformer_scores(index_t prompt, index_t tokens, std::uint64_t seed) {
  return [=](index_t query, const Positions& seen, const std::vector<Real>& weights) {
    const index_t generated = query < prompt ? 0 : std::min(query - prompt + 1, tokens);
    const Real temperature = 1 + static_cast<Real>(generated) / static_cast<Real>(tokens);
    std::vector<Real> scores;
    Real sum = 0;
    for (std::size_t i = 0; i < seen.size(); ++i) {
      const Real noise = detail::gumbel(seed, query, seen[i]);
      scores.push_back(std::exp((std::log(weights[i]) + noise) / temperature));
      sum += scores.back();
    }
    for (Real& score : scores) score /= sum;
    return scores;
  };
}

TEST(Keyformer, KeepsWhatScoredTheMost) {
  for (const Case& c : cases) {
    SCOPED_TRACE(&c - cases);
    expect_naive_sets(c, Keyformer{.recent = c.recent, .observation_window = c.window, .tokens = 40, .seed = 7},
                      keyformer_scores(c.prompt, 40, 7), true);
  }
}

/// Weights that are no numbers gather nothing, and rank as what has gathered nothing.
template <class Keep>
void expect_sane(Keep keep) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), infinite = std::numeric_limits<float>::infinity();
  std::vector<float> ranks(7), expected(7);
  const std::vector<float> with{-1, nan, -2, -infinite, infinite, -1, -3};
  const std::vector<float> nothing(7, nan);
  keep.rank({with, true, 3}, expected);
  for (const float rank : expected) EXPECT_TRUE(std::isfinite(rank));
  EXPECT_EQ(expected[1], 0);
  EXPECT_EQ(expected[3], 0);
  EXPECT_GT(expected[2], 0);
  EXPECT_GT(expected[4], expected[2]);
  keep.rank({nothing, false, 1}, ranks);
  EXPECT_EQ(ranks, expected);
  const std::vector<index_t> positions{4, 0, 6, 1};
  ranks.resize(4);
  keep.attended({positions, {nothing.data(), 4}}, ranks);
  EXPECT_EQ(ranks, (std::vector<float>{expected[4], expected[0], expected[6], expected[1]}));
}

TEST(Baselines, GatherNothingOfWhatIsNoNumber) {
  expect_sane(HeavyHitters{.recent = 1});
  expect_sane(Keyformer{.recent = 1});
}

TEST(Baselines, ForgetWithTheContext) {
  const auto second_life = [](auto keep, bool cleared) {
    const Shape shape{4, 2, 16};
    Decoder<float, NeverFull, decltype(keep)> decoder({1, shape}, {.capacity = 12}, {}, keep);
    reference::Tokens tokens(shape, 6), others(shape, 7);
    if (cleared) {
      reference::prefill(decoder, others.next(40));
      reference::decode(decoder, others.next(20));
      decoder.clear();
    }
    reference::prefill(decoder, tokens.next(60));
    reference::decode(decoder, tokens.next(30));
    const Decoder fork = decoder.fork();
    return std::pair{fork.layer(0).recycled_positions(0), reference::decode(decoder, tokens.next(10))};
  };
  EXPECT_EQ(second_life(HeavyHitters{.recent = 6}, true), second_life(HeavyHitters{.recent = 6}, false));
  EXPECT_EQ(second_life(Keyformer{.recent = 3}, true), second_life(Keyformer{.recent = 3}, false));
}

TEST(Baselines, BeginAnewWithEveryPrompt) {
  enum class Then { go_on, rollback, choice };  // of what would have chosen, and by the host
  const auto sets = [](auto schedule, auto keep, bool at_once, Then then) {
    const Shape shape{4, 2, 16};
    Decoder<float, decltype(schedule), decltype(keep)> decoder({1, shape}, {.capacity = 12}, schedule, keep);
    reference::Tokens tokens(shape, 6);
    const std::vector<Token> all = tokens.next(120);
    if (!at_once) {
      reference::prefill(decoder, {all.begin(), all.begin() + 50});
      reference::decode(decoder, {all.begin() + 50, all.begin() + 80});
    }
    reference::prefill(decoder, {all.begin() + (at_once ? 0 : 80), all.end()});
    if (then == Then::rollback) decoder.rollback(keep.observation_window);
    if (then == Then::choice) decoder.choose_positions(0, Positions{3, 50, 77, 100, 1, 60, 78, 110});
    std::vector<Positions> held;
    for (index_t i = 0; i < 20; ++i) {
      reference::decode(decoder, tokens.next(1));
      held.push_back(decoder.layer(0).recycled_positions(1));
    }
    return held;
  };
  const auto expect_same = [&](const auto& schedule, const auto& keep) {
    for (const Then then : {Then::go_on, Then::rollback, Then::choice})
      EXPECT_EQ(sets(schedule, keep, false, then), sets(schedule, keep, true, then)) << static_cast<int>(then);
  };
  expect_same(NeverFull{}, HeavyHitters{.recent = 6});
  expect_same(NeverFull{}, Keyformer{.recent = 3, .tokens = 9});
  expect_same(FixedStride{5}, TopK{.memory = 0.95F, .pool = 1});  // whose memory full steps alone look at
}

TEST(Baselines, SayWhatTheyCannotBe) {
  const auto message = [](const auto& keep) { return message_of([&] { keep.validate(); }); };
  EXPECT_EQ(message(StreamingLlm{-1}), says("StreamingLlm.sinks", "-1", "0 or more"));
  EXPECT_EQ(message(StreamingLlm{0}), "");
  const std::string half = "at least 1; half of the capacity is usual";
  EXPECT_EQ(message(HeavyHitters{}), says("HeavyHitters.recent", "0", half));
  EXPECT_EQ(message(HeavyHitters{.recent = 1, .observation_window = 0}),
            says("HeavyHitters.observation_window", "0", "at least 1"));
  EXPECT_EQ(message(HeavyHitters{.recent = 1}), "");
  const std::string quarter = "at least 1; a quarter of the capacity is usual";
  EXPECT_EQ(message(Keyformer{.recent = -3}), says("Keyformer.recent", "-3", quarter));
  EXPECT_EQ(message(Keyformer{.recent = 1, .observation_window = -1}),
            says("Keyformer.observation_window", "-1", "at least 1"));
  EXPECT_EQ(message(Keyformer{.recent = 1, .tokens = 0}), says("Keyformer.tokens", "0", "at least 1"));
  EXPECT_EQ(message(Keyformer{.recent = 1}), "");
  using Layer = LayerAttention<float, NeverFull, HeavyHitters>;  // asks them
  EXPECT_EQ(message_of([] { Layer({1, 1, 4}, {.capacity = 4}); }), says("HeavyHitters.recent", "0", half));
}

}  // namespace
