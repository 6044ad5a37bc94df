// Causal attention of many tokens against the oracle, and its promises about chunks and NaN.
#include <recycled/kernels/prefill.hpp>

#include "kernels/decode_harness.hpp"

namespace {

using namespace harness;
using reference::Cache;
using reference::Random;

template <class>
class Prefill : public testing::Test {};
TYPED_TEST_SUITE(Prefill, testing_types::NativeKernels, testing_types::Names);

/// A prompt whose last tokens, as many as there are queries for, are attended to here.
template <class Kernel>
struct Prompt {
  using T = typename Kernel::T;
  using Isa = typename Kernel::Isa;

  Cache<T> cache;
  index_t tokens;
  std::vector<float> queries;  // [tokens, query_heads, head_dim]

  static Prompt random(Shape shape, index_t length, index_t tokens, std::uint64_t seed = 1) {
    Random random(seed);
    shape.head_dim = fit<T>(shape.head_dim);
    shape.value_dim = fit<T>(shape.value_dim);
    Prompt prompt{Cache<T>::random(shape, length, random), tokens, {}};
    prompt.queries = random.row(tokens * prompt.shape().query_size());
    return prompt;
  }
  const Shape& shape() const { return cache.shape(); }
  index_t first_position() const { return cache.length() - tokens; }

  /// Output rows [tokens, query_heads, value_dim] of chunks of at most `chunk` tokens; tasks run backwards if asked.
  std::vector<float> attend(AttentionOptions options = {}, index_t chunk = 1000000, bool backwards = false) const {
    options = recycled::detail::checked(options, shape());
    std::vector<float> out(static_cast<std::size_t>(tokens * shape().output_size()), quiet_nan);
    kernels::Workspace<Isa> workspace;
    const auto executor = [&](index_t tasks, const auto& task) {
      for (index_t i = 0; i < tasks; ++i) task(backwards ? tasks - 1 - i : i);
    };
    for (index_t done = 0; done < tokens; done += chunk) {
      const index_t count = std::min(chunk, tokens - done);
      kernels::prefill_reserve(shape(), count, workspace);
      kernels::prefill(shape(), options, cache.view(first_position() + done + count),
                       queries.data() + done * shape().query_size(), count, out.data() + done * shape().output_size(),
                       workspace, executor);
    }
    return out;
  }

  std::span<const float> query(index_t token, index_t head) const {
    return Outcome::row(queries, token * shape().query_heads + head, shape().head_dim);
  }
  std::span<const float> output(const std::vector<float>& out, index_t token, index_t head) const {
    return Outcome::row(out, token * shape().query_heads + head, shape().value_dim);
  }

  /// Every `stride`-th token and the last against the oracle.
  void expect_matches_oracle(const AttentionOptions& options = {}, index_t stride = 1) const {
    const std::vector<float> out = attend(options);
    for (index_t g = 0; g < shape().kv_heads; ++g) {
      const reference::Rows keys = cache.keys(g), values = cache.values(g);
      for (index_t t = tokens - 1; t >= 0; t -= stride) {
        const std::vector<index_t> seen = reference::seen_by(first_position() + t, options);
        for (index_t h = g * shape().group(); h < (g + 1) * shape().group(); ++h) {
          const reference::Attention expected = reference::attend(query(t, h), keys, values, seen, options);
          EXPECT_TRUE(reference::near(output(out, t, h), expected)) << "token " << t << ", query head " << h;
          EXPECT_TRUE(reference::nmse(output(out, t, h), expected.output) <= 1e-8L) << "token " << t << ", head " << h;
        }
      }
    }
  }
};

TYPED_TEST(Prefill, MatchesTheOracleForEveryToken) {
  for (const index_t length : {1, 2, 3, 31, 32, 33, 70}) {
    SCOPED_TRACE("length " + std::to_string(length));
    Prompt<TypeParam>::random({2, 1, 12}, length, length).expect_matches_oracle();
  }
  Prompt<TypeParam>::random({2, 2, 12}, 530, 530).expect_matches_oracle({}, 13);  // three rounds of 256 tokens
}

TYPED_TEST(Prefill, MatchesTheOracleBehindEarlierPositions) {
  for (const index_t tokens : {1, 5, 64}) {
    Prompt<TypeParam>::random({2, 1, 12}, 500, tokens).expect_matches_oracle({}, 9);
    Prompt<TypeParam>::random({2, 1, 12}, 512, tokens).expect_matches_oracle({}, 9);
  }
}

TYPED_TEST(Prefill, MatchesTheOracleAtEveryShape) {
  const Shape shapes[] = {{33, 3, 16},  {48, 2, 16}, {28, 4, 16}, {71, 1, 8},      {3, 3, 46},
                          {2, 1, 1, 1}, {2, 2, 33},  {2, 1, 80},  {2, 1, 576, 48}, {2, 1, 5, 150}};
  for (const Shape& shape : shapes) {
    SCOPED_TRACE("heads " + std::to_string(shape.query_heads) + "/" + std::to_string(shape.kv_heads) + ", dims " +
                 std::to_string(shape.head_dim) + ", " + std::to_string(shape.value_dim));
    Prompt<TypeParam>::random(shape, 40, 40).expect_matches_oracle({}, 13);
  }
}

constexpr AttentionOptions masks[] = {{.soft_cap = 1.5F},
                                      {.scale = 0.7F, .soft_cap = 30},
                                      {.window = 1},
                                      {.window = 33},
                                      {.window = 64},
                                      {.window = 200},
                                      {.window = 40, .sinks = 4},
                                      {.window = 65, .sinks = 70},
                                      {.window = 128, .sinks = 64},
                                      {.window = 3, .sinks = 130}};

TYPED_TEST(Prefill, FollowsScaleSoftCapWindowAndSinks) {
  for (const AttentionOptions& options : masks) {
    SCOPED_TRACE("window " + std::to_string(options.window) + ", sinks " + std::to_string(options.sinks));
    Prompt<TypeParam>::random({2, 1, 12}, 300, 290).expect_matches_oracle(options, 17);
  }
}

TYPED_TEST(Prefill, ChunksOfAnySizeGiveTheSameBits) {
  const auto prompt = Prompt<TypeParam>::random({6, 2, 12, 10}, 310, 300);
  const std::vector<float> whole = prompt.attend();
  for (const index_t chunk : {1, 7, 10, 64, 255, 299}) {
    EXPECT_TRUE(same_bits(prompt.attend({}, chunk), whole)) << "chunks of " << chunk;
  }
}

TYPED_TEST(Prefill, ChunksUnderAMaskGiveTheSameBits) {
  const auto prompt = Prompt<TypeParam>::random({3, 1, 12, 10}, 310, 300);
  for (const AttentionOptions& options : masks) {
    SCOPED_TRACE("window " + std::to_string(options.window) + ", sinks " + std::to_string(options.sinks));
    const std::vector<float> whole = prompt.attend(options);
    for (const index_t chunk : {1, 23}) {
      EXPECT_TRUE(same_bits(prompt.attend(options, chunk), whole)) << "chunks of " << chunk;
    }
  }
}

TYPED_TEST(Prefill, TheOrderOfTheTasksChangesNoBit) {
  const auto prompt = Prompt<TypeParam>::random({6, 2, 12}, 300, 280);
  EXPECT_TRUE(same_bits(prompt.attend({}, 1000, true), prompt.attend({}, 1000, false)));
}

TYPED_TEST(Prefill, LayoutAndAlignmentChangeNoBit) {
  auto prompt = Prompt<TypeParam>::random({6, 3, 46, 33}, 90, 70);
  const std::vector<float> expected = prompt.attend();
  const auto packed = prompt.cache;
  for (const reference::Layout& layout :
       {reference::Layout{.position_major = true}, reference::Layout{.offset = 1},
        reference::Layout{.padding = 3, .room = 5},
        reference::Layout{.position_major = true, .padding = 1, .offset = 1, .room = 2}, reference::Layout{.page = 1},
        reference::Layout{.position_major = true, .offset = 1, .page = 1},
        reference::Layout{.position_major = true, .page = 33}, reference::Layout{.padding = 2, .page = 2000}}) {
    prompt.cache = packed.arranged(layout);
    EXPECT_TRUE(same_bits(prompt.attend(), expected));
  }
}

TYPED_TEST(Prefill, SumsOfManyEqualLogitsStayWithinTheBound) {
  auto prompt = Prompt<TypeParam>::random({1, 1, 8, 24}, 131072, 1);
  std::fill(prompt.queries.begin(), prompt.queries.end(), 0.0F);
  std::vector<float> value(static_cast<std::size_t>(prompt.shape().value_dim));
  for (std::size_t v = 0; v < value.size(); ++v) value[v] = 0.5F + static_cast<float>(v) / 47;
  for (index_t j = 0; j < prompt.cache.length(); ++j) prompt.cache.set_value(j, 0, value);
  prompt.expect_matches_oracle();
}

TYPED_TEST(Prefill, LogitsOfHalfAMillionStayFinite) {
  auto prompt = Prompt<TypeParam>::random({1, 1, 8}, 200, 200);
  std::fill(prompt.queries.begin(), prompt.queries.end(), 0.0F);
  Random random(2);
  for (index_t j = 0; j < 200; ++j) {
    prompt.queries[static_cast<std::size_t>(j * prompt.shape().head_dim)] = 1000;
    std::vector<float> key(static_cast<std::size_t>(prompt.shape().head_dim));
    key.front() = random.normal() < 0 ? -500.0F : 500.0F;
    prompt.cache.set_key(j, 0, key);
  }
  prompt.expect_matches_oracle({.scale = 1});
}

TYPED_TEST(Prefill, NaNInARowReachesTheTokensThatSeeItAlone) {
  const auto original = Prompt<TypeParam>::random({4, 2, 12}, 200, 190);
  for (const AttentionOptions& options : {AttentionOptions{}, AttentionOptions{.window = 50},
                                          AttentionOptions{.window = 64, .sinks = 11}, AttentionOptions{.window = 1}}) {
    const std::vector<float> clean = original.attend(options);
    for (const index_t position : {3, 10, 11, 63, 64, 100, 127, 199}) {
      for (const bool in_key : {true, false}) {
        SCOPED_TRACE("window " + std::to_string(options.window) + ", position " + std::to_string(position));
        auto prompt = original;
        in_key ? prompt.cache.poison_key(position, 1) : prompt.cache.poison_value(position, 1);
        const std::vector<float> out = prompt.attend(options);
        for (index_t t = 0; t < prompt.tokens; ++t) {
          const std::vector<index_t> seen = reference::seen_by(prompt.first_position() + t, options);
          const bool sees = std::binary_search(seen.begin(), seen.end(), position);
          for (index_t h = 0; h < 4; ++h) {
            const auto row = prompt.output(out, t, h);
            if (sees && h >= 2) {
              ASSERT_TRUE(in_key ? all_nan(row) : std::isnan(row.front())) << "token " << t << ", query head " << h;
            } else {
              ASSERT_TRUE(same_bits(row, prompt.output(clean, t, h))) << "token " << t << ", query head " << h;
            }
          }
        }
      }
    }
  }
}

TYPED_TEST(Prefill, NaNInAQueryReachesThatTokenAndHeadAlone) {
  auto prompt = Prompt<TypeParam>::random({4, 2, 12}, 100, 90);
  const std::vector<float> clean = prompt.attend();
  constexpr index_t token = 37, head = 2;
  prompt.queries[static_cast<std::size_t>((token * 4 + head) * prompt.shape().head_dim)] = quiet_nan;
  const std::vector<float> out = prompt.attend();
  for (index_t t = 0; t < prompt.tokens; ++t) {
    for (index_t h = 0; h < 4; ++h) {
      if (t == token && h == head) {
        EXPECT_TRUE(all_nan(prompt.output(out, t, h)));
      } else {
        EXPECT_TRUE(same_bits(prompt.output(out, t, h), prompt.output(clean, t, h))) << "token " << t << ", head " << h;
      }
    }
  }
}

}  // namespace
