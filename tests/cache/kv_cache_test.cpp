#include <gtest/gtest.h>

#include <recycled/cache/kv_cache.hpp>
#include <stdexcept>

#include "reference/random.hpp"

namespace {

using namespace recycled;
using reference::Rows;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// A cache and all rows that went into it, head after head.
template <class T>
class KvCacheOf : public testing::Test {
 protected:
  static constexpr Shape shape{6, 3, 32, 64};

  KvCacheOf() : random(5) {}

  void append(KvCache<T>& cache, index_t tokens) {
    std::vector<float> all_keys, all_values;
    for (index_t i = 0; i < tokens * shape.kv_heads; ++i) {
      keys.push_back(random.row(32, 3));
      values.push_back(random.row(64, 3));
      all_keys.insert(all_keys.end(), keys.back().begin(), keys.back().end());
      all_values.insert(all_values.end(), values.back().begin(), values.back().end());
    }
    const index_t before = cache.length();
    const KvView<T> staged = cache.stage(all_keys.data(), all_values.data(), tokens);
    EXPECT_EQ(staged.length, before + tokens);
    EXPECT_EQ(cache.length(), before);  // not before commit()
    cache.commit(tokens);
    EXPECT_EQ(cache.length(), before + tokens);
  }
  void truncate(KvCache<T>& cache, index_t length) {
    cache.truncate(length);
    keys.resize(at(length * shape.kv_heads));
    values.resize(keys.size());
  }
  void expect_rows(const KvCache<T>& cache, const Rows& k, const Rows& v) const {
    const KvView<T> view = cache.view();
    ASSERT_EQ(view.length * shape.kv_heads, static_cast<index_t>(k.size()));
    for (index_t j = 0; j < view.length; ++j) {
      for (index_t g = 0; g < shape.kv_heads; ++g) {
        std::vector<float> key(32), value(64);
        decode(view.key(j, g), 32, key.data());
        decode(view.value(j, g), 64, value.data());
        ASSERT_EQ(key, reference::rounded<T>(k[at(j * shape.kv_heads + g)])) << "position " << j << ", head " << g;
        ASSERT_EQ(value, reference::rounded<T>(v[at(j * shape.kv_heads + g)])) << "position " << j << ", head " << g;
      }
    }
  }

  reference::Random random;
  Rows keys, values;  // [position * kv_heads + head]
};
using Types = testing::Types<float, half, bfloat16, q8_0>;
TYPED_TEST_SUITE(KvCacheOf, Types);

TYPED_TEST(KvCacheOf, KeepsEveryRowWhileItGrows) {
  KvCache<TypeParam> cache(this->shape, 0);
  EXPECT_EQ(cache.length(), 0);
  for (const index_t tokens : {1, 1, 254, 1, 300, 7}) {
    this->append(cache, tokens);
    this->expect_rows(cache, this->keys, this->values);
  }
}

TYPED_TEST(KvCacheOf, DoesNotMoveWithinTheReservedRoom) {
  KvCache<TypeParam> cache(this->shape, 700);
  this->append(cache, 1);
  const TypeParam* first = cache.view().keys;
  this->append(cache, 699);
  EXPECT_EQ(cache.view().keys, first);
  this->append(cache, 1);
  EXPECT_NE(cache.view().keys, first);
  this->expect_rows(cache, this->keys, this->values);
}

TYPED_TEST(KvCacheOf, AHeadsRowsAreOneRunOfMemory) {
  KvCache<TypeParam> cache(this->shape, 20);
  this->append(cache, 10);
  const KvView<TypeParam> view = cache.view();
  EXPECT_EQ(view.key_strides.position, 32 / values_per_element<TypeParam>);
  EXPECT_EQ(view.value_strides.position, 64 / values_per_element<TypeParam>);
}

TYPED_TEST(KvCacheOf, TruncateForgetsTheEnd) {
  KvCache<TypeParam> cache(this->shape, 0);
  this->append(cache, 40);
  this->truncate(cache, 13);
  this->expect_rows(cache, this->keys, this->values);
  this->append(cache, 5);
  this->expect_rows(cache, this->keys, this->values);
  cache.truncate(100);  // more than there is
  EXPECT_EQ(cache.length(), 18);
  this->truncate(cache, 0);
  this->append(cache, 3);
  this->expect_rows(cache, this->keys, this->values);
}

TYPED_TEST(KvCacheOf, AStagedRowThatIsNotCommittedIsReplacedByTheNext) {
  KvCache<TypeParam> cache(this->shape, 0);
  this->append(cache, 256);
  const std::vector<float> other(3 * 64, 9);
  cache.stage(other.data(), other.data(), 1);  // the room doubles here
  EXPECT_EQ(cache.length(), 256);
  this->expect_rows(cache, this->keys, this->values);
  this->append(cache, 2);
  this->expect_rows(cache, this->keys, this->values);
}

TYPED_TEST(KvCacheOf, WhatWasMovedFromIsEmptyAndBeginsAnew) {
  KvCache<TypeParam> cache(this->shape, 10);
  this->append(cache, 20);
  const KvCache<TypeParam> moved = std::move(cache);
  this->expect_rows(moved, this->keys, this->values);
  EXPECT_EQ(cache.length(), 0);  // NOLINT(bugprone-use-after-move)
  this->truncate(cache, 0);
  this->append(cache, 1);
  this->append(cache, 2);
  this->expect_rows(cache, this->keys, this->values);
}

TYPED_TEST(KvCacheOf, ACopySharesNothing) {
  KvCache<TypeParam> cache(this->shape, 10);
  this->append(cache, 20);
  const Rows old_keys = this->keys, old_values = this->values;
  const KvCache<TypeParam> copy = cache;
  this->truncate(cache, 15);
  this->append(cache, 30);
  this->expect_rows(copy, old_keys, old_values);
  this->expect_rows(cache, this->keys, this->values);
  KvCache<TypeParam> assigned;
  assigned = copy;
  EXPECT_NE(assigned.view().keys, copy.view().keys);
  this->expect_rows(assigned, old_keys, old_values);
}

TEST(KvCache, RefusesASizeThatNoMemoryHas) {
  using Cache = KvCache<float>;
  EXPECT_THROW(Cache({1, 1, 1 << 24, 1}, index_t{1} << 40), std::invalid_argument);
  EXPECT_THROW(Cache({1 << 20, 1 << 20, 1 << 20, 1}, index_t{1} << 40), std::invalid_argument);
  Cache cache({1, 1, 4, 4}, 10);
  const float* keys = cache.view().keys;
  EXPECT_THROW(cache.reserve(index_t{1} << 60), std::invalid_argument);
  EXPECT_EQ(cache.view().keys, keys);
}

}  // namespace
