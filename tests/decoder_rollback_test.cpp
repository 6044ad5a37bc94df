// Rollback: positions leave the full cache and the recycle cache; if one of them had chosen a set, or cost another its
// place in it, the next step of that head is full.
#include "reference/lockstep.hpp"

namespace {

using namespace recycled;
using reference::Lockstep;

constexpr Shape shape{6, 2, 32};
constexpr index_t prompt = 50;

template <class Policy = FixedStride>
Lockstep<float, Policy> after_prompt(const reference::Options& options, const Policy& policy = {5},
                                     const reference::Schedule& schedule = reference::fixed_stride(5)) {
  Lockstep<float, Policy> both(options, policy, schedule, 5);
  both.prefill(prompt);
  return both;
}

TEST(Rollback, AnyNumberOfTokensAtAnyTimeIsTheModel) {
  for (const index_t capacity : {1, 12, 52, 200}) {
    for (const index_t steps : {1, 2, 4, 5, 6, 10, 13}) {
      for (const index_t removed : {1, 2, 3, 5, 8, 14, 40}) {
        SCOPED_TRACE(testing::Message() << "capacity " << capacity << ", " << steps << " steps, " << removed
                                        << " removed");
        Lockstep<float, FixedStride> both({.shape = {3, 3, 8}, .capacity = capacity}, {5}, reference::fixed_stride(5));
        both.prefill(prompt);
        both.step(steps);
        both.rollback(removed);
        both.step(7);
      }
    }
  }
}

/// Steps, prompts and rollbacks at random, up to `most_steps` in a row.
template <class Policy>
void live(Lockstep<float, Policy>& both, std::uint64_t seed, index_t most_steps) {
  reference::Random random(seed);
  both.prefill(20);
  for (int i = 0; i < 60; ++i) {
    if (i % 12 == 11) both.prefill(random.between(1, 4));
    if (random.between(0, 9) > 0) both.step(random.between(1, most_steps));
    both.rollback(random.between(0, std::min(both.length(), index_t{6})));
  }
}

/// What kinds of steps follow, and their outputs, after a token with that query came and went.
std::pair<std::vector<StepKind>, std::vector<float>> behind_taken_back(index_t capacity, index_t rejected_in_prompt,
                                                                       const std::vector<float>& rejected) {
  constexpr Shape small{1, 1, 8};
  reference::Random random(4);
  const auto cache = reference::Cache<float>::random(small, 40, random);
  const std::vector<float> query = random.row(8);
  LayerAttention<float, QuerySimilarity> layer(small, {.capacity = capacity}, {1, 0.8F}, {.pool = 1});
  std::pair<std::vector<StepKind>, std::vector<float>> seen;
  std::vector<float> out(8);
  const auto step = [&](const std::vector<float>& asked) { layer.step(asked, cache.view(layer.length() + 1), out); };
  if (rejected_in_prompt > 0) {
    layer.observe(rejected, 11 + rejected_in_prompt);
    layer.prepare(cache.view(11 + rejected_in_prompt));
    layer.rollback(rejected_in_prompt);
  } else {
    layer.observe(query, 8);
    for (int i = 0; i < 3; ++i) step(query);
    step(rejected);
    layer.rollback(1);
  }
  for (int i = 0; i < 12; ++i) {
    step(query);
    seen.first.push_back(layer.last_step(0));
    seen.second.insert(seen.second.end(), out.begin(), out.end());
  }
  return seen;
}

TEST(Rollback, AQueryThatWasTakenBackDecidesNothingMore) {
  const std::vector<float> one = reference::Random(5).row(8);
  std::vector<float> other = one;
  for (float& x : other) x = -x;
  for (const index_t capacity : {6, 12, 16, 40}) {  // less than there are positions, and as many, now or all the time
    for (const index_t in_prompt : {0, 1, 2}) {
      SCOPED_TRACE(testing::Message() << "capacity " << capacity << ", " << in_prompt << " of the prompt");
      const auto with_one = behind_taken_back(capacity, in_prompt, one);
      const auto with_other = behind_taken_back(capacity, in_prompt, other);
      EXPECT_EQ(with_one.first, with_other.first);
      for (std::size_t i = 0; i < with_one.second.size(); ++i)  // rows may be held in another order
        EXPECT_NEAR(with_one.second[i], with_other.second[i], 1e-5);
      EXPECT_EQ(with_one.first[0], StepKind::full);
      EXPECT_EQ(with_one.first[1], StepKind::recycled);
    }
  }
}

TEST(Rollback, AtRandomIsTheModel) {
  for (const reference::Options& options :
       {reference::Options{.shape = shape, .capacity = 10},
        reference::Options{.shape = shape, .capacity = 10, .observation_window = 4},
        reference::Options{.shape = shape, .attention = {.window = 30, .sinks = 3}, .capacity = 10},
        reference::Options{.shape = shape, .attention = {.window = 12, .sinks = 2}, .capacity = 40}}) {
    Lockstep<float, QuerySimilarity> both(options, {2, 0.85F}, reference::query_similarity(2, 0.85F), 3);
    live(both, 9, 5);
  }
}

TEST(Rollback, OfAPolicyThatLearnsIsTheModel) {
  for (const reference::Options& options :
       {reference::Options{.shape = shape, .capacity = 10, .observation_window = 4, .memory = 0.7F},
        reference::Options{.shape = shape, .attention = {.window = 30, .sinks = 3}, .capacity = 10, .memory = 0.5F}}) {
    Lockstep<float, SelfCalibrating> both(options, {.late = 0.3F, .longest = 6}, reference::self_calibrating(0.3F, 6),
                                          3);
    live(both, 11, 9);
    EXPECT_GT(both.decoder().statistics()[0].total().recycled_steps, 50U);
    EXPECT_GT(both.decoder().statistics()[0].total().measured, 20U);
  }
}

TEST(Rollback, OfATokenThatEvictedMakesTheNextStepFull) {
  auto both = after_prompt({.shape = shape, .capacity = 10});
  both.step(2);
  both.rollback(1);
  both.step(1);
  EXPECT_EQ(both.decoder().layer(0).last_step(0), StepKind::full);
}

TEST(Rollback, OfATokenThatFoundAFreePlaceDoesNot) {
  auto both = after_prompt({.shape = shape, .capacity = prompt + 2});
  both.step(2);
  both.rollback(2);
  both.step(1);
  EXPECT_EQ(both.decoder().layer(0).last_step(0), StepKind::recycled);
}

TEST(Rollback, PastAFullStepThatChoseMakesTheNextStepFull) {
  auto both = after_prompt({.shape = shape, .capacity = 10});
  both.step(5);
  EXPECT_EQ(both.decoder().layer(0).last_step(0), StepKind::full);
  both.rollback(1);
  both.step(1);
  EXPECT_EQ(both.decoder().layer(0).last_step(0), StepKind::full);
  EXPECT_EQ(both.decoder().layer(0).statistics().heads[0].full_steps, 2U);
}

TEST(Rollback, OfTheLastPromptTokenMakesTheFirstStepFull) {
  auto both = after_prompt({.shape = shape, .capacity = 10});
  both.rollback(1);
  both.step(1);
  EXPECT_EQ(both.decoder().layer(0).last_step(0), StepKind::full);
}

TEST(Rollback, IntoTheObservationWindowLeavesTheRestOfIt) {
  auto both = after_prompt<QuerySimilarity>({.shape = shape, .capacity = 10, .observation_window = 6}, {1, 0.9F},
                                            reference::query_similarity(1, 0.9F));
  both.rollback(4);
  both.step(1);
  both.rollback(1);
  both.step(3);
}

TEST(Rollback, OfNothingChangesNothing) {
  auto both = after_prompt({.shape = shape, .capacity = 10});
  both.rollback(0);
  both.step(3);
  both.rollback(0);
  both.step(1);
  EXPECT_EQ(both.decoder().layer(0).last_step(0), StepKind::recycled);
}

/// A head refreshes when its set is 5 steps old.
struct ByAge {
  static constexpr bool per_head = true;
  StepKind decide(const StepInfo& info) const { return info.age >= 5 ? StepKind::full : StepKind::recycled; }
};

TEST(Rollback, CountsTheAgeOfASetBack) {
  const reference::Schedule by_age{[](const reference::Question& q) { return q.age >= 5; }, true};
  for (const index_t capacity : {10, 100}) {
    auto both = after_prompt<ByAge>({.shape = shape, .capacity = capacity}, {}, by_age);
    both.step(8);
    both.rollback(2);
    both.step(3);
    both.rollback(3);
    both.step(12);
  }
}

TEST(Rollback, ToNothingIsAFreshStart) {
  for (const index_t capacity : {10, 100}) {
    auto both = after_prompt({.shape = shape, .capacity = capacity});
    both.step(7);
    both.rollback(prompt + 7);
    EXPECT_EQ(both.length(), 0);
    both.step(1);
    EXPECT_EQ(both.decoder().layer(0).last_step(0), StepKind::full);
    both.step(5);
    both.rollback(both.length());
    both.prefill(30);
    both.step(6);
  }
}

TEST(Rollback, RepairsATokenThatStoppedBetweenTwoLayers) {
  Decoder<float> decoder({2, shape}, {.capacity = 10});
  Decoder<float> untouched({2, shape}, {.capacity = 10});
  reference::Tokens tokens(shape, 1);
  const std::vector<reference::Token> first = tokens.next(30);
  const reference::Token lost = tokens.next();
  const std::vector<reference::Token> rest = tokens.next(30);
  reference::prefill(decoder, first);
  reference::prefill(untouched, first);
  std::vector<float> out(reference::at(shape.query_heads * shape.head_dim));
  decoder.step(0, lost.query, lost.key, lost.value, out);
  EXPECT_EQ(decoder.length(), 30);
  decoder.truncate(decoder.length());
  EXPECT_EQ(decoder.view(0).length, 30);
  EXPECT_EQ(decoder.layer(0).length(), 30);
  // The first layer's next step is full now, the second's is not; a decoder that rolled back both agrees in both
  // outputs of the positions' count.
  reference::decode(decoder, rest);
  EXPECT_EQ(decoder.length(), 60);
  EXPECT_EQ(decoder.layer(0).statistics().total().full_steps, decoder.layer(1).statistics().total().full_steps + 2);
}

}  // namespace
