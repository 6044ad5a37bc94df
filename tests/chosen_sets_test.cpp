// Sets that the host chooses, by positions or by scores: what the next step reads, what follows, what is refused.
#include <gtest/gtest.h>

#include <numeric>
#include <recycled/recycled.hpp>

#include "reference/fed.hpp"
#include "reference/feed.hpp"
#include "reference/messages.hpp"

namespace {

using namespace recycled;
using reference::at, reference::Bits, reference::Positions, reference::Token;

constexpr Shape shape{6, 2, 32, 64};
constexpr index_t capacity = 12;

/// A decoder that has read a prompt, and the oracle's view of its rows.
template <class T, class Policy = NeverFull>
struct Read {
  explicit Read(index_t length, const LayerOptions& options = {.capacity = capacity}, const Policy& policy = {})
      : decoder({1, shape}, options, policy), tokens(shape, 7), fed(shape) {
    const std::vector<Token> prompt = tokens.next(length);
    for (const Token& token : prompt) fed.add(token);
    reference::prefill(decoder, prompt);
  }
  std::vector<float> step() {
    last = tokens.next();
    fed.add(last);
    std::vector<float> out(6 * 64);
    decoder.step(0, last.query, last.key, last.value, out);
    return out;
  }
  /// `out` is attention of the last token over `seen` by KV head `g`.
  void expect(const std::vector<float>& out, index_t g, const Positions& seen, const AttentionOptions& options = {}) {
    const auto truth = fed.attend(g, last.query, seen, options);
    for (index_t r = 0; r < 3; ++r)
      EXPECT_TRUE(reference::near(std::span(out.data() + (g * 3 + r) * 64, 64), truth[at(r)]));
  }
  Decoder<T, Policy> decoder;
  reference::Tokens tokens;
  reference::Fed<T> fed;
  Token last;
};

template <class T>
class ChosenSet : public testing::Test {};
using Types = testing::Types<float, q8_0>;  // half in the other tests
TYPED_TEST_SUITE(ChosenSet, Types);

TYPED_TEST(ChosenSet, OfPositionsIsWhatTheStepReads) {
  Read<TypeParam> read(100);
  const std::vector<index_t> chosen{90, 3, 41, -1, 77, -1,   // KV head 0
                                    5,  6, -1, 99, 0,  50};  // KV head 1
  read.decoder.choose_positions(0, chosen);
  EXPECT_EQ(read.decoder.layer(0).recycled_positions(0), (Positions{3, 41, 77, 90}));
  EXPECT_EQ(read.decoder.layer(0).recycled_positions(1), (Positions{0, 5, 6, 50, 99}));
  const std::vector<float> out = read.step();
  read.expect(out, 0, {3, 41, 77, 90, 100});
  read.expect(out, 1, {0, 5, 6, 50, 99, 100});
  const LayerStatistics counts = read.decoder.statistics()[0];
  EXPECT_EQ(counts.heads[0].rows_read, 5U);
  EXPECT_EQ(counts.heads[1].rows_read, 6U);
  EXPECT_EQ(counts.total().recycled_steps, 2U);
}

TYPED_TEST(ChosenSet, OfScoresAreTheHighest) {
  Read<TypeParam> read(64);
  std::vector<float> scores(2 * 64);
  for (index_t j = 0; j < 64; ++j) {
    scores[at(j)] = static_cast<float>(j * 37 % 64);
    scores[at(64 + j)] = j % 3 == 0 ? std::nanf("") : static_cast<float>(-(j / 2));  // pairs of equals
  }
  read.decoder.choose_by_scores(0, scores);
  Positions order(64);
  std::iota(order.begin(), order.end(), index_t{0});
  std::sort(order.begin(), order.end(), [&](index_t a, index_t b) { return scores[at(a)] > scores[at(b)]; });
  Positions first(order.begin(), order.begin() + capacity), second;
  std::sort(first.begin(), first.end());
  for (index_t j = 0; static_cast<index_t>(second.size()) < capacity; ++j) {
    if (j % 3 != 0) second.push_back(j);
  }
  EXPECT_EQ(read.decoder.layer(0).recycled_positions(0), first);
  EXPECT_EQ(read.decoder.layer(0).recycled_positions(1), second);
  const std::vector<float> out = read.step();
  first.push_back(64);
  second.push_back(64);
  read.expect(out, 0, first);
  read.expect(out, 1, second);
}

TYPED_TEST(ChosenSet, OfAllPositionsHasTheBitsOfFullAttention) {
  Read<TypeParam> some(40, {.capacity = 40});
  Read<TypeParam, AlwaysFull> all(40, {});
  std::vector<index_t> every(2 * 41);
  for (std::size_t i = 0; i < every.size(); ++i) every[i] = static_cast<index_t>((i * 7) % 41);
  every[std::size_t(std::find(every.begin(), every.end(), 40) - every.begin())] = -1;
  every[at(41 + (std::find(every.begin() + 41, every.end(), 40) - every.begin() - 41))] = -1;
  some.decoder.choose_positions(0, every);
  EXPECT_EQ(reference::bits(some.step()), reference::bits(all.step()));
}

TEST(ChosenPositions, CountInTheirOrder) {
  Read<half> read(50);
  std::vector<index_t> chosen(2 * at(capacity));
  for (index_t i = 0; i < capacity; ++i) chosen[at(i)] = chosen[at(capacity + i)] = (i * 5 + 20) % 48;
  read.decoder.choose_positions(0, chosen);
  Positions held(chosen.begin(), chosen.begin() + capacity);
  for (index_t step = 0; step < 5; ++step) {
    (void)read.step();
    // The set was full: for every token that joined the last of those that were chosen has left.
    held.erase(held.begin() + capacity - 1 - step);
    held.push_back(50 + step);
    Positions sorted = held;
    std::sort(sorted.begin(), sorted.end());
    std::rotate(held.begin() + capacity - 1 - step, held.end() - 1, held.end());
    ASSERT_EQ(read.decoder.layer(0).recycled_positions(0), sorted) << step;
  }
}

TEST(ChosenPositions, StandForARefreshOfTheSchedule) {
  Read<half, SelfCalibrating> read(60, {.capacity = capacity}, {.longest = 4, .thresholds = {0, 0}});
  const auto& layer = read.decoder.layer(0);
  const std::vector<index_t> chosen{1, 2, 3, 4};
  for (int i = 0; i < 10; ++i) {  // never so long that the schedule would
    if (i % 2 == 0) read.decoder.choose_positions(0, chosen);
    (void)read.step();
    EXPECT_EQ(layer.last_step(0), StepKind::recycled);
    EXPECT_EQ(layer.last_step(1), StepKind::recycled);
  }
  EXPECT_EQ(layer.statistics().total().measured, 0U);
  for (int i = 0; i < 4; ++i) (void)read.step();
  EXPECT_EQ(layer.statistics().heads[0].full_steps, 1U);
  EXPECT_EQ(layer.statistics().heads[0].measured, 1U);  // what was chosen is the old set that it measures
}

TEST(ChosenPositions, OutOfSightAreLeftOut) {
  const AttentionOptions attention{.window = 10, .sinks = 2};
  Read<half> read(50, {.capacity = capacity, .attention = attention});
  const std::vector<index_t> chosen{0, 1, 2, 40, 41, 49, 0, 5, 30, 39, 45, 46};
  read.decoder.choose_positions(0, chosen);  // the token at 50 sees 0, 1 and 41 to 50
  const std::vector<float> out = read.step();
  read.expect(out, 0, {0, 1, 41, 49, 50}, attention);
  read.expect(out, 1, {0, 45, 46, 50}, attention);
}

TEST(ChosenScores, OutOfSightDoNotCount) {
  const AttentionOptions attention{.window = 10, .sinks = 2};
  Read<half> read(50, {.capacity = 4, .attention = attention});
  std::vector<float> scores(100, 0.0F);
  for (const index_t j : {20, 30, 45, 48}) scores[at(j)] = scores[at(50 + j)] = 2;
  scores[1] = scores[51] = 1;
  read.decoder.choose_by_scores(0, scores);
  const std::vector<float> out = read.step();
  for (index_t g = 0; g < 2; ++g) read.expect(out, g, {0, 1, 45, 48, 50}, attention);
}

TEST(Choice, IsForTheNextStepAlone) {
  Read<half, FixedStride> read(50, {.capacity = capacity}, {.stride = 3});
  const auto& layer = read.decoder.layer(0);
  const std::vector<index_t> chosen{7, 8};
  read.decoder.choose_positions(0, chosen);
  (void)read.step();
  (void)read.step();
  EXPECT_EQ(layer.recycled_positions(0), (Positions{7, 50, 51}));
  (void)read.step();
  EXPECT_EQ(layer.last_step(0), StepKind::full);
  read.decoder.choose_positions(0, chosen);
  read.decoder.rollback(1);  // the step that it was for is another one now
  (void)read.step();
  EXPECT_EQ(layer.last_step(0), StepKind::full);
}

TEST(Choice, RolledBackWithItsStepIsNoSet) {
  Read<half> read(50);
  (void)read.step();
  const std::vector<index_t> chosen{7, 8};
  read.decoder.choose_positions(0, chosen);
  (void)read.step();
  read.decoder.rollback(1);
  (void)read.step();
  EXPECT_EQ(read.decoder.layer(0).last_step(0), StepKind::full);
}

TEST(Choice, IsMadeForALayerThatHasSeenNothing) {
  reference::Tokens tokens(shape, 3);
  reference::Fed<float> fed(shape);
  KvCache<float> cache(detail::checked<float>(shape), 30);
  const std::vector<Token> given = tokens.next(30);
  for (const Token& token : given) {
    fed.add(token);
    (void)cache.stage(token.key.data(), token.value.data(), 1);
    cache.commit(1);
  }
  LayerAttention<float, NeverFull> layer(shape, {.capacity = 3});
  const std::vector<index_t> chosen{4, 20, 29, 11, 0, -1};  // 29 is the token itself
  layer.choose_positions(chosen, cache.view());
  std::vector<float> out(6 * 64);
  layer.step(given.back().query, cache.view(), out);
  const Positions seen[2] = {{4, 20, 29}, {0, 11, 29}};
  for (index_t g = 0; g < 2; ++g) {
    const auto truth = fed.attend(g, given.back().query, seen[g]);
    for (index_t r = 0; r < 3; ++r)
      EXPECT_TRUE(reference::near(std::span(out.data() + (g * 3 + r) * 64, 64), truth[at(r)]));
  }
  EXPECT_EQ(layer.last_step(0), StepKind::recycled);
}

TEST(Choice, HasTheSameBitsOnAnyNumberOfThreads) {
  const auto run = [](auto&& executor) {
    Read<half> read(300, {.capacity = 100});
    std::vector<float> scores(600);
    reference::Random random(4);
    for (float& score : scores) score = random.normal();
    read.decoder.choose_by_scores(0, scores, executor);
    const Positions held = read.decoder.layer(0).recycled_positions(1);
    return std::pair{held, reference::bits(read.step())};
  };
  ThreadPool pool(3);
  EXPECT_EQ(run(Serial{}), run(pool));
}

/// After an error the step is what it would have been.
TEST(WrongChoice, IsNamedAndChangesNothing) {
  Read<half> read(50), same(50);
  auto& decoder = read.decoder;
  const auto message = [&](const std::vector<index_t>& chosen) {
    return message_of([&] { decoder.choose_positions(0, chosen); });
  };
  const auto expect = [](const std::string& actual, const std::string& expected) {
    EXPECT_EQ(actual, "recycled: " + expected);
  };
  expect(message({1, 2, 3}), "positions.size() = 3, expected a multiple of kv_heads = 2");
  expect(message({1, 51}), "positions = 51, expected -1 for none, or 0 to 50");
  expect(message({1, -2}), "positions = -2, expected -1 for none, or 0 to 50");
  expect(message({1, 2, 9, 9}), "positions = 9, expected each once for KV head 1");
  expect(message({7, 7, 1, 2}), "positions = 7, expected each once for KV head 0");
  expect(message({51, 1}), "positions = 51, expected -1 for none, or 0 to 50");
  std::vector<index_t> many(2 * at(capacity + 1), -1);
  std::iota(many.begin() + capacity + 1, many.end(), index_t{0});
  expect(message(many), "positions of a KV head = 13, expected at most the capacity, 12");
  expect(message_of([&] { decoder.choose_by_scores(0, std::vector<float>(99)); }),
         "scores.size() = 99, expected 100 = kv_heads * KvView.length");
  expect(message_of([&] { decoder.choose_by_scores(1, std::vector<float>(100)); }), "layer = 1, expected 0 to 0");
  auto layer = decoder.layer(0);
  KvView<half> view = decoder.view(0);
  view.length = 49;
  expect(message_of([&] {
           layer.choose_positions(std::vector<index_t>{1, 2}, view);
         }),
         "KvView.length = 49, expected 50 or 51: the positions so far, and the new one");
  EXPECT_EQ(reference::bits(read.step()), reference::bits(same.step()));
  EXPECT_EQ(read.decoder.layer(0).recycled_positions(0), same.decoder.layer(0).recycled_positions(0));
}

#if defined(RECYCLED_HAS_EXCEPTIONS)
TEST(Choice, ThatAnExecutorCutsShortIsNoSet) {
  Read<half> read(50);
  (void)read.step();
  const auto failing = [](index_t count, const auto& task) {
    for (index_t i = 0; i + 1 < count; ++i) task(i);
    throw std::runtime_error("lost a thread");
  };
  const std::vector<index_t> chosen{7, 8};
  EXPECT_THROW(read.decoder.choose_positions(0, chosen, failing), std::runtime_error);
  (void)read.step();
  EXPECT_EQ(read.decoder.layer(0).last_step(0), StepKind::full);
}
#endif

TEST(WrongChoice, ForAnEmptyDecoderSaysSo) {
  Decoder<half> decoder({1, shape}, {.capacity = 4});
  EXPECT_EQ(message_of([&] { decoder.choose_by_scores(0, {}); }),
            "recycled: the layer's length = 0, expected at least 1, positions to choose from");
}

TEST(Choice, StaysWhereNothingIsTakenBack) {
  Read<half, FixedStride> read(50, {.capacity = capacity}, {.stride = 1});
  read.decoder.choose_positions(0, std::vector<index_t>{7, 8});
  read.decoder.rollback(0);
  const std::vector<float> out = read.step();
  read.expect(out, 0, {7, 50});
  read.expect(out, 1, {8, 50});
}

/// Rows of every cache that a fresh layer may be shown, none of which it may confuse with another's.
class FreshLayer : public testing::Test {
 protected:
  static constexpr Shape one{2, 1, 32};
  reference::Cache<half> some(index_t length, std::uint64_t seed) {
    reference::Random random(seed);
    return reference::Cache<half>::random(one, length, random);
  }
  std::vector<float> query = reference::Random(5).row(64), out = std::vector<float>(64);
  LayerAttention<half, NeverFull> layer{one, {.capacity = 200}};

  /// The step over `cache` attended to `seen`.
  void expect(const reference::Cache<half>& cache, const Positions& seen) {
    for (index_t r = 0; r < 2; ++r) {
      const auto truth =
          reference::attend({query.data() + r * 32, 32}, cache.keys(0), cache.values(0), std::span(seen));
      EXPECT_TRUE(reference::near(std::span(out.data() + r * 32, 32), truth));
    }
  }
};

TEST_F(FreshLayer, ForgetsAChoiceThatWasForAnotherCache) {
  const auto other = some(1000, 1), own = some(300, 2);
  std::vector<index_t> spread;
  for (index_t p = 0; p < 1000; p += 10) spread.push_back(p);
  layer.choose_positions(spread, other.view());
  LayerAttention<half, NeverFull> copy = layer;
  layer.step(query, own.view(), out);
  EXPECT_EQ(layer.last_step(0), StepKind::full);
  expect(own, reference::seen_by(299, {}));
  copy.observe(query, 299);
  copy.step(query, own.view(), out);
  Positions held = copy.recycled_positions(0);
  EXPECT_EQ(held.size(), 200U);
  EXPECT_LT(held.back(), 300);
}

TEST_F(FreshLayer, TakesTheLastOfSeveralChoices) {
  const auto other = some(1000, 1), own = some(300, 2);
  layer.choose_positions(std::vector<index_t>{5, 250, 999}, other.view());
  layer.choose_positions(std::vector<index_t>{5, 250, 17}, own.view());
  layer.step(query, own.view(), out);
  EXPECT_EQ(layer.last_step(0), StepKind::recycled);
  expect(own, {5, 17, 250, 299});
}

TEST_F(FreshLayer, ChoosesOverPagesAndWithTheNewRowInTheView) {
  reference::Random random(6);
  const auto cache = reference::Cache<half>::random(one, 120, random, {.page = 7});
  layer.observe(query, 110);
  layer.choose_positions(std::vector<index_t>{100, 3, 55}, cache.view(111));
  layer.step(query, cache.view(111), out);
  expect(cache, {3, 55, 100, 110});
  layer.choose_positions(std::vector<index_t>{4}, cache.view(111));
  layer.step(query, cache.view(112), out);
  expect(cache, {4, 111});
}

TEST(Choice, GoesBeforeASketch) {
  LayerOptions options{.capacity = capacity, .sketch = {.coordinates = 16}};
  Read<half, FixedStride> read(100, options, {.stride = 1});
  (void)read.step();
  EXPECT_EQ(read.decoder.layer(0).last_step(0), StepKind::sketched);
  read.decoder.choose_positions(0, std::vector<index_t>{7, 8});
  const std::vector<float> out = read.step();
  read.expect(out, 0, {7, 101});
  read.expect(out, 1, {8, 101});
  (void)read.step();
  EXPECT_EQ(read.decoder.layer(0).last_step(0), StepKind::sketched);
}

}  // namespace
