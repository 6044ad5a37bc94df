// LayerAttention over memory that the host owns.
#include "reference/lockstep.hpp"
#include "reference/messages.hpp"

namespace {

using namespace recycled;
using reference::Bits;
using reference::Cache;
using reference::Layout;
using reference::Token;

constexpr Shape shape{6, 2, 32, 64};
constexpr index_t prompt = 70;
constexpr index_t length = 110;

std::vector<float> output() { return std::vector<float>(reference::at(shape.output_size())); }

/// A host: keys and values in some layout, and the queries of every position.
template <class T>
struct Host {
  explicit Host(Layout layout, std::uint64_t seed = 1)
      : cache(shape, length, layout), tokens(reference::Tokens(shape, seed).next(length)) {
    for (index_t j = 0; j < length; ++j) {
      const Token& token = tokens[reference::at(j)];
      for (index_t g = 0; g < shape.kv_heads; ++g) {
        cache.set_key(j, g, {token.key.data() + g * 32, token.key.data() + (g + 1) * 32});
        cache.set_value(j, g, {token.value.data() + g * 64, token.value.data() + (g + 1) * 64});
      }
    }
  }
  /// Runs [from, to) as decode steps.
  template <class Layer>
  Bits steps(Layer& layer, index_t from, index_t to) const {
    Bits all;
    for (index_t j = from; j < to; ++j) {
      std::vector<float> out = output();
      layer.step(tokens[reference::at(j)].query, cache.view(j + 1), out);
      const Bits one = reference::bits(out);
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  }
  std::vector<float> queries(index_t from, index_t to) const {
    return reference::packed({tokens.begin() + from, tokens.begin() + to}, &Token::query);
  }
  template <class Layer>
  Bits prefill(Layer& layer, index_t to) const {
    std::vector<float> out(reference::at(to * shape.output_size()));
    layer.prefill(queries(0, to), cache.view(to), out);
    return reference::bits(out);
  }

  Cache<T> cache;
  std::vector<Token> tokens;
};

template <class T>
class EveryLayout : public testing::Test {};
using Types = testing::Types<float, half, bfloat16, q8_0>;
TYPED_TEST_SUITE(EveryLayout, Types);

TYPED_TEST(EveryLayout, GivesTheSameBits) {
  Bits expected;
  for (const Layout layout : {Layout{}, Layout{.position_major = true}, Layout{.padding = 3, .offset = 1, .room = 9},
                              Layout{.position_major = true, .padding = 16, .offset = 5}, Layout{.page = 1},
                              Layout{.position_major = true, .offset = 1, .page = 16}, Layout{.page = 500}}) {
    const Host<TypeParam> host(layout);
    LayerAttention<TypeParam, FixedStride> layer(shape, {.capacity = 16}, {4});
    Bits seen = host.prefill(layer, prompt);
    const Bits rest = host.steps(layer, prompt, length);
    seen.insert(seen.end(), rest.begin(), rest.end());
    if (expected.empty()) expected = seen;
    EXPECT_EQ(seen, expected);
  }
}

TEST(LayerAttention, IsTheModel) {
  const Host<float> host({.position_major = true});
  LayerAttention<float, QuerySimilarity> layer(shape, {.capacity = 16}, {3, 0.8F});
  reference::Layer model({.shape = shape, .capacity = 16}, reference::query_similarity(3, 0.8F));
  model.prefill({host.tokens.begin(), host.tokens.begin() + prompt});
  host.prefill(layer, prompt);
  for (index_t j = prompt; j < length; ++j) {
    std::vector<float> out = output();
    layer.step(host.tokens[reference::at(j)].query, host.cache.view(j + 1), out);
    reference::expect_near(out, model.step(host.tokens[reference::at(j)]));
    reference::expect_same_state(layer, model);
  }
}

TEST(LayerAttention, GivesTheBitsOfADecoder) {
  const Host<half> host({.position_major = true});
  LayerAttention<half, FixedStride> layer(shape, {.capacity = 16}, {4});
  Decoder<half, FixedStride> decoder({1, shape}, {.capacity = 16}, {4});
  EXPECT_EQ(host.prefill(layer, prompt),
            reference::prefill(decoder, {host.tokens.begin(), host.tokens.begin() + prompt}));
  EXPECT_EQ(host.steps(layer, prompt, length),
            reference::decode(decoder, {host.tokens.begin() + prompt, host.tokens.end()}));
  EXPECT_EQ(layer.statistics(), decoder.layer(0).statistics());
}

TEST(LayerAttention, ObserveStandsInForPrefill) {
  for (const index_t window : {1, 5}) {
    const Host<bfloat16> host({});
    const TopK selection{.observation_window = window};
    LayerAttention<bfloat16, QuerySimilarity> filled(shape, {.capacity = 16}, {3, 0.8F}, selection);
    host.prefill(filled, prompt);
    const Bits expected = host.steps(filled, prompt, length);

    LayerAttention<bfloat16, QuerySimilarity> all(shape, {.capacity = 16}, {3, 0.8F}, selection);
    all.observe(host.queries(0, prompt), prompt);
    EXPECT_EQ(all.length(), prompt);
    EXPECT_EQ(host.steps(all, prompt, length), expected);

    LayerAttention<bfloat16, QuerySimilarity> last(shape, {.capacity = 16}, {3, 0.8F}, selection);
    last.observe(host.queries(prompt - window, prompt), prompt);
    EXPECT_EQ(host.steps(last, prompt, length), expected);

    LayerAttention<bfloat16, QuerySimilarity> chunks(shape, {.capacity = 16}, {3, 0.8F}, selection);
    chunks.observe(host.queries(0, 1), 20);
    for (index_t j = 20; j < prompt; j += 2) chunks.observe(host.queries(j, j + 2), j + 2);  // the window spans some
    EXPECT_EQ(host.steps(chunks, prompt, length), expected);
  }
}

TEST(LayerAttention, PreparedBeforeTheFirstStepGivesTheSameBits) {
  const Host<float> host({});
  LayerAttention<float, NeverFull> layer(shape, {.capacity = 16});
  host.prefill(layer, prompt);
  LayerAttention<float, NeverFull> prepared = layer;
  prepared.prepare(host.cache.view(prompt));
  EXPECT_EQ(prepared.recycled_positions(0).size(), 16U);
  prepared.prepare(host.cache.view(prompt));
  EXPECT_EQ(host.steps(prepared, prompt, length), host.steps(layer, prompt, length));
}

TEST(LayerAttention, WithoutThePromptsQueriesTheFirstStepIsFull) {
  const Host<float> host({});
  LayerAttention<float, NeverFull> layer(shape, {.capacity = 16});
  reference::Layer model({.shape = shape, .capacity = 16}, reference::never_full());
  for (index_t j = 0; j < prompt; ++j) model.append(host.tokens[reference::at(j)]);
  for (index_t j = prompt; j < length; ++j) {
    std::vector<float> out = output();
    layer.step(host.tokens[reference::at(j)].query, host.cache.view(j + 1), out);
    reference::expect_near(out, model.step(host.tokens[reference::at(j)]));
    reference::expect_same_state(layer, model);
    EXPECT_EQ(layer.last_step(0), j == prompt ? StepKind::full : StepKind::recycled);
  }
}

TEST(LayerAttention, RolledBackToNothingTakesAnyLengthAndAFullStep) {
  const Host<float> host({});
  LayerAttention<float, NeverFull> layer(shape, {.capacity = 500});
  host.steps(layer, 0, 9);
  layer.rollback(9);
  LayerAttention<float, NeverFull> fresh(shape, {.capacity = 500});
  EXPECT_EQ(host.steps(layer, prompt, length), host.steps(fresh, prompt, length));
  EXPECT_EQ(layer.statistics().total().full_steps, 2U * shape.kv_heads);
}

TEST(LayerAttention, ComparesTheVectorsThatItIsGiven) {
  const Host<float> host({});
  reference::Tokens other(shape, 99);
  LayerAttention<float, QuerySimilarity> layer(shape, {.capacity = 16}, {2, 0.85F});
  reference::Layer model({.shape = shape, .capacity = 16}, reference::query_similarity(2, 0.85F));
  LayerAttention<float, QuerySimilarity> plain = layer;
  for (index_t j = 0; j < length; ++j) {
    const std::vector<float> compared = other.next().query;
    std::vector<float> out = output();
    layer.step(host.tokens[reference::at(j)].query, host.cache.view(j + 1), out, Serial{}, compared);
    reference::expect_near(out, model.step(host.tokens[reference::at(j)], compared));
    reference::expect_same_state(layer, model);
  }
  host.steps(plain, 0, length);
  EXPECT_NE(plain.statistics(), layer.statistics());  // it did make a difference
}

TEST(LayerAttention, ComparesWhatThePromptWasGiven) {
  // The first check compares with the prompt's vector: the same direction recycles, the opposite one does not.
  const Host<float> host({});
  const std::vector<float> towards(reference::at(shape.query_size()), 1.0F), away(towards.size(), -1.0F);
  for (const bool same : {true, false}) {
    LayerAttention<float, QuerySimilarity> prefilled(shape, {.capacity = 16}, {1, 0.5F});
    std::vector<float> outs(reference::at(prompt * shape.output_size()));
    prefilled.prefill(host.queries(0, prompt), host.cache.view(prompt), outs, Serial{}, towards);
    LayerAttention<float, QuerySimilarity> observed(shape, {.capacity = 16}, {1, 0.5F});
    observed.observe(host.queries(prompt - 1, prompt), prompt, towards);
    for (auto* layer : {&prefilled, &observed}) {
      std::vector<float> out = output();
      layer->step(host.tokens[prompt].query, host.cache.view(prompt + 1), out, Serial{}, same ? towards : away);
      EXPECT_EQ(layer->last_step(0), same ? StepKind::recycled : StepKind::full);
    }
  }
}

TEST(LayerAttention, ComparesWithNothingWhereTheComparedTokenIsTakenBack) {
  // What the host gave for comparison is known of the prompt's last token alone.
  const Host<float> host({});
  const std::vector<float> towards(reference::at(shape.query_size()), 1.0F);
  for (const bool given : {true, false}) {
    LayerAttention<float, QuerySimilarity> layer(shape, {.capacity = 16}, {1, -1}, {.observation_window = 4});
    layer.observe(host.queries(prompt - 4, prompt), prompt,
                  given ? std::span<const float>(towards) : std::span<const float>());
    layer.truncate(prompt - 1);
    host.steps(layer, prompt - 1, prompt);
    EXPECT_EQ(layer.last_step(0), given ? StepKind::full : StepKind::recycled);
  }
}

TEST(LayerAttention, ComparesWithThePromptsLastQueryThatIsLeft) {
  const Host<float> host({});
  const std::vector<float> towards(reference::at(shape.query_size()), 1.0F), away(towards.size(), -1.0F);
  std::vector<float> queries = towards;
  queries.insert(queries.end(), away.begin(), away.end());
  for (const bool same : {true, false}) {
    LayerAttention<float, QuerySimilarity> layer(shape, {.capacity = 16}, {1, 0.5F}, {.observation_window = 4});
    layer.observe(queries, prompt);
    layer.truncate(prompt - 1);
    std::vector<float> out = output();
    layer.step(same ? towards : away, host.cache.view(prompt), out);
    EXPECT_EQ(layer.last_step(0), same ? StepKind::recycled : StepKind::full);
  }
}

TEST(LayerAttention, ChoosesByNoQueryFromBeforeTokensThatNobodySaw) {
  const Host<float> host({});
  const TopK window{.pool = 1, .observation_window = 6};
  LayerAttention<float> layer(shape, {.capacity = 16}, {}, window), other = layer;
  layer.observe(host.queries(30, 36), 36);
  layer.observe(host.queries(prompt - 2, prompt), prompt);
  other.observe(host.queries(prompt - 2, prompt), prompt);
  layer.prepare(host.cache.view(prompt));
  other.prepare(host.cache.view(prompt));
  EXPECT_EQ(layer.recycled_positions(0).size(), 16U);
  for (index_t g = 0; g < 2; ++g) EXPECT_EQ(layer.recycled_positions(g), other.recycled_positions(g));
}

TEST(LayerAttention, HasNoOtherHeadsThanItsOwn) {
  const LayerAttention<float> layer(shape, {.capacity = 16});
  for (const index_t head : {-1, 2}) {
    const std::string message = says("kv_head", std::to_string(head), "0 to 1");
    EXPECT_EQ(message_of([&] { (void)layer.last_step(head); }), message);
    EXPECT_EQ(message_of([&] { (void)layer.recycled_positions(head); }), message);
  }
}

}  // namespace
