// Layers that share a scratch compute what they would alone; copies share nothing.
#include <gtest/gtest.h>

#include <memory>

#include "reference/feed.hpp"
#include "reference/messages.hpp"

namespace {

using namespace recycled;
using reference::Bits;
using reference::Token;
using reference::Tokens;

constexpr Shape narrow{6, 2, 40};
constexpr Shape wide{4, 4, 96, 64};

/// A decoder of one type and shape, and the tokens it meets.
template <class T>
struct Sequence {
  Sequence(const Shape& shape, index_t capacity, std::uint64_t seed)
      : tokens(Tokens(shape, seed).next(160)), decoder({2, shape}, {.capacity = capacity}, {4, 0.9F}, kept) {}

  Bits prompt() { return reference::prefill(decoder, {tokens.begin(), tokens.begin() + 100}); }
  Bits step(index_t i) { return reference::decode(decoder, {tokens[reference::at(100 + i)]}); }

  static constexpr TopK kept{.pool = 3, .observation_window = 5};
  std::vector<Token> tokens;
  Decoder<T, QuerySimilarity> decoder;
};

TEST(Scratch, SharedByUnlikeLayersChangesNoBit) {
  Sequence<half> a_alone(narrow, 20, 1), a(narrow, 20, 1);
  Sequence<q8_0> b_alone(wide, 31, 2), b(wide, 31, 2);
  const auto scratch = std::make_shared<Scratch>();
  a.decoder.share(scratch);
  b.decoder.share(scratch);
  EXPECT_EQ(b.prompt(), b_alone.prompt());
  EXPECT_EQ(a.prompt(), a_alone.prompt());
  for (index_t i = 0; i < 60; ++i) {
    EXPECT_EQ(a.step(i), a_alone.step(i)) << i;
    EXPECT_EQ(b.step(i), b_alone.step(i)) << i;
  }
  EXPECT_EQ(a.decoder.statistics(), a_alone.decoder.statistics());
}

TEST(Scratch, IsNotSharedByACopy) {
  const auto scratch = std::make_shared<Scratch>();
  Sequence<half> original(narrow, 20, 1);
  original.decoder.share(scratch);
  original.prompt();
  const long users = scratch.use_count();
  EXPECT_EQ(users, 1 + original.decoder.layers());
  Decoder fork = original.decoder.fork();
  LayerAttention layer = original.decoder.layer(0);
  EXPECT_EQ(scratch.use_count(), users);
  layer = original.decoder.layer(1);
  fork = original.decoder;
  EXPECT_EQ(scratch.use_count(), users);
  EXPECT_EQ(reference::decode(fork, {original.tokens.back()}), original.step(59));
}

TEST(Scratch, MovesWithItsLayer) {
  const auto scratch = std::make_shared<Scratch>();
  LayerAttention<float> layer(narrow, {.capacity = 20});
  layer.share(scratch);
  LayerAttention<float> moved = std::move(layer);
  EXPECT_EQ(scratch.use_count(), 2);
  layer = moved;
  EXPECT_EQ(scratch.use_count(), 2);
}

TEST(Scratch, OfNobodyIsRefused) {
  LayerAttention<float> layer(narrow, {.capacity = 20});
  EXPECT_EQ(message_of([&] { layer.share(nullptr); }), "recycled: scratch = nullptr, expected a scratch");
  Decoder<float> decoder({2, narrow}, {.capacity = 20});
  EXPECT_EQ(message_of([&] { decoder.share(nullptr); }), "recycled: scratch = nullptr, expected a scratch");
  reference::decode(decoder, Tokens(narrow, 1).next(2));
}

}  // namespace
