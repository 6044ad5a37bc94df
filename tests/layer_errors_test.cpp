// Wrong arguments: the message names the argument, its value and what was expected, and the call has not happened.
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "reference/feed.hpp"
#include "reference/messages.hpp"

namespace {

using namespace recycled;
using reference::Bits;
using reference::Token;

constexpr Shape shape{4, 2, 8, 6};
using Layer = LayerAttention<float, FixedStride>;

void expect_message(const std::string& message, const std::string& argument, const std::string& expectation) {
  EXPECT_EQ(message.rfind("recycled: " + argument + ", expected ", 0), 0U) << message;
  EXPECT_NE(message.find(expectation, argument.size()), std::string::npos) << message;
}

template <class T = float, class Policy = FixedStride>
std::string layer_message(const Shape& s, const LayerOptions& options, const Policy& policy = {},
                          const TopK& top = {}) {
  return message_of([&] { LayerAttention<T, Policy> layer(s, options, policy, top); });
}

TEST(WrongShape, IsNamed) {
  const LayerOptions options{.capacity = 4};
  expect_message(layer_message({0, 2, 8}, options), "Shape.query_heads = 0", "1 to 2^24");
  expect_message(layer_message({4, -1, 8}, options), "Shape.kv_heads = -1", "1 to 2^24");
  expect_message(layer_message({4, 2, 0}, options), "Shape.head_dim = 0", "1 to 2^24");
  expect_message(layer_message({4, 2, 8, -3}, options), "Shape.value_dim = -3", "1 to 2^24");
  expect_message(layer_message({4, 2, 1 << 25}, options), "Shape.head_dim = 33554432", "1 to 2^24");
  expect_message(layer_message({}, options), "Shape.query_heads = 0", "1 to 2^24");
  expect_message(layer_message({.query_heads = 4}, options), "Shape.kv_heads = 0", "1 to 2^24");
  expect_message(layer_message({.query_heads = 4, .kv_heads = 2}, options), "Shape.head_dim = 0", "1 to 2^24");
  expect_message(layer_message({4, 3, 8}, options), "Shape.query_heads = 4", "a multiple of kv_heads = 3");
  expect_message(layer_message<q8_0>({4, 2, 40}, options), "Shape.head_dim = 40", "a multiple of 32");
  expect_message(layer_message<q8_0>({4, 2, 32, 8}, options), "Shape.value_dim = 8", "a multiple of 32");
  expect_message(message_of([] {
                   Decoder<float> d({0, shape}, {.capacity = 4});
                 }),
                 "ModelShape.layers = 0", "1 to 2^20");
}

TEST(WrongOption, IsNamed) {
  expect_message(layer_message(shape, {}), "LayerOptions.capacity = 0", "1 to 2^40");
  expect_message(layer_message(shape, {.capacity = -7}), "LayerOptions.capacity = -7", "1 to 2^40");
  expect_message(layer_message(shape, {.capacity = (index_t{1} << 40) + 1}), "LayerOptions.capacity = 1099511627777",
                 "2^40");
  expect_message(layer_message(shape, {.capacity = 1, .max_length = -1}), "LayerOptions.max_length = -1", "0 to 2^40");
  const auto attention = [](const AttentionOptions& a) {
    return layer_message(shape, {.capacity = 1, .attention = a});
  };
  constexpr float inf = std::numeric_limits<float>::infinity();
  expect_message(attention({.scale = inf}), "AttentionOptions.scale = inf", "a finite number");
  expect_message(attention({.scale = std::nanf("")}), "AttentionOptions.scale = nan", "a finite number");
  expect_message(attention({.soft_cap = -1}), "AttentionOptions.soft_cap = -1", "positive");
  expect_message(attention({.soft_cap = std::nanf("")}), "AttentionOptions.soft_cap = nan", "positive");
  expect_message(attention({.window = -2}), "AttentionOptions.window = -2", "a count of positions");
  expect_message(attention({.window = 4, .sinks = -2}), "AttentionOptions.sinks = -2", "a count of positions");
  expect_message(attention({.sinks = 3}), "AttentionOptions.sinks = 3", "0 when there is no window");
  EXPECT_EQ((layer_message<float, AlwaysFull>(shape, {})), "");  // needs no capacity
}

TEST(WrongPolicy, IsNamed) {
  const LayerOptions options{.capacity = 4};
  expect_message(layer_message(shape, options, FixedStride{0}), "FixedStride.stride = 0", "at least 1");
  expect_message(layer_message(shape, options, QuerySimilarity{-1}), "QuerySimilarity.stride = -1", "at least 1");
  expect_message(layer_message(shape, options, QuerySimilarity{1, 1.5F}), "QuerySimilarity.threshold = 1.5", "-1 to 1");
  expect_message(layer_message(shape, options, QuerySimilarity{1, std::nanf("")}), "QuerySimilarity.threshold = nan",
                 "-1 to 1");
  expect_message(layer_message(shape, options, FixedStride{}, TopK{.memory = 1}), "TopK.memory = 1",
                 "0 to less than 1");
  expect_message(layer_message(shape, options, FixedStride{}, TopK{.pool = 4}), "TopK.pool = 4", "odd");
  expect_message(layer_message(shape, options, FixedStride{}, TopK{.pool = -1}), "TopK.pool = -1", "odd");
  expect_message(layer_message(shape, options, FixedStride{}, TopK{.observation_window = 0}),
                 "TopK.observation_window = 0", "at least 1");
}

TEST(WrongSize, IsFoundBeforeMemoryIsAskedFor) {
  constexpr index_t most = index_t{1} << 40;
  // Each count is allowed, their products pass 2^63.
  for (const index_t heads : {1 << 23, 1 << 24}) {
    expect_message(layer_message({heads, heads, 1}, {.capacity = most}),
                   "recycle cache size = " + std::to_string(heads) + " * " + std::to_string(most + 1), "below 2^63");
  }
  for (const Shape& longest : {Shape{1, 1, 1 << 24, 8}, Shape{1, 1, 8, 1 << 24}}) {
    expect_message(layer_message(longest, {.capacity = most}), "recycle cache size = 1099511627777 * 16777216",
                   "below 2^63");
  }
  EXPECT_THROW(Layer({1 << 12, 1, 1}, {.capacity = 1, .max_length = most}), std::invalid_argument);
  EXPECT_THROW((Decoder<float, AlwaysFull>({1, {1, 1, 1 << 24}}, {.max_length = most})), std::invalid_argument);
}

/// A layer in the middle of decoding, and what it can be asked wrongly.
class Called : public testing::Test {
 protected:
  Called()
      : random(4),
        cache(reference::Cache<float>::random(shape, 40, random)),
        layer(shape, {.capacity = 6}, {3}, {.observation_window = 3}) {
    layer.prefill(random.row(20 * 32), cache.view(20), out_of(20));
    for (length = 21; length <= 25; ++length) layer.step(random.row(32), cache.view(length), out_of(1));
    query = random.row(32);
  }
  std::span<float> out_of(index_t tokens) {
    out.assign(reference::at(tokens * 24), 0);
    return out;
  }

  /// `wrong` throws, and the next steps give the bits that they give without it.
  void expect(const std::function<void()>& wrong, const std::string& argument, const std::string& expectation) {
    Layer twin = layer;
    expect_message(message_of(wrong), argument, expectation);
    EXPECT_EQ(layer.length(), twin.length());
    EXPECT_EQ(layer.statistics(), twin.statistics());
    EXPECT_EQ(layer.recycled_positions(0), twin.recycled_positions(0));
    for (index_t end = length + 6; length < end; ++length) {
      const std::vector<float> q = random.row(32);
      layer.step(q, cache.view(length), out_of(1));
      const Bits seen = reference::bits(out);
      twin.step(q, cache.view(length), out_of(1));
      EXPECT_EQ(seen, reference::bits(out));
    }
    EXPECT_EQ(layer.statistics(), twin.statistics());
  }
  void expect_step(std::vector<float> q, const KvView<float>& kv, index_t out_size, const std::vector<float>& compared,
                   const std::string& argument, const std::string& expectation) {
    std::vector<float> target(reference::at(out_size));
    expect([&] { layer.step(q, kv, target, Serial{}, compared); }, argument, expectation);
  }

  reference::Random random;
  reference::Cache<float> cache;
  Layer layer;
  index_t length = 0;
  std::vector<float> query, out;
};

TEST_F(Called, StepWithAWrongQuery) { expect_step(random.row(31), cache.view(26), 24, {}, "query.size() = 31", "32"); }
TEST_F(Called, StepWithTwoQueries) { expect_step(random.row(64), cache.view(27), 48, {}, "query.size() = 64", "32"); }
TEST_F(Called, StepWithAWrongOutput) { expect_step(query, cache.view(26), 23, {}, "out.size() = 23", "24"); }
TEST_F(Called, StepWithAWrongComparison) {
  expect_step(query, cache.view(26), 24, random.row(3), "compared.size() = 3", "32");
}
TEST_F(Called, StepWithoutANewRow) { expect_step(query, cache.view(25), 24, {}, "KvView.length = 25", "26"); }
TEST_F(Called, StepWithTwoNewRows) { expect_step(query, cache.view(27), 24, {}, "KvView.length = 27", "26"); }
TEST_F(Called, StepWithAnEmptyView) { expect_step(query, cache.view(0), 24, {}, "KvView.length = 0", "at least 1"); }
TEST_F(Called, StepWithoutKeys) {
  KvView<float> kv = cache.view(26);
  kv.keys = nullptr;
  expect_step(query, kv, 24, {}, "KvView.keys = null", "a pointer");
}
TEST_F(Called, StepWithoutValues) {
  KvView<float> kv = cache.view(26);
  kv.values = nullptr;
  expect_step(query, kv, 24, {}, "KvView.values = null", "a pointer");
}
TEST_F(Called, StepWithAStrideShorterThanARow) {
  KvView<float> kv = cache.view(26);
  kv.key_strides.position = 7;
  expect_step(query, kv, 24, {}, "KvView.key_strides.position = 7", "at least one row of 8");
}
TEST_F(Called, StepWithAStrideThatOverflows) {
  KvView<float> kv = cache.view(26);
  kv.value_strides.head = std::numeric_limits<index_t>::max() / 2;
  expect_step(query, kv, 24, {}, "KvView.value_strides.head = 4611686018427387903", "no overflow over 2");
}
TEST_F(Called, PrefillWithHalfAQuery) {
  std::vector<float> target(24);
  expect([&] { layer.prefill(random.row(48), cache.view(26), target); }, "query.size() = 48", "a positive multiple of");
}
TEST_F(Called, PrefillWithoutQueries) {
  expect([&] { layer.prefill({}, cache.view(26), {}); }, "query.size() = 0", "a positive multiple of");
}
TEST_F(Called, PrefillWithAWrongOutput) {
  std::vector<float> target(24);
  expect([&] { layer.prefill(random.row(64), cache.view(27), target); }, "out.size() = 24", "48");
}
TEST_F(Called, PrefillThatLeavesAGap) {
  std::vector<float> target(24);
  expect([&] { layer.prefill(query, cache.view(27), target); }, "KvView.length = 27", "26");
}
TEST_F(Called, ObserveOfThePast) {
  expect([&] { layer.observe(query, 25); }, "length = 25", "at least 26");
}
TEST_F(Called, TruncateToMoreThanThereIs) {
  expect([&] { layer.truncate(26); }, "truncate: length = 26", "0 to the 25");
}
TEST_F(Called, TruncateToLessThanNothing) {
  expect([&] { layer.truncate(-1); }, "truncate: length = -1", "0 to the 25");
}
TEST_F(Called, RollbackOfMoreThanThereIs) {
  expect([&] { layer.rollback(26); }, "rollback: tokens = 26", "0 to the 25");
}

TEST(WrongHead, IsNamedByALayerThatHoldsNoSets) {
  const LayerAttention<float, AlwaysFull> exact(shape, {});
  EXPECT_EQ(message_of([&] { static_cast<void>(exact.recycled_positions(2)); }), says("kv_head", "2", "0 to 1"));
  EXPECT_TRUE(exact.recycled_positions(1).empty());
}

TEST(WrongCallOfADecoder, LeavesItAsItWas) {
  Decoder<float> decoder({2, shape}, {.capacity = 6}, {3});
  reference::Tokens tokens(shape, 2);
  reference::prefill(decoder, tokens.next(20));
  reference::decode(decoder, tokens.next(4));
  Decoder<float> twin = decoder;
  const Token t = tokens.next();
  std::vector<float> out(24);
  const std::vector<float> shorter(11);
  const auto step = [&](index_t layer, std::span<const float> q, std::span<const float> k, std::span<const float> v,
                        std::span<float> o) { return message_of([&] { decoder.step(layer, q, k, v, o); }); };
  expect_message(step(2, t.query, t.key, t.value, out), "layer = 2", "0 to 1");
  expect_message(step(-1, t.query, t.key, t.value, out), "layer = -1", "0 to 1");
  expect_message(step(0, shorter, t.key, t.value, out), "query.size() = 11", "32");
  expect_message(step(0, t.query, shorter, t.value, out), "key.size() = 11", "16 = tokens * kv_heads * 8");
  expect_message(step(1, t.query, t.key, shorter, out), "value.size() = 11", "12 = tokens * kv_heads * 6");
  expect_message(step(1, t.query, t.key, t.value, std::span(out).first(3)), "out.size() = 3", "24");
  expect_message(message_of([&] { decoder.truncate(25); }), "truncate: length = 25", "0 to the 24");
  expect_message(message_of([&] { decoder.rollback(-1); }), "rollback: tokens = -1", "0 to the 24");
  expect_message(message_of([&] { static_cast<void>(decoder.view(7)); }), "layer = 7", "0 to 1");
  EXPECT_EQ(decoder.length(), 24);
  EXPECT_EQ(decoder.view(1).length, 24);
  const std::vector<Token> rest = tokens.next(10);
  EXPECT_EQ(reference::decode(decoder, rest), reference::decode(twin, rest));
  EXPECT_EQ(decoder.statistics(), twin.statistics());
}

}  // namespace
