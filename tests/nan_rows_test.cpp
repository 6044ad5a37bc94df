// What is no row of a token's attention is never read, and a row that is no number stays where it was attended.
#include <gtest/gtest.h>

#include <cmath>

#include "reference/feed.hpp"

namespace {

using namespace recycled;
using reference::Bits;
using reference::Cache;
using reference::heads_with_nan;
using reference::Layout;

constexpr Shape shape{6, 3, 32, 64};
constexpr index_t prompt = 80;
constexpr index_t length = 120;
constexpr AttentionOptions windowed{.window = 20, .sinks = 2};

/// Prefill and steps over one host cache. Before the step at a length, `poison` may spoil rows that it must not read.
template <class T, class Policy, class Poison>
Bits run(Cache<T> cache, const LayerOptions& options, const Policy& policy, const Poison& poison) {
  reference::Random random(7);
  LayerAttention<T, Policy> layer(shape, options, policy);
  std::vector<float> out(reference::at(prompt * shape.output_size()));
  poison(cache, prompt);
  layer.prefill(random.row(prompt * shape.query_size()), cache.view(prompt), out);
  Bits all = reference::bits(out);
  out.resize(reference::at(shape.output_size()));
  for (index_t end = prompt + 1; end <= length; ++end) {
    poison(cache, end);
    layer.step(random.row(shape.query_size()), cache.view(end), out);
    const Bits one = reference::bits(out);
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

template <class T>
class Poison : public testing::Test {
 protected:
  static Cache<T> cache(Layout layout = {}) {
    reference::Random random(3);
    return Cache<T>::random(shape, length, random, layout);
  }
  static void nothing(Cache<T>& /*cache*/, index_t /*end*/) {}
  static void spoil(Cache<T>& cache, index_t position) {
    for (index_t g = 0; g < shape.kv_heads; ++g) {
      cache.poison_key(position, g);
      cache.poison_value(position, g);
    }
  }
};
using Types = testing::Types<float, half, bfloat16, q8_0>;
TYPED_TEST_SUITE(Poison, Types);

TYPED_TEST(Poison, BetweenAndBehindTheRowsChangesNoBit) {
  const LayerOptions options{.capacity = 12};
  const Bits clean = run(this->cache(), options, FixedStride{4}, this->nothing);
  for (const Layout layout :
       {Layout{.padding = 1, .room = 40}, Layout{.position_major = true, .padding = 3, .offset = 1}}) {
    EXPECT_TRUE(run(this->cache(layout), options, FixedStride{4}, this->nothing) == clean);
  }
}

TYPED_TEST(Poison, BeyondTheLengthChangesNoBit) {
  for (const AttentionOptions& attention : {AttentionOptions{}, windowed}) {
    const LayerOptions options{.capacity = 12, .attention = attention};
    const Bits clean = run(this->cache(), options, FixedStride{4}, this->nothing);
    const Cache<TypeParam> sound = this->cache();
    const auto future = [&](Cache<TypeParam>& cache, index_t end) {
      cache = sound;
      for (index_t j = end; j < length; ++j) this->spoil(cache, j);
    };
    EXPECT_TRUE(run(this->cache(), options, FixedStride{4}, future) == clean);
    EXPECT_TRUE(run(this->cache(), options, AlwaysFull{}, future) ==
                run(this->cache(), options, AlwaysFull{}, this->nothing));
  }
}

TYPED_TEST(Poison, OutOfTheWindowChangesNoBit) {
  for (const index_t capacity : {6, 100}) {
    const LayerOptions options{.capacity = capacity, .attention = windowed};
    // The first token that is decoded sees from here on; the prompt's tokens saw the rows before.
    const auto past = [&](Cache<TypeParam>& cache, index_t end) {
      for (index_t j = windowed.sinks; end > prompt && j < end - windowed.window; ++j) this->spoil(cache, j);
    };
    const auto prepared = [&](Cache<TypeParam>& cache, index_t end) {
      if (end > prompt + 1) past(cache, end);  // the first step still looks with the prompt's last query
    };
    EXPECT_TRUE(run(this->cache(), options, FixedStride{4}, prepared) ==
                run(this->cache(), options, FixedStride{4}, this->nothing));
    EXPECT_TRUE(run(this->cache(), options, AlwaysFull{}, past) ==
                run(this->cache(), options, AlwaysFull{}, this->nothing));
  }
}

TYPED_TEST(Poison, OfRowsThatARecycledStepDoesNotHoldChangesNoBit) {
  const LayerOptions options{.capacity = 12};
  const auto late = [&](Cache<TypeParam>& cache, index_t end) {
    // The set was chosen in the first step and lives in the layer: the host may do with old rows what it likes.
    for (index_t j = 0; end > prompt + 1 && j + 1 < end; ++j) this->spoil(cache, j);
  };
  EXPECT_TRUE(run(this->cache(), options, NeverFull{}, late) ==
              run(this->cache(), options, NeverFull{}, this->nothing));
}

TYPED_TEST(Poison, OfAnAttendedRowSpreadsToItsHeadAlone) {
  for (const bool key : {true, false}) {
    Cache<TypeParam> cache = this->cache();
    const Cache<TypeParam> clean = cache;
    key ? cache.poison_key(33, 1) : cache.poison_value(33, 1);
    LayerAttention<TypeParam, AlwaysFull> layer(shape, {}), sound(shape, {});
    reference::Random random(2);
    const std::vector<float> query = random.row(shape.query_size());
    std::vector<float> out(reference::at(shape.output_size())), expected(out.size());
    layer.step(query, cache.view(100), out);
    sound.step(query, clean.view(100), expected);
    EXPECT_EQ(heads_with_nan(out, shape), (std::vector<bool>{false, true, false}));
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (i / 128 != 1) {
        EXPECT_EQ(out[i], expected[i]);
      }
    }
  }
}

/// The values of one KV head in an output [query_heads, value_dim].
std::vector<float> head_of(const std::vector<float>& out, index_t g) {
  const index_t size = shape.group() * shape.value_dim;
  return {out.begin() + g * size, out.begin() + (g + 1) * size};
}

TYPED_TEST(Poison, OfAHeldRowSpoilsItsHeadAsLongAsItIsHeld) {
  for (const bool key : {true, false}) {
    Cache<TypeParam> cache = this->cache();
    const Cache<TypeParam> clean = cache;
    key ? cache.poison_key(33, 1) : cache.poison_value(33, 1);
    LayerAttention<TypeParam, NeverFull> layer(shape, {.capacity = 12}), sound = layer;
    reference::Random random(2);
    std::vector<float> out(reference::at(shape.output_size())), expected(out.size());
    index_t end = 100;
    const auto step = [&](index_t held) -> bool {
      const std::vector<float> query = random.row(shape.query_size());
      const std::vector<index_t> set{held, 40, held, 41, held, 42};
      layer.choose_positions(set, cache.view(end));
      sound.choose_positions(set, clean.view(end));
      layer.step(query, cache.view(end), out);
      sound.step(query, clean.view(end++), expected);
      for (const index_t g : {0, 2}) EXPECT_EQ(head_of(out, g), head_of(expected, g));
      return heads_with_nan(out, shape)[1];
    };
    EXPECT_FALSE(step(50));
    EXPECT_TRUE(step(33));
    EXPECT_FALSE(step(51));
    EXPECT_EQ(head_of(out, 1), head_of(expected, 1));
  }
}

TYPED_TEST(Poison, OfAnyRowReachesNoOtherHeadHoweverSetsAreChosen) {
  for (const bool key : {true, false}) {
    for (const SketchOptions sketch : {SketchOptions{.coordinates = 8, .full_every = 4}, SketchOptions{.keys = true}}) {
      Cache<TypeParam> cache = this->cache();
      const Cache<TypeParam> clean = cache;
      for (index_t j = 5; j < length; j += 10) key ? cache.poison_key(j, 1) : cache.poison_value(j, 1);
      LayerAttention<TypeParam, FixedStride> layer(shape, {.capacity = 12, .sketch = sketch}, {2}), sound = layer;
      reference::Random random(2);
      std::vector<float> query = random.row(shape.query_size()), out(reference::at(shape.output_size())),
                         expected(out.size());
      layer.observe(query, prompt);
      sound.observe(query, prompt);
      index_t spoilt = 0, untouched = 0;
      for (index_t end = prompt + 1; end <= length; ++end) {
        for (float& x : query) x = 0.9F * x + 0.4F * random.normal();
        layer.step(query, cache.view(end), out);
        sound.step(query, clean.view(end), expected);
        for (const index_t g : {0, 2}) {
          EXPECT_EQ(head_of(out, g), head_of(expected, g)) << end;
          EXPECT_EQ(layer.recycled_positions(g), sound.recycled_positions(g)) << end;
        }
        const bool nan = heads_with_nan(out, shape)[1];
        ++(nan ? spoilt : untouched);
        // A value says nothing of which rows matter: the same are read, and what is read says the same.
        if (!key && !nan) {
          EXPECT_EQ(head_of(out, 1), head_of(expected, 1)) << end;
        }
        if (!key) {
          EXPECT_EQ(layer.recycled_positions(1), sound.recycled_positions(1)) << end;
        }
        if (layer.last_step(1) == StepKind::full) {
          EXPECT_TRUE(nan) << end;
        }
      }
      EXPECT_GT(spoilt, 0);
      if (!key) {
        EXPECT_GT(untouched, 0);
      }
    }
  }
}

TYPED_TEST(Poison, OfAKeyMakesItsHeadTakeFullStepsUntilItIsTakenBack) {
  Cache<TypeParam> cache = this->cache();
  const Cache<TypeParam> clean = cache;
  constexpr index_t odd = 100;
  cache.poison_key(odd, 1);
  LayerAttention<TypeParam, FixedStride> layer(shape, {.capacity = 12}, {4});
  reference::Random random(2);
  std::vector<float> query = random.row(shape.query_size()), out(reference::at(shape.output_size()));
  layer.observe(query, prompt);
  bool refreshed = false;  // the odd head, since the key is there
  index_t full = 0;
  const auto step = [&](const Cache<TypeParam>& rows) { layer.step(query, rows.view(layer.length() + 1), out); };
  while (layer.length() < length) {
    step(cache);
    EXPECT_EQ(layer.last_step(1) == StepKind::full, refreshed || layer.last_step(0) == StepKind::full);
    refreshed = refreshed || (layer.length() > odd && layer.last_step(0) == StepKind::full);
    full += refreshed ? 1 : 0;
    EXPECT_EQ(heads_with_nan(out, shape)[1], layer.length() > odd) << layer.length();
  }
  EXPECT_GT(full, 12);
  layer.truncate(odd);
  step(clean);
  EXPECT_EQ(layer.last_step(1), StepKind::full);
  step(clean);
  EXPECT_EQ(layer.last_step(1), StepKind::recycled);
  EXPECT_EQ(heads_with_nan(out, shape), (std::vector<bool>{false, false, false}));
}

}  // namespace
