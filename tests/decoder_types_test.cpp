// Every KV type: the model is fed the rows as the cache rounds them, and the same bounds hold.
#include "reference/lockstep.hpp"

namespace {

using namespace recycled;
using reference::Lockstep;

template <class T>
class EveryType : public testing::Test {
 protected:
  template <class Policy>
  void run(const reference::Options& options, const Policy& policy, const reference::Schedule& schedule) {
    Lockstep<T, Policy> both(options, policy, schedule, 7);
    both.prefill(70);
    both.step(25);
    both.rollback(3);
    both.step(10);
  }
};
using Types = testing::Types<float, half, bfloat16, q8_0>;
TYPED_TEST_SUITE(EveryType, Types);

TYPED_TEST(EveryType, FixedStrideIsTheModel) {
  this->run({.shape = {6, 2, 64}, .capacity = 16}, FixedStride{4}, reference::fixed_stride(4));
}
TYPED_TEST(EveryType, NeverFullIsTheModel) {
  this->run({.shape = {6, 2, 32, 96}, .capacity = 16, .observation_window = 4}, NeverFull{}, reference::never_full());
}
TYPED_TEST(EveryType, QuerySimilarityIsTheModel) {
  this->run({.shape = {6, 2, 96, 32}, .attention = {.window = 50, .sinks = 2}, .capacity = 16},
            QuerySimilarity{3, 0.8F}, reference::query_similarity(3, 0.8F));
}
TYPED_TEST(EveryType, ARowOfTheCacheIsTheTokensRowRounded) {
  const Shape shape{2, 2, 32};
  Decoder<TypeParam> decoder({1, shape}, {.capacity = 4});
  reference::Tokens tokens(shape, 3);
  const std::vector<reference::Token> given = tokens.next(300);  // beyond the room that the cache takes first
  reference::prefill(decoder, {given.begin(), given.end() - 1});
  reference::decode(decoder, {given.back()});
  const KvView<TypeParam> view = decoder.view(0);
  ASSERT_EQ(view.length, 300);
  for (index_t j = 0; j < view.length; ++j) {
    for (index_t g = 0; g < 2; ++g) {
      const auto row = [g](const std::vector<float>& all) {
        return reference::rounded<TypeParam>({all.data() + 32 * g, all.data() + 32 * (g + 1)});
      };
      std::vector<float> key(32), value(32);
      recycled::decode(view.key(j, g), 32, key.data());
      recycled::decode(view.value(j, g), 32, value.data());
      ASSERT_EQ(key, row(given[reference::at(j)].key)) << "position " << j << ", head " << g;
      ASSERT_EQ(value, row(given[reference::at(j)].value)) << "position " << j << ", head " << g;
    }
  }
}

}  // namespace
