// Every step and every KV type against the oracle, on activations of a real model.
#include <gtest/gtest.h>

#include <recycled/recycled.hpp>

#include "../examples/replay/trace.hpp"
#include "reference/attention.hpp"

namespace {

using namespace recycled;

const replay::Trace& trace() {
  static const replay::Trace loaded = replay::load_trace(RECYCLED_TEST_DATA "/moonstone", 20);
  return loaded;
}

template <class T>
class RealData : public testing::Test {
 protected:
  static constexpr index_t prompt = 4096;

  /// The first `tokens` rows, rounded to T, and what these stand for.
  explicit RealData(index_t tokens = prompt + 24) : keys(stored(trace().keys)), values(stored(trace().values)) {
    const Shape& shape = trace().shape;
    for (index_t g = 0; g < shape.kv_heads; ++g) {
      key_rows.push_back(rows(keys, g, tokens));
      value_rows.push_back(rows(values, g, tokens));
    }
  }

  KvView<T> view(index_t length) const {
    return KvView<T>::position_major(keys.data(), values.data(), trace().shape, length);
  }
  /// Query head h of `token`, over `positions` of its KV head.
  reference::Attention expected(index_t token, index_t h, std::span<const index_t> positions) const {
    const Shape& shape = trace().shape;
    const auto head = static_cast<std::size_t>(h / shape.group());
    const auto dim = static_cast<std::size_t>(shape.head_dim);
    return reference::attend(trace().query(token).subspan(static_cast<std::size_t>(h) * dim, dim), key_rows[head],
                             value_rows[head], positions);
  }
  void expect_near(std::span<const float> out, index_t token, index_t h, std::span<const index_t> positions) const {
    const auto dim = static_cast<std::size_t>(trace().shape.value_dim);
    const reference::Attention truth = expected(token, h, positions);
    const std::span<const float> own = out.subspan(static_cast<std::size_t>(h) * dim, dim);
    EXPECT_TRUE(reference::near(own, truth)) << "token " << token << ", head " << h;
    EXPECT_LE(reference::nmse(own, truth.output), 1e-8L);
  }

 private:
  static Array<T> stored(const std::vector<float>& all) {
    const auto size = static_cast<index_t>(all.size());
    Array<T> result(size / values_per_element<T>);
    encode(all.data(), size, result.data());
    return result;
  }
  static reference::Rows rows(const Array<T>& from, index_t g, index_t tokens) {
    const Shape& shape = trace().shape;
    const index_t row = shape.head_dim / values_per_element<T>;
    reference::Rows result;
    for (index_t j = 0; j < tokens; ++j) {
      std::vector<float> values(static_cast<std::size_t>(shape.head_dim));
      decode(from.data() + (j * shape.kv_heads + g) * row, shape.head_dim, values.data());
      result.push_back(std::move(values));
    }
    return result;
  }

  Array<T> keys, values;
  std::vector<reference::Rows> key_rows, value_rows;
};

using Types = testing::Types<float, half, bfloat16, q8_0>;
TYPED_TEST_SUITE(RealData, Types);

TYPED_TEST(RealData, FullAndRecycledStepsAreWithinTheBound) {
  const Shape& shape = trace().shape;
  LayerAttention<TypeParam, FixedStride> layer(shape, {.capacity = 512}, {.stride = 5});
  layer.observe(trace().query(this->prompt - 1), this->prompt);
  layer.prepare(this->view(this->prompt));
  std::vector<float> out(static_cast<std::size_t>(shape.output_size()));
  for (index_t token = this->prompt; token < this->prompt + 6; ++token) {
    std::vector<std::vector<index_t>> attended;
    for (index_t g = 0; g < shape.kv_heads; ++g) {
      attended.push_back(layer.recycled_positions(g));
      attended.back().push_back(token);
    }
    layer.step(trace().query(token), this->view(token + 1), out);
    for (index_t h = 0; h < shape.query_heads; h += 2) {
      const index_t g = h / shape.group();
      const bool full = layer.last_step(g) == StepKind::full;
      EXPECT_EQ(full, token - this->prompt == 4);
      this->expect_near(out, token, h, full ? reference::seen_by(token, {}) : attended[static_cast<std::size_t>(g)]);
    }
  }
}

TYPED_TEST(RealData, PrefillIsWithinTheBound) {
  const Shape& shape = trace().shape;
  LayerAttention<TypeParam, AlwaysFull> layer(shape, {});
  constexpr index_t tokens = 24;
  std::vector<float> queries;
  for (index_t t = 0; t < tokens; ++t) {
    const auto query = trace().query(this->prompt + t);
    queries.insert(queries.end(), query.begin(), query.end());
  }
  std::vector<float> out(static_cast<std::size_t>(tokens * shape.output_size()));
  layer.prefill(queries, this->view(this->prompt + tokens), out);
  for (const index_t t : {0, 1, 13, 23}) {
    const auto own = std::span(out).subspan(static_cast<std::size_t>(t * shape.output_size()),
                                            static_cast<std::size_t>(shape.output_size()));
    for (index_t h = 0; h < shape.query_heads; h += 4) {
      this->expect_near(own, this->prompt + t, h, reference::seen_by(this->prompt + t, {}));
    }
  }
}

}  // namespace
