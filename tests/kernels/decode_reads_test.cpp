// What the decode kernels read, and what they don't: NaN goes where a row is attended to, and nowhere else.
#include "kernels/decode_harness.hpp"
#include "reference/page_end.hpp"

namespace {

using namespace harness;
using reference::Cache;
using reference::Random;

template <class Kernel>
class DecodeReads : public testing::Test {
 protected:
  static constexpr index_t kv_heads = 3, group = 5, length = 600;  // 2 pieces

  DecodeReads()
      : cache(Cache<typename Kernel::T>::random(
            {kv_heads * group, kv_heads, fit<typename Kernel::T>(20), fit<typename Kernel::T>(20)}, length, random)),
        query(random.row(cache.shape().query_size())) {}

  Outcome decode(const AttentionOptions& options = {}) const {
    return harness::decode<typename Kernel::Isa>(cache, query, options);
  }
  static bool same_head(const Outcome& a, const Outcome& b, index_t h) {
    return same_bits(a.output(h), b.output(h)) && same_bits(a.logit_row(h), b.logit_row(h)) &&
           a.lse[static_cast<std::size_t>(h)] == b.lse[static_cast<std::size_t>(h)];
  }
  static float& first_of(std::vector<float>& rows, index_t row, index_t dim) {
    return rows[static_cast<std::size_t>(row * dim)];
  }

  Random random{5};
  Cache<typename Kernel::T> cache;
  std::vector<float> query;
};
TYPED_TEST_SUITE(DecodeReads, testing_types::NativeKernels, testing_types::Names);

TYPED_TEST(DecodeReads, NaNInAKeyReachesTheGroupOfItsHeadAlone) {
  const Outcome clean = this->decode();
  const auto original = this->cache;
  for (const index_t position : {0, 1, 2, 3, 62, 63, 64, 255, 256, 511, 512, 598, 599}) {
    for (index_t poisoned = 0; poisoned < this->kv_heads; ++poisoned) {
      SCOPED_TRACE("position " + std::to_string(position) + ", KV head " + std::to_string(poisoned));
      this->cache = original;
      this->cache.poison_key(position, poisoned);
      const Outcome outcome = this->decode();
      for (index_t h = 0; h < this->kv_heads * this->group; ++h) {
        if (h / this->group == poisoned) {
          EXPECT_TRUE(all_nan(outcome.output(h))) << "query head " << h;
          EXPECT_TRUE(std::isnan(outcome.lse[static_cast<std::size_t>(h)])) << "query head " << h;
        } else {
          EXPECT_TRUE(this->same_head(outcome, clean, h)) << "query head " << h;
        }
      }
    }
  }
}

TYPED_TEST(DecodeReads, NaNInAValueReachesTheGroupOfItsHeadAlone) {
  const Outcome clean = this->decode();
  for (const index_t position : {0, 599}) {
    auto original = this->cache;
    this->cache.poison_value(position, 1);
    const Outcome outcome = this->decode();
    for (index_t h = 0; h < this->kv_heads * this->group; ++h) {
      if (h / this->group == 1) {
        EXPECT_TRUE(std::isnan(outcome.output(h).front())) << "query head " << h;
      } else {
        EXPECT_TRUE(this->same_head(outcome, clean, h)) << "query head " << h;
      }
    }
    this->cache = original;
  }
}

TYPED_TEST(DecodeReads, NaNInAQueryReachesThatQueryHeadAlone) {
  const Outcome clean = this->decode();
  const index_t dim = this->cache.shape().head_dim;
  for (index_t poisoned = 0; poisoned < this->kv_heads * this->group; ++poisoned) {
    SCOPED_TRACE("query head " + std::to_string(poisoned));
    const std::vector<float> original = this->query;
    this->first_of(this->query, poisoned, dim) = quiet_nan;
    const Outcome outcome = this->decode();
    for (index_t h = 0; h < this->kv_heads * this->group; ++h) {
      if (h == poisoned) {
        EXPECT_TRUE(all_nan(outcome.output(h)));
        EXPECT_TRUE(std::isnan(outcome.lse[static_cast<std::size_t>(h)]));
      } else {
        EXPECT_TRUE(this->same_head(outcome, clean, h)) << "query head " << h;
      }
    }
    this->query = original;
  }
}

TYPED_TEST(DecodeReads, NaNPassesTheSoftCap) {
  this->cache.poison_key(300, 0);
  EXPECT_TRUE(all_nan(this->decode({.soft_cap = 20}).output(0)));
}

TYPED_TEST(DecodeReads, RowsOutOfSightChangeNoBit) {
  for (const AttentionOptions& options :
       {AttentionOptions{.window = 1}, AttentionOptions{.window = 65}, AttentionOptions{.window = 300, .sinks = 70},
        AttentionOptions{.window = 64, .sinks = 1}, AttentionOptions{.window = 597, .sinks = 2}}) {
    SCOPED_TRACE("window " + std::to_string(options.window) + ", sinks " + std::to_string(options.sinks));
    const Outcome clean = this->decode(options);
    const auto original = this->cache;
    const std::vector<index_t> seen = reference::seen_by(this->length - 1, options);
    index_t hidden = 0;
    for (index_t j = 0; j < this->length; ++j) {
      if (std::binary_search(seen.begin(), seen.end(), j)) continue;
      ++hidden;
      for (index_t g = 0; g < this->kv_heads; ++g) {
        this->cache.poison_key(j, g);
        this->cache.poison_value(j, g);
      }
    }
    EXPECT_EQ(hidden, this->length - options.window - options.sinks);
    EXPECT_TRUE(same_bits(this->decode(options), clean));
    this->cache = original;
  }
}

TYPED_TEST(DecodeReads, RowsBeyondTheLengthChangeNoBit) {
  using Isa = typename TypeParam::Isa;
  for (const index_t shorter : {1, 3, 17, 62, 257}) {
    auto poisoned = this->cache;
    for (index_t g = 0; g < this->kv_heads; ++g) {
      for (index_t j = shorter; j < this->length; ++j) {
        poisoned.poison_key(j, g);
        poisoned.poison_value(j, g);
      }
    }
    const Shape& shape = this->cache.shape();
    const Outcome outcome = decode<Isa>(shape, poisoned.view(shorter), this->query);
    EXPECT_TRUE(same_bits(outcome, decode<Isa>(shape, this->cache.view(shorter), this->query)));
    EXPECT_FALSE(std::isnan(outcome.out.front()));
  }
}

TYPED_TEST(DecodeReads, NothingBehindTheLastRowIsTouched) {
  using T = typename TypeParam::T;
  using Isa = typename TypeParam::Isa;
  constexpr index_t positions = 70;
  for (const index_t dim : {1, 3, 8, 33, 46, 100}) {
    const Shape shape{3, 1, fit<T>(dim), fit<T>(dim)};
    const auto rows = Cache<T>::random(shape, positions, this->random);
    const std::vector<float> one_query = this->random.row(rows.shape().query_size());
    const auto elements = static_cast<std::size_t>(positions * shape.head_dim / values_per_element<T>);
    reference::PageEnd keys(elements * sizeof(T)), values(elements * sizeof(T));
    KvView<T> view = rows.view();
    view.keys = keys.place(view.keys, elements);
    view.values = values.place(view.values, elements);
    EXPECT_TRUE(same_bits(decode<Isa>(shape, view, one_query), decode<Isa>(rows, one_query)));
  }
}

TYPED_TEST(DecodeReads, WhatTheWorkspaceHeldBeforeChangesNoBit) {
  using T = typename TypeParam::T;
  using Isa = typename TypeParam::Isa;
  const AttentionOptions options{.scale = 0.25F};
  const auto work_on = [&](const Cache<T>& rows) {
    std::vector<kernels::HeadWork<T>> work;
    for (index_t g = 0; g < this->kv_heads; ++g) work.push_back(full_work(rows.view(), rows.shape(), g, options));
    return work;
  };
  Shape wide = this->cache.shape();  // its rows cover the padding of the narrow ones
  wide.head_dim *= 3;
  wide.value_dim *= 3;
  const auto wide_cache = Cache<T>::random(wide, this->length, this->random);
  const std::vector<float> poison(static_cast<std::size_t>(wide.query_size()), quiet_nan);
  kernels::Workspace<Isa> workspace;
  EXPECT_TRUE(all_nan(run<Isa, T>(wide, work_on(wide_cache), this->length, poison, options, workspace).out));
  const Shape& narrow = this->cache.shape();
  const Outcome outcome = run<Isa, T>(narrow, work_on(this->cache), this->length, this->query, options, workspace);
  EXPECT_TRUE(same_bits(outcome, this->decode(options)));
}

TYPED_TEST(DecodeReads, TheOrderOfThePiecesChangesNoBit) {
  using Isa = typename TypeParam::Isa;
  const Outcome forwards = decode<Isa>(this->cache.shape(), this->cache.view(), this->query);
  const Outcome backwards = decode<Isa>(this->cache.shape(), this->cache.view(), this->query, {}, true);
  EXPECT_TRUE(same_bits(forwards, backwards));
}

TYPED_TEST(DecodeReads, AHeadWithoutPositionsYieldsZeroAndMinusInfinity) {
  using T = typename TypeParam::T;
  using Isa = typename TypeParam::Isa;
  const Shape& shape = this->cache.shape();
  const AttentionOptions options{.scale = 0.25F};
  const Outcome all = this->decode(options);
  for (index_t empty = 0; empty < this->kv_heads; ++empty) {
    SCOPED_TRACE("KV head " + std::to_string(empty));
    std::vector<kernels::HeadWork<T>> work;
    for (index_t g = 0; g < this->kv_heads; ++g) {
      work.push_back(full_work(this->cache.view(), shape, g, options));
      if (g == empty) work.back().window = {};
    }
    kernels::Workspace<Isa> workspace;
    const Outcome outcome = run<Isa, T>(shape, work, this->length, this->query, options, workspace);
    for (index_t h = 0; h < this->kv_heads * this->group; ++h) {
      if (h / this->group == empty) {
        for (const float x : outcome.output(h)) EXPECT_EQ(x, 0);
        EXPECT_EQ(outcome.lse[static_cast<std::size_t>(h)], -inf);
      } else {
        EXPECT_TRUE(this->same_head(outcome, all, h)) << "query head " << h;
      }
    }
  }
}

}  // namespace
