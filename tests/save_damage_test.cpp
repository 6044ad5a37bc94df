// A state that is cut short, damaged, of another layer or made to harm is refused, and nothing has changed.
#include <gtest/gtest.h>

#include <cstring>
#include <sstream>

#include "reference/feed.hpp"
#include "reference/messages.hpp"
#include "reference/replaced_new.hpp"
#include "reference/saved.hpp"

namespace {

using namespace recycled;
using reference::saved, reference::signed_again;
using reference::Tokens;

constexpr ModelShape model{1, {4, 2, 16}}, two_layers{2, model.layer};
constexpr LayerOptions options{.capacity = 12, .sketch = {.coordinates = 4}};
using Small = Decoder<half, SelfCalibrating>;

Small make(const ModelShape& of = model) { return {of, options, {}, {.pool = 1}}; }

/// One that has seen a prompt and some steps.
Small used(std::uint64_t seed, index_t prompt, const ModelShape& of = model) {
  Small decoder = make(of);
  Tokens tokens(model.layer, seed);
  reference::prefill(decoder, tokens.next(prompt));
  reference::decode(decoder, tokens.next(20));
  return decoder;
}

/// At every `apart`-th byte.
template <class Saved>
void expect_refused_cut_short(std::size_t apart, const Saved& from, Saved into) {
  const std::string state = saved(from), before = saved(into);
  for (std::size_t size = 0; size < state.size(); size += apart * reference::of_many) {
    ASSERT_NE(error_of(into, state.substr(0, size)).find("it is cut short"), std::string::npos) << size;
  }
  EXPECT_TRUE(saved(into) == before);
  EXPECT_EQ(error_of(into, state), "");
  EXPECT_TRUE(saved(into) == state);
}

TEST(SavedState, CutShortAnywhereIsRefused) {
  expect_refused_cut_short(1, used(1, 40), used(2, 20));
  expect_refused_cut_short(3, used(1, 40).layer(0), used(2, 20).layer(0));
  expect_refused_cut_short(7, used(1, 40, two_layers), used(2, 20, two_layers));
}

/// The same.
template <class Saved>
void expect_refused_changed(std::size_t apart, const Saved& from, Saved into) {
  const std::string state = saved(from), before = saved(into);
  for (std::size_t i = 0; i < state.size(); i += apart * reference::of_many) {
    for (const std::size_t bit : {std::size_t{0}, 1 + i % 7}) {  // the lowest of a flag leaves one
      std::string damaged = state;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      ASSERT_EQ(error_of(into, damaged).substr(0, 10), "recycled: ") << i;
    }
  }
  EXPECT_TRUE(saved(into) == before);
}

TEST(SavedState, WithAnyByteChangedIsRefused) {
  expect_refused_changed(1, used(1, 40), used(2, 20));
  expect_refused_changed(3, used(1, 40).layer(0), used(2, 20).layer(0));
  expect_refused_changed(7, used(1, 20, two_layers), used(2, 20, two_layers));
}

TEST(SavedState, OfAnotherDecoderIsRefusedByName) {
  const std::string state = saved(used(1, 40));
  const auto expect = [&](auto other, const std::string& message) { EXPECT_EQ(error_of(other, state), message); };
  expect(Decoder<bfloat16, SelfCalibrating>{model, options},
         "recycled: saved state: KV type = another, expected bf16, as here");
  expect(Decoder<half, SelfCalibrating, TopK, bfloat16>{model, options},
         "recycled: saved state: type of recycled rows = another, expected bf16, as here");
  expect(Small{{2, model.layer}, options}, "recycled: saved state: ModelShape.layers = 1, expected 2, as here");
  expect(Small{{1, {4, 1, 16}}, options}, "recycled: saved state: Shape.kv_heads = 2, expected 1, as here");
  expect(Small{{1, {4, 2, 32}}, options}, "recycled: saved state: Shape.head_dim = 16, expected 32, as here");
  expect(Small{model, {.capacity = 13}}, "recycled: saved state: LayerOptions.capacity = 12, expected 13, as here");
  expect(Small{model, {.capacity = 12, .attention = {.soft_cap = 5}}},
         "recycled: saved state: AttentionOptions.soft_cap = 0, expected 5, as here");
  expect(Small{model, {.capacity = 12}}, "recycled: saved state: SketchOptions.coordinates = 4, expected 0, as here");
  expect(Small{{1, {8, 2, 16}}, options}, "recycled: saved state: Shape.query_heads = 4, expected 8, as here");
  expect(Small{{1, {4, 2, 16, 8}}, options}, "recycled: saved state: Shape.value_dim = 16, expected 8, as here");
  expect(Small{model, {.capacity = 12, .attention = {.scale = 0.5F}}},
         "recycled: saved state: AttentionOptions.scale = 0.25, expected 0.5, as here");
  expect(Small{model, {.capacity = 12, .attention = {.window = 9}}},
         "recycled: saved state: AttentionOptions.window = 0, expected 9, as here");
  const auto expect_between = [&](const LayerOptions& from, const LayerOptions& into, const std::string& message) {
    LayerAttention<half> layer(model.layer, into);
    EXPECT_EQ(error_of(layer, saved(LayerAttention<half>(model.layer, from))), message);
  };
  expect_between({.capacity = 12, .attention = {.window = 9, .sinks = 1}},
                 {.capacity = 12, .attention = {.window = 9, .sinks = 2}},
                 "recycled: saved state: AttentionOptions.sinks = 1, expected 2, as here");
  expect_between({.capacity = 12}, {.capacity = 12, .sketch = {.keys = true}},
                 "recycled: saved state: SketchOptions.keys = 0, expected 1, as here");
  expect_between({.capacity = 12, .layer = 3}, {.capacity = 12, .layer = 4},
                 "recycled: saved state: LayerOptions.layer = 3, expected 4, as here");
  expect(Decoder<half, FixedStride>{model, options},
         "recycled: saved state: size of the schedule = 16, expected that of the one here");
  expect(Decoder<half, AlwaysFull>{model, options},
         "recycled: saved state: whether the schedule recycles = 1, expected 0, as here");
}

TEST(SavedState, IsNotAnyFile) {
  Small decoder = make();
  EXPECT_EQ(error_of(decoder, "GGUF and some more"),
            "recycled: saved state: first bytes = another, expected recycled, as here");
  EXPECT_EQ(error_of(decoder, saved(used(1, 40).layer(0))),
            "recycled: saved state: kind = another, expected decoder, as here");
  std::string other = saved(decoder);
  const std::uint32_t swapped = 0x04030201, newer = 7;
  std::memcpy(other.data() + 16, &swapped, 4);
  EXPECT_EQ(error_of(decoder, other).substr(0, 34), "recycled: saved state: byte order ");
  other = saved(decoder);
  std::memcpy(other.data() + 20, &newer, 4);
  EXPECT_EQ(error_of(decoder, other), "recycled: saved state: version = 7, expected 2, as here");
}

/// Bytes asked for by `f`, given back or not.
template <class F>
std::size_t asked_by(const F& f) {
  const std::size_t before = reference::bytes_asked;
  f();
  return reference::bytes_asked - before;
}

/// What is refused changes nothing, and what is taken can be worked with: no state leads out of bounds (which the
/// sanitizers see), or to more memory than it is long and the decoder takes.
TEST(SavedState, MadeToHarmDoesNone) {
  reference::Random random(3);
  const std::vector<std::int64_t> extremes{-1,
                                           0,
                                           1,
                                           2,
                                           12,
                                           13,
                                           59,
                                           60,
                                           61,
                                           64,
                                           1000,
                                           index_t{1} << 31,
                                           index_t{1} << 40,
                                           (index_t{1} << 40) + 1,
                                           INT64_MAX,
                                           INT64_MIN,
                                           INT64_MAX - 1,
                                           0x7FC00000,
                                           0x7F800000FF800000};
  Small decoder = used(2, 20);
  const std::string before = saved(decoder);
  const std::string states[] = {saved(used(1, 40)), saved(make()), saved([] {
                                  Small chosen = make();
                                  Tokens tokens(model.layer, 4);
                                  reference::prefill(chosen, tokens.next(30));
                                  chosen.choose_positions(0, std::vector<index_t>{1, 2, 3, 4});
                                  return chosen;
                                }())};
  ASSERT_TRUE(signed_again(states[0]) == states[0]);
  const std::size_t of_decoder = asked_by([&] { const Small copy = decoder; });
  Tokens tokens(model.layer, 5);
  int taken = 0;
  const auto harm_at = [&](const std::string& state, std::size_t place) {
    std::string harmful = state;
    const std::int64_t value =
        extremes[static_cast<std::size_t>(random.between(0, static_cast<index_t>(extremes.size()) - 1))];
    std::memcpy(harmful.data() + place, &value, random.between(0, 1) == 0 ? 4 : 8);
    std::istringstream stream(signed_again(harmful));
    std::string error;
    const std::size_t asked = asked_by([&] { error = message_of([&] { decoder.load(stream); }); });
    ASSERT_LE(asked, harmful.size() + of_decoder) << error;
    if (!error.empty()) {
      ASSERT_EQ(error.substr(0, 9), "recycled:");
      return;
    }
    ++taken;
    reference::decode(decoder, tokens.next(6));
    decoder.rollback(3);
    reference::prefill(decoder, tokens.next(2));
    reference::decode(decoder, tokens.next(3));
    decoder = used(2, 20);
  };
  for (const std::string& state : states) {
    for (std::size_t place = 24; place + 16 <= state.size(); place += 4 * reference::of_many) {
      harm_at(state, place);
      harm_at(state, place);
    }
    EXPECT_TRUE(saved(decoder) == before);
  }
  EXPECT_GT(taken, 100);
}

/// There are no sets that a choice could be in.
TEST(SavedState, OfALayerThatNeverRecyclesHoldsNoChoice) {
  using Full = Decoder<half, AlwaysFull>;
  Full decoder(model, {.capacity = 12});
  Tokens tokens(model.layer, 6);
  reference::decode(decoder, tokens.next(1));
  const std::string state = saved(decoder);
  int refused = 0;
  for (std::size_t place = 24; place + 16 <= state.size(); place += 4) {
    for (const std::int64_t value : {1, 2}) {
      std::string harmful = state;
      std::memcpy(harmful.data() + place, &value, sizeof value);
      Full loaded = decoder;
      const std::string error = error_of(loaded, signed_again(harmful));
      if (error.find("length that a set was chosen for = ") != std::string::npos) ++refused;
      if (error.empty()) reference::decode(loaded, tokens.next(2));
    }
  }
  EXPECT_GE(refused, 2);
}

TEST(SavedState, IsNotLoadedIntoADecoderThatWasMovedFrom) {
  Small decoder = used(1, 40);
  const std::string state = saved(decoder);
  const Small other = std::move(decoder);
  // NOLINTNEXTLINE(bugprone-use-after-move): nothing is left of it
  EXPECT_EQ(error_of(decoder, state), "recycled: saved state: ModelShape.layers = 1, expected 0, as here");
}

/// Every head takes memory for what was saved of it, and none for what was saved of another.
TEST(SavedState, OfASketchThatIsCutShortTakesNoMoreMemoryThanItIsLong) {
  constexpr Shape wide{64, 64, 4};
  using Layer = LayerAttention<half, FixedStride>;
  const Layer empty(wide, {.capacity = 8, .sketch = {.coordinates = 4}});
  Layer layer = empty;
  reference::Random random(2);
  constexpr index_t length = 4096;
  const auto cache = reference::Cache<half>::random(wide, length, random);
  layer.observe(random.row(wide.query_size()), length);
  layer.prepare(cache.view(length));
  const std::string state = saved(layer);
  Layer loaded = empty;
  const std::size_t of_layer = asked_by([&] { const Layer copy = loaded; });
  for (const std::size_t part : {2U, 3U, 5U, 20U, 50U, 100U}) {
    std::istringstream stream(state.substr(0, state.size() / part));
    const std::size_t asked = asked_by([&] { EXPECT_NE(message_of([&] { loaded.load(stream); }), ""); });
    EXPECT_LE(asked, 4 * state.size() / part + of_layer) << "a part of " << part;
  }
}

}  // namespace
