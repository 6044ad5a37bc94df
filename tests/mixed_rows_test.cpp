// Layers that recycle rows of another type than the host's: what they attend to, count, and share with the others.
#include <gtest/gtest.h>

#include <recycled/recycled.hpp>

#include "reference/fed.hpp"
#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::at, reference::Bits, reference::Positions, reference::Token;

constexpr index_t capacity = 30;

template <class Host, class Recycled, index_t head_dim, index_t value_dim>
struct Pair {
  using T = Host;
  using R = Recycled;
  static constexpr Shape shape{6, 2, head_dim, value_dim};
};

template <class P>
class MixedRows : public testing::Test {
 protected:
  template <class Policy, class Rows = typename P::R>
  using Own = Decoder<typename P::T, Policy, TopK, Rows>;
  static constexpr LayerOptions options{.capacity = capacity};

  /// A token's rows as the host has them, rounded once more as they are recycled.
  static Token recycled_rows(const Token& token) {
    const auto twice = [](const std::vector<float>& row) {
      return reference::rounded<typename P::R>(reference::rounded<typename P::T>(row));
    };
    return {token.query, twice(token.key), twice(token.value)};
  }
};
// Dimensions that are no whole vectors, too.
using Pairs = testing::Types<Pair<float, half, 46, 20>, Pair<float, bfloat16, 46, 20>, Pair<q8_0, half, 64, 32>>;
TYPED_TEST_SUITE(MixedRows, Pairs);

TYPED_TEST(MixedRows, AreWhatARecycledStepReads) {
  using T = typename TypeParam::T;
  using R = typename TypeParam::R;
  const Shape shape = detail::checked<T>(TypeParam::shape);
  typename TestFixture::template Own<SelfCalibrating> decoder({1, shape}, this->options, {.late = 0.4F});
  reference::Tokens tokens(shape, 3);
  reference::Fed<T> host(shape);
  reference::Fed<float> recycled(shape);
  const auto feed = [&](const Token& token) {
    host.add(token);
    recycled.add(this->recycled_rows(token));
  };
  const std::vector<Token> prompt = tokens.next(200);
  for (const Token& token : prompt) feed(token);
  reference::prefill(decoder, prompt);
  std::vector<float> out(at(shape.output_size()));
  int steps[2] = {};
  bool mixed = false;
  Positions held[2];
  for (int step = 0; step < 80; ++step) {
    const Token token = tokens.next();
    feed(token);
    decoder.step(0, token.query, token.key, token.value, out);
    const auto& layer = decoder.layer(0);
    mixed = mixed || layer.last_step(0) != layer.last_step(1);
    for (index_t g = 0; g < 2; ++g) {
      const bool full = layer.last_step(g) == StepKind::full;
      ++steps[full];
      Positions seen = held[g];
      seen.push_back(layer.length() - 1);
      if (full) seen = reference::seen_by(layer.length() - 1, {});
      held[g] = layer.recycled_positions(g);
      if (step == 0) continue;  // the prompt's set was not to be seen before
      const auto truth = full ? host.attend(g, token.query, seen) : recycled.attend(g, token.query, seen);
      const auto dim = at(shape.value_dim);
      for (std::size_t r = 0; r < 3; ++r)
        ASSERT_TRUE(reference::near(std::span(out.data() + (at(g) * 3 + r) * dim, dim), truth[r])) << step;
    }
  }
  EXPECT_GT(steps[0], 20);
  EXPECT_GT(steps[1], 20);
  EXPECT_TRUE(mixed) << "steps in which one head reads the host's rows, and the other its own";
  const HeadStatistics total = decoder.statistics()[0].total();
  const auto bytes = [&](auto type) {
    using S = decltype(type);
    return static_cast<std::uint64_t>(kernels::row_bytes<S>(shape.head_dim + shape.value_dim));
  };
  std::uint64_t full_rows = 0;
  for (index_t g = 0; g < 2; ++g) {
    const HeadStatistics head = decoder.statistics()[0].heads[at(g)];
    full_rows += head.rows_read - head.recycled_steps * (capacity + 1);
  }
  EXPECT_EQ(total.bytes_read, full_rows * bytes(T{}) + total.recycled_steps * (capacity + 1) * bytes(R{}));
}

TYPED_TEST(MixedRows, LeaveFullStepsAndSetsAsTheyAre) {
  using T = typename TypeParam::T;
  const Shape shape = TypeParam::shape;
  typename TestFixture::template Own<FixedStride> mixed({2, shape}, this->options, {.stride = 3});
  typename TestFixture::template Own<FixedStride, T> plain({2, shape}, this->options, {.stride = 3});
  reference::Tokens tokens(shape, 4);
  const std::vector<Token> prompt = tokens.next(150);
  EXPECT_EQ(reference::prefill(mixed, prompt), reference::prefill(plain, prompt));
  for (int step = 0; step < 20; ++step) {
    const std::vector<Token> token = tokens.next(1);
    const Bits a = reference::decode(mixed, token), b = reference::decode(plain, token);
    for (index_t i = 0; i < 2; ++i) {
      for (index_t g = 0; g < 2; ++g)
        ASSERT_EQ(mixed.layer(i).recycled_positions(g), plain.layer(i).recycled_positions(g));
    }
    if (mixed.layer(0).last_step(0) == StepKind::full) {
      EXPECT_TRUE(std::equal(a.begin(), a.begin() + static_cast<index_t>(a.size() / 2), b.begin()));
    }
  }
}

TYPED_TEST(MixedRows, WithRoomForAllAreNotNeeded) {
  const Shape shape = TypeParam::shape;
  typename TestFixture::template Own<NeverFull> all({1, shape}, {.capacity = 100});
  Decoder<typename TypeParam::T, AlwaysFull> full({1, shape}, {});
  reference::Tokens tokens(shape, 5);
  const std::vector<Token> prompt = tokens.next(40), next = tokens.next(20);
  reference::prefill(all, prompt);
  reference::prefill(full, prompt);
  EXPECT_EQ(reference::decode(all, next), reference::decode(full, next));
}

TYPED_TEST(MixedRows, HaveTheSameBitsOnAnyNumberOfThreads) {
  const Shape shape = TypeParam::shape;
  const auto run = [&](auto&& executor) {
    LayerOptions sketched = this->options;
    sketched.sketch.coordinates = 16;
    typename TestFixture::template Own<SelfCalibrating> decoder({2, shape}, sketched);
    reference::Tokens tokens(shape, 6);
    reference::prefill(decoder, tokens.next(120), executor);
    Bits result = reference::decode(decoder, tokens.next(30), executor);
    decoder.rollback(5);
    const Bits more = reference::decode(decoder, tokens.next(10), executor);
    result.insert(result.end(), more.begin(), more.end());
    return result;
  };
  ThreadPool pool(3);
  EXPECT_EQ(run(Serial{}), run(pool));
}

TYPED_TEST(MixedRows, AreReadThroughPagesAndWindows) {
  using T = typename TypeParam::T;
  using R = typename TypeParam::R;
  const Shape shape = detail::checked<T>(TypeParam::shape);
  const AttentionOptions attention{.window = 70, .sinks = 3};
  reference::Random random(8);
  const auto cache = reference::Cache<T>::random(shape, 150, random, {.page = 5});
  LayerAttention<T, FixedStride, TopK, R> layer(shape, {.capacity = capacity, .attention = attention}, {.stride = 4});
  const auto dim = at(shape.value_dim);
  std::vector<float> out(at(shape.output_size()));
  Positions held[2];
  for (index_t length = 100; length <= 150; ++length) {
    const std::vector<float> query = random.row(shape.query_size());
    layer.step(query, cache.view(length), out);
    for (index_t g = 0; g < 2; ++g) {
      const Positions visible = reference::seen_by(length - 1, attention);
      reference::Rows keys = cache.keys(g), values = cache.values(g);
      Positions seen = visible;
      if (layer.last_step(g) == StepKind::recycled) {
        seen = held[g];
        std::erase_if(seen, [&](index_t p) { return !std::binary_search(visible.begin(), visible.end(), p); });
        seen.push_back(length - 1);
        for (reference::Rows* rows : {&keys, &values}) {
          for (std::vector<float>& row : *rows) row = reference::rounded<R>(row);
        }
      }
      for (index_t r = 0; r < 3; ++r) {
        const index_t h = g * 3 + r;
        const std::span<const float> own{query.data() + h * shape.head_dim, at(shape.head_dim)};
        const auto truth = reference::attend(own, keys, values, std::span(seen), attention);
        ASSERT_TRUE(reference::near(std::span(out.data() + at(h) * dim, dim), truth)) << length;
      }
      held[g] = layer.recycled_positions(g);
    }
  }
  EXPECT_EQ(layer.statistics().heads[0].full_steps, 13U);
}

}  // namespace
