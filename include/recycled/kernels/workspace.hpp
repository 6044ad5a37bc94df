// Memory that kernels write to, sized before they run: they allocate nothing and may not fail.
#pragma once

#include "recycled/kernels/tile.hpp"
#include "recycled/types/memory.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Grows when asked to and never shrinks. One step uses it at a time.
template <class Isa>
class Workspace {
 public:
  /// Room for `query_rows` packed queries of `head_dim`, and for `tiles` tiles of `tile_rows` rows of `value_dim`, each
  /// with room for `wide_rows` keys and values as floats, when rows of T are read.
  template <Scalar T>
  void reserve(index_t query_rows, index_t head_dim, index_t tiles, index_t tile_rows, index_t value_dim,
               index_t wide_rows = 0) {
    query_stride_ = simd::padded<Isa>(head_dim);
    output_stride_ = simd::padded<Isa>(value_dim);
    tile_rows_ = tile_rows;
    // Four small arrays; then logits, scales, output and lost, each on a cache line of its own.
    scales_ = std::is_same_v<T, q8_0> ? head_dim / q8_0::block * block : 0;
    wide_at_ = lines(4 * tile_rows) + tile_rows * logit_stride + scales_ + 2 * lines(tile_rows * output_stride_);
    wide_keys_ = lines(wide_rows * query_stride_);
    tile_floats_ = wide_at_ + wide_keys_ + lines(wide_rows * output_stride_);
    grow(queries_, detail::checked_product(query_rows, query_stride_, "query memory"));
    grow(tiles_, detail::checked_product(tiles, tile_floats_, "tile memory"));
  }

  float* query(index_t row) noexcept { return queries_.data() + row * query_stride_; }
  Queries queries(index_t row, index_t rows) const noexcept {
    return {queries_.data() + row * query_stride_, query_stride_, rows};
  }
  TileState tile(index_t i, index_t rows) noexcept {
    float* small = tiles_.data() + i * tile_floats_;
    float* logits = small + lines(4 * tile_rows_);
    float* scales = logits + tile_rows_ * logit_stride;
    float* output = scales + scales_;
    return {.max = small,
            .sum = small + tile_rows_,
            .sum_lost = small + 2 * tile_rows_,
            .correction = small + 3 * tile_rows_,
            .logits = logits,
            .scales = scales,
            .output = output,
            .lost = output + lines(tile_rows_ * output_stride_),
            .stride = output_stride_,
            .rows = rows};
  }

  float* wide_keys(index_t tile) noexcept { return tiles_.data() + tile * tile_floats_ + wide_at_; }
  float* wide_values(index_t tile) noexcept { return wide_keys(tile) + wide_keys_; }

  /// Packs tokens of [query_heads, head_dim] as rows [kv_head, token, group], scaled, ends padded with zeros.
  void pack_queries(const float* queries, index_t tokens, const Shape& shape, float scale) {
    const index_t group = shape.group();
    for (index_t t = 0; t < tokens; ++t) {
      for (index_t h = 0; h < shape.query_heads; ++h) {
        const float* from = queries + (t * shape.query_heads + h) * shape.head_dim;
        float* to = query(((h / group) * tokens + t) * group + h % group);
        for (index_t d = 0; d < shape.head_dim; ++d) to[d] = from[d] * scale;
        std::fill(to + shape.head_dim, to + query_stride_, 0.0F);
      }
    }
  }

 private:
  static constexpr index_t lines(index_t floats) { return (floats + 15) / 16 * 16; }
  static void grow(Array<float>& array, index_t size) {
    if (array.size() < size) array = Array<float>(size);
  }

  Array<float> queries_;
  Array<float> tiles_;
  index_t query_stride_ = 0;
  index_t output_stride_ = 0;
  index_t tile_rows_ = 0;
  index_t tile_floats_ = 0;
  index_t scales_ = 0;
  index_t wide_at_ = 0;
  index_t wide_keys_ = 0;
};

}  // namespace recycled::inline RECYCLED_ABI::kernels
