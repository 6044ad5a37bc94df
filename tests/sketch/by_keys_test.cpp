// A layer whose refreshes read all keys, and the values of the new set alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <recycled/recycled.hpp>
#include <vector>

#include "reference/fed.hpp"
#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::at, reference::Token;

constexpr Shape shape{6, 2, 64, 32};
constexpr index_t capacity = 20, group = 3;
constexpr LayerOptions by_keys{.capacity = capacity, .sketch = {.keys = true}};

template <class T>
class ByKeys : public testing::Test {};
using Types = testing::Types<float, half, bfloat16, q8_0>;
TYPED_TEST_SUITE(ByKeys, Types);

/// The new token, and of the others those of the largest pooled weights of the group; of equal ones the lower
/// positions.
reference::Positions best(const std::vector<reference::Attention>& rows, index_t length) {
  constexpr index_t reach = 3;
  std::vector<long double> weight(at(length), -reference::infinity), rank = weight;
  for (const reference::Attention& row : rows) {
    for (std::size_t j = 0; j < weight.size(); ++j) weight[j] = std::max(weight[j], row.logits[j] - row.lse);
  }
  for (index_t j = 0; j + 1 < length; ++j) {
    for (index_t i = std::max(j - reach, index_t{0}); i <= std::min(j + reach, length - 1); ++i)
      rank[at(j)] = std::max(rank[at(j)], weight[at(i)]);
  }
  reference::Positions order;
  for (index_t j = 0; j + 1 < length; ++j) order.push_back(j);
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return rank[at(a)] > rank[at(b)]; });
  order.resize(at(capacity) - 1);
  std::sort(order.begin(), order.end());
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

/// What a selection is told of, each time.
struct Recorded {
  std::shared_ptr<std::vector<std::pair<index_t, float>>> lengths_and_own = {};
  void rank(const Scores& measured, std::span<float> ranks) {
    std::copy(measured.log_weights.begin(), measured.log_weights.end(), ranks.begin());
    lengths_and_own->emplace_back(static_cast<index_t>(measured.log_weights.size()), measured.log_weights.back());
  }
};

TEST(ByKeysLayer, TellsASelectionOfAllThatAStepSees) {
  constexpr Shape one{1, 1, 16};
  const Recorded seen{std::make_shared<std::vector<std::pair<index_t, float>>>()};
  LayerAttention<float, FixedStride, Recorded> layer(one, {.capacity = 8, .sketch = {.keys = true}}, {2}, seen);
  reference::Random random(8);
  const auto cache = reference::Cache<float>::random(one, 60, random);
  std::vector<float> out(16);
  int by_keys_steps = 0;
  for (index_t length = 30; length <= 60; ++length) {
    seen.lengths_and_own->clear();
    const std::vector<float> query = random.row(16);
    layer.step(query, cache.view(length), out);
    if (layer.last_step(0) == StepKind::recycled) continue;
    by_keys_steps += layer.last_step(0) == StepKind::sketched ? 1 : 0;
    ASSERT_EQ(seen.lengths_and_own->size(), 1U);
    EXPECT_EQ(seen.lengths_and_own->front().first, length);
    const auto truth = reference::attend(query, cache.keys(0), cache.values(0), reference::seen_by(length - 1, {}), {});
    EXPECT_NEAR(seen.lengths_and_own->front().second, static_cast<float>(truth.logits.back() - truth.lse), 1e-4);
  }
  EXPECT_EQ(by_keys_steps, 15);
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

}  // namespace
