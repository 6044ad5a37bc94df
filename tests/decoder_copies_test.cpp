// Values: forks, cleared decoders and decoders in other threads go on with the bits of one that is alone.
#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::Bits;
using reference::Token;
using reference::Tokens;

constexpr Shape shape{6, 2, 40};
constexpr ModelShape model{3, shape};
constexpr LayerOptions options{.capacity = 20};

using Adaptive = Decoder<bfloat16, QuerySimilarity>;
Adaptive make() { return {model, options, {3, 0.8F}}; }

struct Script {
  Script() : tokens(shape, 1), prompt(tokens.next(90)), first(tokens.next(17)), second(tokens.next(31)) {}
  Tokens tokens;
  std::vector<Token> prompt, first, second;
};

TEST(Fork, AndOriginalGoOnAsOneThatIsAlone) {
  Script run;
  Adaptive alone = make();
  reference::prefill(alone, run.prompt);
  reference::decode(alone, run.first);
  const Bits expected = reference::decode(alone, run.second);

  Adaptive original = make();
  reference::prefill(original, run.prompt);
  reference::decode(original, run.first);
  Adaptive fork = original.fork();
  EXPECT_EQ(fork.length(), original.length());
  EXPECT_EQ(fork.statistics(), original.statistics());
  EXPECT_EQ(reference::decode(fork, run.second), expected);
  EXPECT_EQ(reference::decode(original, run.second), expected);
}

TEST(Fork, SharesNothing) {
  Script run;
  Adaptive original = make();
  reference::prefill(original, run.prompt);
  Adaptive fork = original.fork();
  Adaptive other = original.fork();
  const Bits expected = reference::decode(other, run.second);
  // Different tokens, turn by turn: neither disturbs the other.
  Bits seen;
  for (std::size_t i = 0; i < run.second.size(); ++i) {
    reference::decode(fork, {run.first[i % run.first.size()]});
    const Bits one = reference::decode(original, {run.second[i]});
    seen.insert(seen.end(), one.begin(), one.end());
    if (i % 7 == 6) fork.rollback(5);
  }
  EXPECT_EQ(seen, expected);
  fork.clear();
  EXPECT_EQ(original.length(), 90 + 31);
}

TEST(Fork, OutlivesTheOriginal) {
  Script run;
  Adaptive alone = make();
  reference::prefill(alone, run.prompt);
  const Bits expected = reference::decode(alone, run.second);
  auto original = std::make_unique<Adaptive>(make());
  reference::prefill(*original, run.prompt);
  Adaptive fork = original->fork();
  original.reset();
  EXPECT_EQ(reference::decode(fork, run.second), expected);
}

TEST(Fork, OfAForkAssignedOverAnother) {
  Script run;
  Adaptive a = make();
  reference::prefill(a, run.prompt);
  Adaptive b = make();
  reference::prefill(b, run.first);
  b = a.fork().fork();
  EXPECT_EQ(reference::decode(b, run.second), reference::decode(a, run.second));
}

TEST(Clear, IsAsNewlyMade) {
  Script run;
  Adaptive fresh = make();
  const Bits prompt = reference::prefill(fresh, run.prompt);
  const Bits steps = reference::decode(fresh, run.second);

  Adaptive used = make();
  reference::prefill(used, run.first);
  reference::decode(used, run.second);
  used.clear();
  EXPECT_EQ(used.length(), 0);
  EXPECT_EQ(used.statistics(), make().statistics());
  EXPECT_TRUE(used.layer(0).recycled_positions(0).empty());
  EXPECT_EQ(reference::prefill(used, run.prompt), prompt);
  EXPECT_EQ(reference::decode(used, run.second), steps);
  EXPECT_EQ(used.statistics(), fresh.statistics());
}

TEST(Clear, IsAsNewlyMadeWithoutAPrompt) {
  Script run;
  Adaptive fresh = make();
  const Bits steps = reference::decode(fresh, run.second);
  Adaptive used = make();
  reference::prefill(used, run.prompt);
  reference::decode(used, run.first);
  used.clear();
  EXPECT_EQ(reference::decode(used, run.second), steps);
}

/// Writes down what it is told.
struct Recorder {
  std::vector<float> seen;
  StepKind decide(const StepInfo& info) {
    seen.insert(seen.end(),
                {static_cast<float>(info.step), static_cast<float>(info.length), static_cast<float>(info.age)});
    seen.insert(seen.end(), info.queries.begin(), info.queries.end());
    seen.insert(seen.end(), info.full_queries.begin(), info.full_queries.end());
    return info.step % 4 == 0 ? StepKind::full : StepKind::recycled;
  }
  void observe(const Refresh& refresh) { seen.push_back(refresh.retained_mass); }
};

TEST(Clear, LeavesNothingThatAScheduleCouldSee) {
  Script run;
  Decoder<float, Recorder> fresh(model, options);
  reference::decode(fresh, run.second);
  Decoder<float, Recorder> used(model, options);
  reference::prefill(used, run.prompt);
  reference::decode(used, run.first);
  used.clear();
  reference::decode(used, run.second);
  EXPECT_TRUE(reference::bits(used.layer(2).schedule().seen) == reference::bits(fresh.layer(2).schedule().seen));
}

TEST(Threads, MayUseDifferentDecoders) {
  Script run;
  Adaptive alone = make();
  Bits expected = reference::prefill(alone, run.prompt);
  const Bits steps = reference::decode(alone, run.second);
  expected.insert(expected.end(), steps.begin(), steps.end());

  std::vector<Bits> seen(4);
  std::vector<std::thread> threads;
  for (Bits& one : seen) {
    threads.emplace_back([&one, &run] {
      Adaptive own = make();
      one = reference::prefill(own, run.prompt);
      const Bits rest = reference::decode(own, run.second);
      one.insert(one.end(), rest.begin(), rest.end());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Bits& one : seen) EXPECT_EQ(one, expected);
}

TEST(Threads, MayForkOneDecoderAtTheSameTime) {
  Script run;
  const Adaptive original = [&run] {
    Adaptive decoder = make();
    reference::prefill(decoder, run.prompt);
    reference::decode(decoder, run.first);
    return decoder;
  }();
  Adaptive alone = original.fork();
  const Bits expected = reference::decode(alone, run.second);
  std::vector<Bits> seen(4);
  std::vector<std::thread> threads;
  for (Bits& one : seen) {
    threads.emplace_back([&one, &original, &run] {
      Adaptive fork = original.fork();
      one = reference::decode(fork, run.second);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Bits& one : seen) EXPECT_EQ(one, expected);
}

}  // namespace
