// A layer whose refreshes read all keys, and the values of the new set alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <recycled/recycled.hpp>
#include <stdexcept>
#include <vector>

#include "reference/fed.hpp"
#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::at, reference::Bits, reference::Token;

constexpr Shape shape{6, 2, 64, 32};
constexpr index_t capacity = 20, group = 3;
constexpr LayerOptions by_keys{.capacity = capacity, .sketch = {.keys = true}};

template <class T>
class ByKeys : public testing::Test {};
using Types = testing::Types<float, half, bfloat16, q8_0>;
TYPED_TEST_SUITE(ByKeys, Types);

/// The new token, and of the others those of the largest pooled weights of the group; equal ones as they leave a set.
reference::Positions best(const std::vector<reference::Attention>& rows, index_t length) {
  constexpr index_t reach = 3;
  std::vector<long double> weight(at(length), -reference::infinity), rank = weight;
  for (const reference::Attention& row : rows) {
    for (std::size_t j = 0; j < weight.size(); ++j) weight[j] = std::max(weight[j], row.logits[j] - row.lse);
  }
  for (index_t j = 0; j + 1 < length; ++j) {
    for (index_t i = std::max(j - reach, index_t{0}); i <= std::min(j + reach, length - 2); ++i)
      rank[at(j)] = std::max(rank[at(j)], weight[at(i)]);
  }
  reference::Positions order;
  for (index_t j = 0; j + 1 < length; ++j) order.push_back(j);
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return rank[at(a)] > rank[at(b)]; });
  order.resize(at(capacity));
  std::sort(order.begin(), order.end());
  order.erase(
      std::min_element(order.begin(), order.end(), [&](index_t a, index_t b) { return rank[at(a)] < rank[at(b)]; }));
  order.push_back(length - 1);
  return order;
}

TYPED_TEST(ByKeys, ARefreshAttendsToWhatItsWeightsChoose) {
  for (const float soft_cap : {0.0F, 2.0F}) {
    SCOPED_TRACE(soft_cap);
    LayerOptions options = by_keys;
    options.attention.soft_cap = soft_cap;
    Decoder<TypeParam, FixedStride> decoder({1, shape}, options, {.stride = 3});
    reference::Tokens tokens(shape, 5);
    reference::Fed<TypeParam> fed(shape);
    const std::vector<Token> prompt = tokens.next(150);
    for (const Token& token : prompt) fed.add(token);
    reference::prefill(decoder, prompt);
    std::vector<float> out(at(shape.query_heads * shape.value_dim));
    for (int step = 1; step <= 60; ++step) {
      const Token token = tokens.next();
      fed.add(token);
      const reference::Positions before[2] = {decoder.layer(0).recycled_positions(0),
                                              decoder.layer(0).recycled_positions(1)};
      decoder.step(0, token.query, token.key, token.value, out);
      reference::Positions everything;
      for (index_t j = 0; j < decoder.length(); ++j) everything.push_back(j);
      for (index_t g = 0; g < 2; ++g) {
        SCOPED_TRACE("step " + std::to_string(step) + ", KV head " + std::to_string(g));
        ASSERT_EQ(decoder.layer(0).last_step(g), step % 3 == 0 ? StepKind::sketched : StepKind::recycled);
        reference::Positions read = decoder.layer(0).recycled_positions(g);
        if (step % 3 == 0) {
          EXPECT_EQ(read, best(fed.attend(g, token.query, everything, options.attention), decoder.length()));
        } else if (step > 1) {
          read = before[g];
          read.push_back(decoder.length() - 1);
        } else {
          continue;
        }
        const auto truth = fed.attend(g, token.query, read, options.attention);
        for (index_t r = 0; r < group; ++r) {
          const std::span<const float> one(out.data() + (g * group + r) * shape.value_dim, at(shape.value_dim));
          ASSERT_TRUE(reference::near(one, truth[at(r)]));
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
    const auto bytes = [](index_t dim) { return static_cast<std::uint64_t>(kernels::row_bytes<TypeParam>(dim)); };
    std::uint64_t keys = 0;
    for (std::uint64_t length = 153; length <= 210; length += 3) keys += length * bytes(shape.head_dim);
    EXPECT_EQ(counts.bytes_read, counts.rows_read * (bytes(shape.head_dim) + bytes(shape.value_dim)) + keys);
  }
}

/// What a full step measures of the set that it replaces a refresh by keys measures, too.
TEST(ByKeysLayer, MeasuresTheSetThatItReplaces) {
  constexpr index_t roomy = 40;
  LayerAttention<float, FixedStride> full(shape, {.capacity = roomy}, {.stride = 3});
  LayerAttention<float, FixedStride> keys(shape, {.capacity = roomy, .sketch = {.keys = true}}, {.stride = 3});
  reference::Random random(4);
  const index_t row = shape.kv_heads * shape.head_dim, value_row = shape.kv_heads * shape.value_dim;
  const std::vector<float> all_keys = random.row(200 * row), all_values = random.row(200 * value_row);
  const std::vector<float> query = random.row(shape.query_size());
  std::vector<float> out(at(shape.query_heads * shape.value_dim));
  for (index_t length = 100; length < 104; ++length) {
    const auto view = KvView<float>::position_major(all_keys.data(), all_values.data(), shape, length);
    full.step(query, view, out);
    keys.step(query, view, out);
  }
  const HeadStatistics a = full.statistics().heads[1], b = keys.statistics().heads[1];
  EXPECT_EQ(a.full_steps, 2U) << "the first, because there was no prompt, and the third";
  EXPECT_EQ(b.full_steps, 1U);
  EXPECT_EQ(b.sketched_steps, 1U);
  EXPECT_EQ(b.measured, 1U);
  // The new sets differ by the place that the new token has for certain.
  EXPECT_NEAR(a.retained_mass, b.retained_mass, 0.05);
}

TEST(ByKeysLayer, ThatHasRoomForAllIsExact) {
  LayerOptions options = by_keys;
  options.capacity = 200;
  Decoder<half, SelfCalibrating> roomy({1, shape}, options);
  Decoder<half, AlwaysFull> exact({1, shape}, {});
  reference::Tokens tokens(shape, 8);
  const std::vector<Token> prompt = tokens.next(150), rest = tokens.next(50);
  reference::prefill(roomy, prompt);
  reference::prefill(exact, prompt);
  EXPECT_EQ(reference::decode(roomy, rest), reference::decode(exact, rest));
}

TEST(ByKeysLayer, OfASlidingWindowTakesFullSteps) {
  LayerOptions options = by_keys;
  options.attention = {.window = 60, .sinks = 4};
  Decoder<float, FixedStride> with({1, shape}, options, {.stride = 3});
  options.sketch = {};
  Decoder<float, FixedStride> without({1, shape}, options, {.stride = 3});
  reference::Tokens tokens(shape, 9);
  const std::vector<Token> all = tokens.next(150);
  EXPECT_EQ(reference::decode(with, all), reference::decode(without, all));
  EXPECT_EQ(with.statistics(), without.statistics());
}

TEST(ByKeysLayer, AQueryThatIsNoNumberMakesTheNextStepFull) {
  Decoder<float, FixedStride> decoder({1, shape}, by_keys, {.stride = 2});
  reference::Tokens tokens(shape, 14);
  reference::prefill(decoder, tokens.next(101));
  reference::decode(decoder, tokens.next(1));
  Token odd = tokens.next();
  odd.query[7] = std::nanf("");  // KV head 0
  reference::decode(decoder, {odd});
  EXPECT_EQ(decoder.layer(0).last_step(0), StepKind::full) << "the safe way, and no choice";
  EXPECT_EQ(decoder.layer(0).last_step(1), StepKind::sketched);
  const Bits next = reference::decode(decoder, tokens.next(1));
  EXPECT_EQ(decoder.layer(0).last_step(0), StepKind::full);
  EXPECT_EQ(decoder.layer(0).last_step(1), StepKind::recycled);
  for (const std::uint32_t word : next) EXPECT_TRUE(std::isfinite(std::bit_cast<float>(word)));
}

TEST(ByKeysLayer, ReadsNoValueThatItDoesNotChoose) {
  LayerAttention<float, FixedStride> layer(shape, by_keys, {.stride = 2});
  reference::Random random(6);
  const index_t row = shape.kv_heads * shape.head_dim, value_row = shape.kv_heads * shape.value_dim;
  const std::vector<float> keys = random.row(120 * row);
  std::vector<float> values = random.row(120 * value_row), out(at(shape.query_heads * shape.value_dim));
  const auto step = [&](index_t length) {
    layer.step(random.row(shape.query_size()), KvView<float>::position_major(keys.data(), values.data(), shape, length),
               out);
  };
  step(101);  // full: there is no set yet
  const std::vector<float> sound = values;
  const std::vector<float> query = random.row(shape.query_size());
  LayerAttention<float, FixedStride> twin = layer;
  twin.step(query, KvView<float>::position_major(keys.data(), values.data(), shape, 102), out);
  ASSERT_EQ(twin.last_step(0), StepKind::sketched);
  const std::vector<float> expected = out;
  for (index_t p = 0; p < 102; ++p) {
    for (index_t g = 0; g < 2; ++g) {
      const reference::Positions chosen = twin.recycled_positions(g);
      if (std::binary_search(chosen.begin(), chosen.end(), p)) continue;
      std::fill_n(values.begin() + p * value_row + g * shape.value_dim, shape.value_dim, std::nanf(""));
    }
  }
  layer.step(query, KvView<float>::position_major(keys.data(), values.data(), shape, 102), out);
  EXPECT_EQ(out, expected);
}

TEST(ByKeysLife, RollsBackAndForks) {
  Decoder<half, SelfCalibrating> decoder({1, shape}, by_keys);
  Decoder<half, AlwaysFull> exact({1, shape}, {});
  reference::Tokens tokens(shape, 10);
  const std::vector<Token> prompt = tokens.next(160), before = tokens.next(20);
  reference::prefill(decoder, prompt);
  reference::prefill(exact, prompt);
  reference::decode(decoder, before);
  reference::decode(exact, before);
  for (const int rejected : {1, 2, 9, 30}) {
    SCOPED_TRACE(rejected);
    Decoder<half, SelfCalibrating> one = decoder.fork(), other = decoder.fork();
    Decoder<half, AlwaysFull> truth = exact.fork();
    const std::vector<Token> next = tokens.next(1), rest = tokens.next(40);
    const std::vector<Token> drafted = tokens.next(rejected);
    for (auto* each : {&one, &other}) {
      reference::decode(*each, drafted);
      each->rollback(rejected);
    }
    EXPECT_EQ(reference::decode(one, next), reference::decode(truth, next));
    EXPECT_EQ(one.layer(0).last_step(0), StepKind::full) << "a token that is gone had cost another its place";
    reference::decode(other, next);
    EXPECT_EQ(reference::decode(one, rest), reference::decode(other, rest));
    EXPECT_GT(one.statistics()[0].total().sketched_steps, 10U);
  }
}

TEST(ByKeysLife, HasTheSameBitsOnAnyNumberOfThreads) {
  for (const Shape& heads : {shape, Shape{10, 5, 40, 24}, Shape{4, 1, 64, 64}}) {
    ThreadPool three(3);
    Decoder<bfloat16, SelfCalibrating> one({2, heads}, by_keys), other({2, heads}, by_keys);
    reference::Tokens tokens(heads, 13);
    const std::vector<Token> prompt = tokens.next(330), rest = tokens.next(100);
    reference::prefill(one, prompt);
    reference::prefill(other, prompt, three);
    EXPECT_EQ(reference::decode(one, rest), reference::decode(other, rest, three));
    EXPECT_EQ(one.statistics(), other.statistics());
    EXPECT_GT(one.statistics()[1].heads[0].sketched_steps, 5U);
  }
}

struct Failing {
  int left;  ///< parallel regions, the last of which throws
  template <class F>
  void operator()(index_t tasks, const F& task) {
    if (--left == 0) throw std::runtime_error("cancelled");
    for (index_t i = 0; i < tasks; ++i) task(i);
  }
};

TEST(ByKeysLife, SurvivesAnExecutorThatThrows) {
  for (int region = 1; region <= 4; ++region) {
    SCOPED_TRACE(region);
    Decoder<float, FixedStride> decoder({1, shape}, by_keys, {.stride = 2});
    Decoder<float, AlwaysFull> exact({1, shape}, {});
    reference::Tokens tokens(shape, 16);
    const std::vector<Token> prompt = tokens.next(80), first = tokens.next(1), next = tokens.next(1);
    reference::prefill(decoder, prompt);
    reference::prefill(exact, prompt);
    reference::decode(decoder, first);
    reference::decode(exact, first);
    const Token cut = tokens.next();
    std::vector<float> out(at(shape.query_heads * shape.value_dim));
    Failing failing{region};  // the keys, the choice, attention, and what follows it
    EXPECT_THROW(decoder.step(0, cut.query, cut.key, cut.value, out, failing), std::runtime_error);
    EXPECT_EQ(decoder.length(), exact.length());
    EXPECT_EQ(reference::decode(decoder, next), reference::decode(exact, next)) << "full";
    reference::decode(decoder, tokens.next(20));
    EXPECT_EQ(decoder.statistics()[0].heads[0].sketched_steps, 10U);
  }
}

}  // namespace
