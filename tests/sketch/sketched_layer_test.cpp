// A layer that refreshes by a sketch: what it chooses, what it attends to, what it counts, and what it shares with one
// that does not.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <recycled/recycled.hpp>
#include <vector>

#include "reference/fed.hpp"
#include "reference/feed.hpp"
#include "reference/messages.hpp"
#include "reference/sketch.hpp"

namespace {

using namespace recycled;
using reference::at, reference::Bits, reference::Token;

constexpr Shape shape{6, 2, 40, 24};
constexpr index_t capacity = 20;
constexpr LayerOptions sketched{.capacity = capacity, .sketch = {.coordinates = 16}};

template <class T>
class SketchedStep : public testing::Test {};
using Types = testing::Types<float, half, bfloat16>;
TYPED_TEST_SUITE(SketchedStep, Types);

/// The logarithm of the largest weight in the group of every position, by the logits of a sketch of the same keys and
/// queries.
template <class T>
std::vector<long double> log_weights_by(KeySketch<T>& sketch, index_t g, const std::vector<float>& query,
                                        const KvView<T>& kv, float soft_cap) {
  sketch.reserve(kv.length);
  sketch.catch_up(g, kv);
  const auto found = reference::logits(sketch, g, query, kv.length, detail::checked<T>(shape), 1 / std::sqrt(40.0F));
  std::vector<long double> score(at(kv.length), -reference::infinity);
  for (const std::vector<float>& row : found) {
    const auto logit = [&](index_t j) {
      const auto plain = static_cast<long double>(row[at(j)]);
      return soft_cap > 0 ? static_cast<long double>(soft_cap) * std::tanh(plain / static_cast<long double>(soft_cap))
                          : plain;
    };
    long double sum = 0;
    for (index_t j = 0; j < kv.length; ++j) sum += std::exp(logit(j));
    for (index_t j = 0; j < kv.length; ++j) score[at(j)] = std::max(score[at(j)], logit(j) - std::log(sum));
  }
  return score;
}

/// How many positions of `read` are not those of the highest scores, beside the new token and the first ones.
index_t strangers(reference::Positions read, std::vector<long double> score) {
  for (index_t j = 0; j < capacity / 8; ++j) score[at(j)] = reference::infinity;
  score.back() = reference::infinity;
  reference::Positions order(score.size());
  std::iota(order.begin(), order.end(), index_t{0});
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return score[at(a)] > score[at(b)]; });
  order.resize(at(capacity));
  std::sort(order.begin(), order.end());
  std::sort(read.begin(), read.end());
  reference::Positions difference;
  std::set_difference(read.begin(), read.end(), order.begin(), order.end(), std::back_inserter(difference));
  return static_cast<index_t>(difference.size()) + std::abs(static_cast<index_t>(read.size()) - capacity);
}

/// One that has seen the prompt, which the decoder holds.
template <class T>
KeySketch<T> sketch_of(const std::vector<Token>& prompt, const KvView<T>& kv) {
  KeySketch<T> sketch(detail::checked<T>(shape), 16);
  sketch.seen().add(reference::packed(prompt, &Token::query));
  Serial serial;
  reference::renew(sketch, kv, detail::checked<T>(shape), serial);
  return sketch;
}

TYPED_TEST(SketchedStep, AttendsToWhatTheSketchChooses) {
  for (const float soft_cap : {0.0F, 2.0F}) {
    SCOPED_TRACE(soft_cap);
    LayerOptions options = sketched;
    options.attention.soft_cap = soft_cap;
    Decoder<TypeParam, FixedStride> decoder({1, shape}, options, {.stride = 3}, {.pool = 1});
    reference::Tokens tokens(shape, 5);
    reference::Fed<TypeParam> fed(shape);
    const std::vector<Token> prompt = tokens.next(150);
    for (const Token& token : prompt) fed.add(token);
    reference::prefill(decoder, prompt);
    KeySketch<TypeParam> sketch = sketch_of<TypeParam>(prompt, decoder.view(0));
    std::vector<float> out(6 * 24);
    for (int step = 1; step <= 60; ++step) {
      const Token token = tokens.next();
      fed.add(token);
      const reference::Positions before[2] = {decoder.layer(0).recycled_positions(0),
                                              decoder.layer(0).recycled_positions(1)};
      decoder.step(0, token.query, token.key, token.value, out);
      for (index_t g = 0; g < 2; ++g) {
        SCOPED_TRACE("step " + std::to_string(step) + ", KV head " + std::to_string(g));
        ASSERT_EQ(decoder.layer(0).last_step(g), step % 3 == 0 ? StepKind::sketched : StepKind::recycled);
        reference::Positions read = decoder.layer(0).recycled_positions(g);
        if (step % 3 == 0) {
          // A row that is held counts twice. The last place may go to another where scores are as good as equal.
          auto score = log_weights_by(sketch, g, token.query, decoder.view(0), soft_cap);
          for (const index_t j : before[g]) score[at(j)] += std::numbers::ln2_v<long double>;
          ASSERT_LE(strangers(read, score), 1);
        } else if (step > 1) {
          read = before[g];
          const index_t refreshed = decoder.length() - 1 - step % 3;  // its own token outranks what it chose
          ASSERT_TRUE(step < 3 || std::count(read.begin(), read.end(), refreshed) == 1);
          read.push_back(decoder.length() - 1);
        } else {
          continue;
        }
        const auto truth = fed.attend(g, token.query, read, options.attention);
        for (index_t r = 0; r < 3; ++r) {
          ASSERT_TRUE(reference::near(std::span(out.data() + (g * 3 + r) * 24, 24), truth[at(r)]));
        }
      }
    }
    const HeadStatistics counts = decoder.statistics()[0].heads[0];
    EXPECT_EQ(counts.sketched_steps, 20U);
    EXPECT_EQ(counts.recycled_steps, 40U);
    EXPECT_EQ(counts.full_steps, 0U);
    EXPECT_EQ(counts.measured, 20U);
    EXPECT_GT(counts.retained_mass, 0);
    EXPECT_LE(counts.retained_mass, 20.001);
    EXPECT_EQ(counts.rows_read, 20U * capacity + 40U * (capacity + 1));
    std::uint64_t codes = 0;
    for (std::uint64_t length = 153; length <= 210; length += 3) codes += length * 8 + (length + 127) / 128 * 40 * 4;
    EXPECT_EQ(counts.bytes_read, counts.rows_read * (40 + 24) * sizeof(TypeParam) + codes);
  }
}

TEST(SketchedLayer, RemembersScoresBeyondARefresh) {
  constexpr float memory = 0.7F;
  Decoder<float, FixedStride> decoder({1, shape}, sketched, {.stride = 3}, {.memory = memory, .pool = 1});
  reference::Tokens tokens(shape, 8);
  reference::Fed<float> fed(shape);
  const std::vector<Token> prompt = tokens.next(150);
  reference::Positions seen;
  for (const Token& token : prompt) {
    fed.add(token);
    seen.push_back(static_cast<index_t>(seen.size()));
  }
  reference::prefill(decoder, prompt);
  KeySketch<float> sketch = sketch_of<float>(prompt, decoder.view(0));
  std::vector<long double> remembered[2];
  for (index_t g = 0; g < 2; ++g) {
    remembered[g].resize(seen.size());
    for (const auto& row : fed.attend(g, prompt.back().query, seen)) {
      for (std::size_t j = 0; j < seen.size(); ++j) remembered[g][j] = std::max(remembered[g][j], row.weights[j]);
    }
  }
  for (int step = 1; step <= 60; ++step) {
    const std::vector<Token> token = tokens.next(1);
    reference::decode(decoder, token);
    for (index_t g = 0; g < 2 && step % 3 == 0; ++g) {
      const auto now = log_weights_by(sketch, g, token[0].query, decoder.view(0), 0);
      remembered[g].resize(now.size());  // what joined since has been nothing yet
      for (std::size_t j = 0; j < now.size(); ++j)
        remembered[g][j] += (1 - static_cast<long double>(memory)) * (std::exp(now[j]) - remembered[g][j]);
      ASSERT_LE(strangers(decoder.layer(0).recycled_positions(g), remembered[g]), 1) << "step " << step;
    }
  }
}

TEST(SketchedLayer, HoldsTheFirstPositionsBetweenRefreshes) {
  // Nobody cares for them: a set by rank alone lets go of them first.
  LayerOptions options = sketched;
  options.sketch.full_every = 1000;
  Decoder<float, FixedStride> decoder({1, shape}, options, {.stride = 10}, {.pool = 1});
  reference::Tokens tokens(shape, 11);
  std::vector<Token> all = tokens.next(160);
  for (std::size_t t = 0; t < all.size(); ++t) {
    for (float& x : all[t].query) x = 1 + 0.1F * x;
    for (float& x : all[t].key) x = t < 2 ? -1.0F : 0.2F * x;
  }
  const auto from = all.begin() + 100;
  reference::prefill(decoder, {all.begin(), from});
  bool refreshed = false;
  for (auto token = from; token != all.end(); ++token) {
    reference::decode(decoder, {*token});
    for (index_t g = 0; g < shape.kv_heads; ++g) {
      refreshed = refreshed || decoder.layer(0).last_step(g) == StepKind::sketched;
      const reference::Positions held = decoder.layer(0).recycled_positions(g);
      EXPECT_EQ(held.size(), at(capacity));
      EXPECT_EQ(held[0] == 0 && held[1] == 1, refreshed) << "token " << token - from;
    }
  }
  EXPECT_TRUE(refreshed);
}

TEST(SketchedLayer, TakesAFullStepNowAndThen) {
  LayerOptions options = sketched;
  options.sketch.full_every = 4;
  Decoder<float, FixedStride> decoder({1, shape}, options, {.stride = 2});
  reference::Tokens tokens(shape, 6);
  reference::prefill(decoder, tokens.next(100));
  std::string kinds;
  for (int step = 1; step <= 24; ++step) {
    reference::decode(decoder, tokens.next(1));
    kinds += "frs"[static_cast<int>(decoder.layer(0).last_step(1))];
  }
  EXPECT_EQ(kinds, "rsrsrsrfrsrsrsrfrsrsrsrf");
}

TEST(SketchedLayer, WithoutAPromptFindsItsAxesAsItGoes) {
  // The first steps are full; there is a sketch as soon as there is something to leave out.
  Decoder<float, FixedStride> decoder({1, shape}, sketched, {.stride = 2});
  reference::Tokens tokens(shape, 7);
  std::string kinds;
  for (int step = 1; step <= 30; ++step) {
    reference::decode(decoder, tokens.next(1));
    kinds += "frs"[static_cast<int>(decoder.layer(0).last_step(0))];
  }
  EXPECT_EQ(kinds, "ffrfrfrfrfrfrfrfrfrfrsrsrsrsrs");
}

TEST(SketchedLayer, OptionsThatCantBeAreRefused) {
  const auto message = [](SketchOptions sketch) {
    return message_of<std::invalid_argument>([&] { LayerAttention<float>(shape, {.capacity = 4, .sketch = sketch}); });
  };
  for (const index_t coordinates : {-4, 2, 33, 68}) {
    EXPECT_EQ(message({.coordinates = coordinates}),
              "recycled: SketchOptions.coordinates = " + std::to_string(coordinates) +
                  ", expected 0 or a multiple of 4 up to 64");
  }
  EXPECT_EQ(message({.coordinates = 32, .full_every = 0}),
            "recycled: SketchOptions.full_every = 0, expected at least 1");
  EXPECT_EQ(message({.coordinates = 32, .keys = true}),
            "recycled: SketchOptions.coordinates = 32, expected 0 with SketchOptions.keys");
}

/// Where there are enough heads, each attends as soon as it has its set: to the same rows, and with the same bits on
/// any number of threads.
TEST(SketchedStep, OfManyHeadsAttendsHeadByHead) {
  constexpr Shape many{10, 5, 40, 24};
  const auto run = [&](auto&& executor) {
    Decoder<half, SelfCalibrating> decoder({1, many}, sketched, {.late = 0.3F}, {.pool = 1});
    reference::Tokens tokens(many, 9);
    reference::Fed<half> fed(many);
    const std::vector<Token> prompt = tokens.next(200);
    for (const Token& token : prompt) fed.add(token);
    reference::prefill(decoder, prompt);
    std::vector<float> out(10 * 24);
    Bits all;
    for (int step = 0; step < 60; ++step) {
      const Token token = tokens.next();
      fed.add(token);
      decoder.step(0, token.query, token.key, token.value, out, executor);
      const Bits some = reference::bits(out);
      all.insert(all.end(), some.begin(), some.end());
      for (index_t g = 0; g < 5; ++g) {
        if (decoder.layer(0).last_step(g) != StepKind::sketched) continue;
        const auto truth = fed.attend(g, token.query, decoder.layer(0).recycled_positions(g));
        for (index_t r = 0; r < 2; ++r)
          EXPECT_TRUE(reference::near(std::span(out.data() + (g * 2 + r) * 24, 24), truth[at(r)]));
      }
    }
    const HeadStatistics total = decoder.statistics()[0].total();
    EXPECT_GT(total.sketched_steps, 50U);
    EXPECT_GT(total.recycled_steps, 50U);
    EXPECT_EQ(total.rows_read, total.sketched_steps * capacity + total.recycled_steps * (capacity + 1));
    return all;
  };
  ThreadPool pool(3);
  EXPECT_EQ(run(Serial{}), run(pool));
}

}  // namespace
