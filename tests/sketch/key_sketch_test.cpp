// The sketch of a layer's keys: its logits against what it was built from, and what stays the same however keys come.
#include <gtest/gtest.h>

#include <cmath>
#include <recycled/recycled.hpp>
#include <recycled/sketch/key_sketch.hpp>
#include <vector>

#include "reference/feed.hpp"
#include "reference/sketch.hpp"

namespace {

using namespace recycled;
using reference::renew;

/// Keys that lie near a few directions, as those of models do.
template <class T>
struct Keys {
  Keys(const Shape& layer, index_t positions, std::uint64_t seed = 1)
      : shape(detail::checked<T>(layer)), length(positions) {
    reference::Random random(seed);
    const index_t row = shape.kv_heads * shape.head_dim;
    std::vector<float> spread(static_cast<std::size_t>(row));
    for (index_t i = 0; i < row; ++i)
      spread[static_cast<std::size_t>(i)] = 4 / (1 + 0.3F * static_cast<float>(i % shape.head_dim));
    for (index_t j = 0; j < positions; ++j) {
      for (index_t i = 0; i < row; ++i) exact.push_back(1 + spread[static_cast<std::size_t>(i)] * random.normal());
    }
    stored = Array<T>(positions * row / values_per_element<T>);
    encode(exact.data(), positions * row, stored.data());
    queries = random.row(64 * shape.query_size());
  }
  KvView<T> view(index_t positions) const {
    return KvView<T>::position_major(stored.data(), stored.data(), shape, positions);
  }
  /// The sketch's logits of the first query.
  std::vector<std::vector<float>> logits(KeySketch<T>& sketch, index_t g, index_t positions) const {
    return reference::logits(sketch, g, queries, positions, shape, 0.125F);
  }
  double exact_logit(index_t g, index_t r, index_t j) const {
    double sum = 0;
    for (index_t d = 0; d < shape.head_dim; ++d) {
      sum += static_cast<double>(queries[static_cast<std::size_t>((g * shape.group() + r) * shape.head_dim + d)]) *
             static_cast<double>(exact[static_cast<std::size_t>((j * shape.kv_heads + g) * shape.head_dim + d)]);
    }
    return 0.125 * sum;
  }

  Shape shape;
  index_t length;
  std::vector<float> exact, queries;
  Array<T> stored;
};

/// Share of the variance of exact logits over positions that the sketch's leave unexplained.
template <class T>
double unexplained(const Keys<T>& keys, KeySketch<T>& sketch) {
  double error = 0, variance = 0;
  for (index_t g = 0; g < keys.shape.kv_heads; ++g) {
    const auto logits = keys.logits(sketch, g, keys.length);
    for (index_t r = 0; r < keys.shape.group(); ++r) {
      double sum = 0, squares = 0, off_squares = 0;
      for (index_t j = 0; j < keys.length; ++j) {
        const double exact = keys.exact_logit(g, r, j);
        const double difference = static_cast<double>(logits[reference::at(r)][reference::at(j)]) - exact;
        sum += exact;
        squares += exact * exact;
        off_squares += difference * difference;
      }
      const auto n = static_cast<double>(keys.length);
      variance += squares - sum * sum / n;
      error += off_squares;
    }
  }
  return error / variance;
}

template <class T>
class KeySketchOf : public testing::Test {};
using Types = testing::Types<float, half, bfloat16, q8_0>;
TYPED_TEST_SUITE(KeySketchOf, Types);

TYPED_TEST(KeySketchOf, LogitsAreAboutThoseOfTheKeys) {
  for (const index_t group : {3, 9}) {
    const Keys<TypeParam> keys({2 * group, 2, 64}, 900);
    Serial serial;
    double before = 1;
    for (const index_t coordinates : {8, 16, 32, 64}) {
      KeySketch<TypeParam> sketch(keys.shape, coordinates);
      sketch.seen().add(keys.queries);
      renew(sketch, keys.view(900), keys.shape, serial);
      const double now = unexplained(keys, sketch);
      EXPECT_LT(now, before) << coordinates << " coordinates, " << group << " query heads for each KV head";
      before = now;
    }
    EXPECT_LT(before, 0.04);
  }
}

TYPED_TEST(KeySketchOf, KeysThatComeLaterGetTheCodesThatTheyWouldHaveGot) {
  const Keys<TypeParam> keys({6, 2, 64}, 400);
  Serial serial;
  KeySketch<TypeParam> whole(keys.shape, 24), grown(keys.shape, 24);
  renew(whole, keys.view(300), keys.shape, serial);
  renew(grown, keys.view(300), keys.shape, serial);
  const auto grow = [&](KeySketch<TypeParam>& sketch, index_t to) {
    sketch.reserve(to);
    for (index_t g = 0; g < 2; ++g) sketch.catch_up(g, keys.view(to));
  };
  grow(whole, 400);
  for (index_t length = 301; length <= 350; ++length) grow(grown, length);
  grown.truncate(310);  // taken back, and come again
  for (index_t length = 311; length < 400; length += 7) grow(grown, length);
  grow(grown, 400);
  for (index_t g = 0; g < 2; ++g) EXPECT_EQ(keys.logits(grown, g, 400), keys.logits(whole, g, 400));
}

TEST(KeySketch, SeesHowQueriesLieNotHowLongTheyAre) {
  const Keys<float> keys({4, 2, 32}, 300);
  const auto logits = [&](float factor) {
    std::vector<float> queries = keys.queries;
    for (float& q : queries) q *= factor;
    KeySketch<float> sketch(keys.shape, 8);
    Serial serial;
    sketch.seen().add(queries);
    renew(sketch, keys.view(300), keys.shape, serial);
    return keys.logits(sketch, 1, 300);
  };
  EXPECT_EQ(logits(1), logits(64));
  EXPECT_NE(logits(1), logits(0)) << "which say nothing: all directions count the same";
}

/// Keys drift away, as low frequencies of RoPE let them: what is coded is their difference to their neighbours.
TEST(KeySketch, FollowsKeysThatDrift) {
  Keys<float> keys({2, 1, 32}, 3000);
  for (index_t j = 0; j < 3000; ++j) {
    for (index_t d = 0; d < 32; ++d) {
      const float drift = 20 * std::sin(0.001F * static_cast<float>(j) + static_cast<float>(d));
      keys.exact[static_cast<std::size_t>(j * 32 + d)] += drift;
    }
  }
  encode(keys.exact.data(), 3000 * 32, keys.stored.data());
  Serial serial;
  KeySketch<float> sketch(keys.shape, 16);
  sketch.seen().add(keys.queries);
  renew(sketch, keys.view(300), keys.shape, serial);
  sketch.reserve(3000);
  sketch.catch_up(0, keys.view(3000));
  EXPECT_LT(unexplained(keys, sketch), 0.02);
}

TEST(KeySketch, LooksForNewAxesAsTheCacheGrows) {
  const Keys<float> keys({4, 2, 32}, 64);
  KeySketch<float> sketch(keys.shape, 16), other(keys.shape, 16, 5);
  Serial serial;
  EXPECT_TRUE(sketch.aged(0, 64));
  for (auto* one : {&sketch, &other}) {
    one->seen().add(keys.queries);
    renew(*one, keys.view(64), keys.shape, serial);
  }
  EXPECT_FALSE(sketch.aged(0, 95));
  EXPECT_TRUE(sketch.aged(0, 96));
  EXPECT_FALSE(other.aged(1, 90)) << "another layer";
  EXPECT_TRUE(other.aged(1, 91));
  sketch.truncate(40);
  EXPECT_FALSE(sketch.aged(0, 64)) << "most of what the axes were found from is still there";
  sketch.truncate(30);
  EXPECT_TRUE(sketch.aged(0, 64));
}

TEST(KeySketch, LooksForNewAxesOnceItHasSeenWhatQueriesAreLike) {
  const Keys<float> keys({4, 2, 32}, 64);
  KeySketch<float> sketch(keys.shape, 16);
  Serial serial;
  renew(sketch, keys.view(64), keys.shape, serial);
  for (index_t seen = 0; seen < 70; ++seen) {
    EXPECT_EQ(sketch.aged(0, 64), seen >= 64) << seen;
    EXPECT_EQ(sketch.aged(1, 64), seen >= 65) << seen << ", heads take turns";
    sketch.seen().add(std::span(keys.queries).first(static_cast<std::size_t>(keys.shape.query_size())));
  }
  renew(sketch, keys.view(64), keys.shape, serial);
  EXPECT_FALSE(sketch.aged(0, 64));
}

TEST(KeySketch, LooksOnceMoreAfterStepsThatAreNotTheSameForAllHeads) {
  const Keys<float> keys({4, 2, 32}, 64);
  KeySketch<float> first(keys.shape, 16), last(keys.shape, 16, 15);
  Serial serial;
  for (auto* one : {&first, &last}) renew(*one, keys.view(64), keys.shape, serial);
  for (index_t step = 1; step <= 312; ++step) {
    for (auto* one : {&first, &last})
      one->seen().add_step(std::span(keys.queries).first(reference::at(keys.shape.query_size())), 1000 + step);
    EXPECT_EQ(first.aged(0, 64), step >= 64) << step;
    EXPECT_EQ(last.aged(1, 64), step >= 312) << step;
  }
}

TEST(KeySketch, ReadsScatteredRows) {
  const Keys<half> keys({4, 2, 48}, 300);
  std::vector<std::int32_t> table;
  Array<half> shuffled(keys.stored.size());
  const index_t row = 2 * 48;
  for (index_t j = 0; j < 300; ++j) {
    table.push_back(static_cast<std::int32_t>((j * 77 + 5) % 300));
    std::copy_n(keys.stored.data() + j * row, row, shuffled.data() + table.back() * row);
  }
  Serial serial;
  KeySketch<half> straight(keys.shape, 32), scattered(keys.shape, 32);
  renew(straight, keys.view(300), keys.shape, serial);
  KvView<half> view = KvView<half>::position_major(shuffled.data(), shuffled.data(), keys.shape, 300);
  view.pages = {table.data(), 1};
  renew(scattered, view, keys.shape, serial);
  for (index_t g = 0; g < 2; ++g) EXPECT_EQ(keys.logits(scattered, g, 300), keys.logits(straight, g, 300));
}

TEST(KeySketch, KnowsWhichDirectionsTheLastQueriesCareAbout) {
  // Each of the last 64 tokens looks at one of four directions in which keys vary little, other ones for each KV head;
  // those before them, which no longer count, looked elsewhere.
  const Keys<float> keys({6, 3, 32}, 600);
  constexpr std::size_t before = 20, token = 6 * 32;
  const auto first = [](std::size_t i) { return 28 - 8 * (i % token / 64); };
  std::vector<float> queries((before + 64) * token);
  for (std::size_t i = 0; i < queries.size(); ++i) {
    const std::size_t t = i / token, direction = t < before ? t % 4 : first(i) + t % 4;
    queries[i] = (i % 32 == direction ? 1 : 0.01F) * keys.queries[i % keys.queries.size()];
  }
  Keys<float> looking = keys;
  for (std::size_t i = 0; i < token; ++i) looking.queries[i] *= i % 32 / 4 == first(i) / 4 ? 1 : 0.01F;
  Serial serial;
  KeySketch<float> plain(keys.shape, 8), knowing(keys.shape, 8), one_by_one(keys.shape, 8);
  renew(plain, keys.view(600), keys.shape, serial);
  knowing.seen().add(queries);
  renew(knowing, keys.view(600), keys.shape, serial);
  for (std::size_t t = 0; t < before + 64; ++t) one_by_one.seen().add(std::span(queries).subspan(t * token, token));
  renew(one_by_one, keys.view(600), keys.shape, serial);
  EXPECT_GT(unexplained(looking, plain), 0.8);
  EXPECT_LT(unexplained(looking, knowing), 0.1);
  EXPECT_LT(unexplained(looking, one_by_one), 0.1);
}

TEST(SketchAxes, ThatNothingIsLeftOfAreZero) {
  constexpr index_t stride = 32;
  Array<float> memory(3 * stride);
  std::fill(memory.begin(), memory.end(), 0.0F);
  const detail::Matrix rows{memory.data(), stride};
  rows[0][5] = 3;
  rows[2][5] = 7;  // as the first one
  detail::orthonormalize<simd::native>(rows, 3);
  for (index_t i = 0; i < 3 * stride; ++i) EXPECT_FLOAT_EQ(memory.data()[i], i == 5 ? 1 : 0) << i;
}

TEST(KeySketch, OfKeysThatAreNoNumbersHasNoAxes) {
  for (const float odd : {std::nanf(""), std::numeric_limits<float>::infinity(), 1e30F, 0.0F}) {
    Keys<float> keys({2, 1, 64}, 300);
    std::fill(keys.stored.begin(), keys.stored.end(), odd);
    Serial serial;
    KeySketch<float> sketch(keys.shape, 32);
    renew(sketch, keys.view(300), keys.shape, serial);
    for (const auto& row : keys.logits(sketch, 0, 300)) {
      for (const float logit : row) EXPECT_TRUE(std::isfinite(logit) || odd > 1e29F) << logit;
    }
  }
}

TEST(KeySketch, MoreCoordinatesThanDimensionsAreNoHarm) {
  const Keys<float> keys({3, 1, 13}, 100);
  Serial serial;
  KeySketch<float> sketch(keys.shape, 32);
  renew(sketch, keys.view(100), keys.shape, serial);
  EXPECT_LT(unexplained(keys, sketch), 0.04);
}

TEST(KeySketch, HasTheSameBitsOnAnyNumberOfThreads) {
  const Keys<half> keys({12, 4, 64}, 500);
  Serial serial;
  ThreadPool pool(3);
  KeySketch<half> one(keys.shape, 32), three(keys.shape, 32);
  renew(one, keys.view(500), keys.shape, serial);
  renew(three, keys.view(500), keys.shape, pool);
  for (index_t g = 0; g < 4; ++g) EXPECT_EQ(keys.logits(one, g, 500), keys.logits(three, g, 500));
}

}  // namespace
