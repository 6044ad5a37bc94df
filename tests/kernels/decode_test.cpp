// The decode kernels against the oracle, for every instruction set and KV type.
#include "kernels/decode_harness.hpp"

namespace {

using namespace harness;
using reference::Cache;
using reference::Random;

template <class>
class Decode : public testing::Test {};
TYPED_TEST_SUITE(Decode, testing_types::Kernels, testing_types::Names);

/// A random query over a random cache.
template <class Kernel>
void check(const Shape& shape, index_t length, const AttentionOptions& options = {}) {
  using Cache = reference::Cache<typename Kernel::T>;
  Random random(static_cast<std::uint64_t>(length));
  const Cache cache = Cache::random(shape, length, random);
  const std::vector<float> query = random.row(cache.shape().query_size());
  expect_matches_oracle(decode<typename Kernel::Isa>(cache, query, options), cache, query, options);
}

template <Scalar T>
struct Given {
  Cache<T> cache;
  std::vector<float> query;
  AttentionOptions options;
};

/// Keys whose logits are `logit(j)`, as far as T can hold them, by a query that looks at one dimension only.
template <Scalar T, class Logit>
Given<T> given_logits(index_t length, const Logit& logit) {
  const Shape shape{2, 1, fit<T>(8), fit<T>(24)};
  constexpr float factor = 1000;  // half ends at 65504
  Random random(6);
  Given<T> given{Cache<T>::random(shape, length, random),
                 std::vector<float>(static_cast<std::size_t>(shape.query_size())),
                 {.scale = 1}};
  given.query.front() = factor;
  given.query[static_cast<std::size_t>(shape.head_dim)] = factor / 2;
  for (index_t j = 0; j < length; ++j) {
    std::vector<float> key(static_cast<std::size_t>(shape.head_dim));
    key.front() = logit(j) / factor;
    given.cache.set_key(j, 0, key);
  }
  return given;
}
template <class Kernel>
void check(const Given<typename Kernel::T>& given) {
  const Outcome actual = decode<typename Kernel::Isa>(given.cache, given.query, given.options);
  expect_matches_oracle(actual, given.cache, given.query, given.options);
}

TEST(Pieces, AreNoMoreThanTheWorkspaceHasRoomFor) {
  for (const index_t kv_heads : {1, 2, 3, 7, 8, 33, 64, 1000}) {
    for (index_t length = 0; length < 3000000; length += 1 + length / 7) {
      const kernels::HeadWork<float> work{.window = {0, length}, .piece = kernels::piece_length(length, kv_heads)};
      ASSERT_LE(work.pieces(), kernels::most_pieces(kv_heads)) << length << " positions of " << kv_heads << " heads";
      ASSERT_GE(work.pieces() * work.piece, length);
      ASSERT_EQ(work.piece % kernels::block, 0);
    }
  }
}

TYPED_TEST(Decode, MatchesTheOracleAtEveryLength) {
  using T = typename TypeParam::T;
  for (const index_t length : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 128, 255, 256, 257, 511, 513, 1000}) {
    check<TypeParam>({4, 2, fit<T>(20)}, length);
  }
  check<TypeParam>({2, 1, fit<T>(20)}, 25000);  // 53 pieces of 5 blocks
}

TYPED_TEST(Decode, MatchesTheOracleAtEveryShape) {
  using T = typename TypeParam::T;
  const Shape shapes[] = {{33, 3, 64},   {48, 2, 32},    {28, 4, 32},    {71, 1, 32},      {5, 5, 48},
                          {3, 1, 46},    {2, 2, 1},      {4, 1, 33},     {6, 2, 80},       {3, 1, 576, 512},
                          {7, 1, 16, 5}, {1, 1, 5, 150}, {9, 3, 128, 1}, {16, 2, 96, 100}, {4, 4, 128}};
  for (Shape shape : shapes) {
    SCOPED_TRACE("heads " + std::to_string(shape.query_heads) + "/" + std::to_string(shape.kv_heads) + ", dims " +
                 std::to_string(shape.head_dim) + ", " + std::to_string(shape.value_dim));
    shape.head_dim = fit<T>(shape.head_dim);
    shape.value_dim = fit<T>(shape.value_dim);
    check<TypeParam>(shape, 37);
  }
}

TYPED_TEST(Decode, FollowsScaleSoftCapWindowAndSinks) {
  using T = typename TypeParam::T;
  const AttentionOptions many[] = {{.scale = 0.5F},
                                   {.scale = -0.3F},
                                   {.soft_cap = 1.5F},
                                   {.scale = 3, .soft_cap = 30},
                                   {.window = 1},
                                   {.window = 65},
                                   {.window = 300},
                                   {.window = 599},
                                   {.window = 10000},
                                   {.window = 64, .sinks = 4},
                                   {.window = 1, .sinks = 1},
                                   {.window = 100, .sinks = 300},
                                   {.window = 300, .sinks = 300},
                                   {.window = 5, .sinks = 10000},
                                   {.scale = 0.7F, .soft_cap = 2, .window = 270, .sinks = 70}};
  for (const AttentionOptions& options : many) {
    SCOPED_TRACE("scale " + std::to_string(options.scale) + ", soft cap " + std::to_string(options.soft_cap) +
                 ", window " + std::to_string(options.window) + ", sinks " + std::to_string(options.sinks));
    check<TypeParam>({3, 1, fit<T>(12)}, 600, options);
  }
}

TYPED_TEST(Decode, LayoutAndAlignmentChangeNoBit) {
  using T = typename TypeParam::T;
  using Isa = typename TypeParam::Isa;
  Random random(3);
  const Shape shape{6, 3, fit<T>(46), fit<T>(33)};
  // One piece; then several, which heads side by side in memory work on together.
  for (const index_t length : {130, 1000}) {
    const auto packed = Cache<T>::random(shape, length, random);
    const std::vector<float> query = random.row(packed.shape().query_size());
    for (const AttentionOptions& options : {AttentionOptions{}, AttentionOptions{.window = 700, .sinks = 70}}) {
      const Outcome expected = decode<Isa>(packed, query, options);
      expect_matches_oracle(expected, packed, query, options);
      for (const reference::Layout& layout :
           {reference::Layout{.position_major = true}, reference::Layout{.offset = 1},
            reference::Layout{.padding = 3, .room = 5},
            reference::Layout{.position_major = true, .padding = 1, .offset = 1, .room = 2},
            reference::Layout{.page = 1}, reference::Layout{.position_major = true, .offset = 1, .page = 1},
            reference::Layout{.position_major = true, .page = 33}, reference::Layout{.padding = 2, .page = 2000}}) {
        EXPECT_TRUE(same_bits(decode<Isa>(packed.arranged(layout), query, options), expected)) << length;
      }
    }
  }
}

TYPED_TEST(Decode, SumsOfManyEqualLogitsStayWithinTheBound) {
  using T = typename TypeParam::T;
  for (const index_t length : {256, 8500, 131072}) {
    auto given = given_logits<T>(length, [](index_t) { return 0.0F; });
    // The same value at every position: then every addition errs to the same side.
    std::vector<float> value(static_cast<std::size_t>(given.cache.shape().value_dim));
    for (std::size_t v = 0; v < value.size(); ++v) value[v] = 0.5F + static_cast<float>(v) / 47;
    for (index_t j = 0; j < length; ++j) given.cache.set_value(j, 0, value);
    check<TypeParam>(given);
  }
}

TYPED_TEST(Decode, LogitsOfHalfAMillionStayFinite) {
  Random random(4);
  check<TypeParam>(
      given_logits<typename TypeParam::T>(300, [&](index_t) { return random.normal() < 0 ? -5e5F : 5e5F; }));
  check<TypeParam>(given_logits<typename TypeParam::T>(300, [&](index_t) { return -5e5F; }));
}

TYPED_TEST(Decode, OneHugeLogitTakesAllTheWeightWhereverItIs) {
  using Isa = typename TypeParam::Isa;
  for (const index_t huge : {0, 3, 63, 64, 255, 256, 299}) {
    const auto given = given_logits<typename TypeParam::T>(300, [&](index_t j) { return j == huge ? 5e5F : 1.0F; });
    check<TypeParam>(given);
    const Outcome outcome = decode<Isa>(given.cache, given.query, given.options);
    const std::vector<float> value = given.cache.values(0)[static_cast<std::size_t>(huge)];
    EXPECT_TRUE(same_bits(outcome.output(0), value));
  }
}

TYPED_TEST(Decode, RisingAndFallingLogitsRescaleTheSumsRightly) {
  check<TypeParam>(given_logits<typename TypeParam::T>(600, [](index_t j) { return 0.25F * static_cast<float>(j); }));
  check<TypeParam>(given_logits<typename TypeParam::T>(600, [](index_t j) { return -0.25F * static_cast<float>(j); }));
  check<TypeParam>(given_logits<typename TypeParam::T>(600, [](index_t j) { return 100 * static_cast<float>(j); }));
}

TYPED_TEST(Decode, LogitsOfMinusInfinityWeighNothing) {
  using T = typename TypeParam::T;
  using Isa = typename TypeParam::Isa;
  if constexpr (!std::same_as<T, q8_0>) {  // it has no infinity beside a zero
    // The first piece sees nothing at all, the second something in its second block.
    const auto given = given_logits<T>(400, [](index_t j) { return j < 330 ? -inf : static_cast<float>(j % 7); });
    check<TypeParam>(given);
    const auto nothing = given_logits<T>(400, [](index_t) { return -inf; });
    const Outcome outcome = decode<Isa>(nothing.cache, nothing.query, nothing.options);
    for (const float x : outcome.out) EXPECT_EQ(x, 0);
    for (const float x : outcome.lse) EXPECT_EQ(x, -inf);
  }
}

}  // namespace
