// A block of positions against a tile of query rows: one pass over K and V for all of them.
//
//   logits  = einsum("rd,jd->rj", queries, keys)
//   weights = exp(logits - max)
//   output  = output * correction + einsum("rj,jv->rv", weights, values)
//
// Memory is kept busy by hand: while keys are read, the values of the same positions are fetched into L2, line by line
// in step with the arithmetic; while values are read, the next keys. What is needed next travels from L2 to L1.
#pragma once

#include <algorithm>

#include "recycled/kernels/score_tile.hpp"
#include "recycled/kernels/value_tile.hpp"
#include "recycled/types/shape.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// The running softmax of the rows of a tile, in memory that Workspace hands out.
struct TileState {
  float* max = nullptr;         ///< [rows]
  float* sum = nullptr;         ///< [rows]
  float* sum_lost = nullptr;    ///< [rows]: what rounding took from sum so far
  float* correction = nullptr;  ///< [rows], scratch of one block
  float* logits = nullptr;      ///< [rows, logit_stride], scratch of one block
  float* scales = nullptr;      ///< [head_dim / 32, block]: of q8_0 keys, scratch of one block
  float* output = nullptr;      ///< [rows, stride]
  float* lost = nullptr;        ///< [rows, stride]: what rounding took from output so far
  index_t stride = 0;           ///< value_dim in whole vectors
  index_t rows = 0;

  /// Rows [first, first + count) as a state of their own.
  TileState part(index_t first, index_t count) const {
    return {.max = max + first,
            .sum = sum + first,
            .sum_lost = sum_lost + first,
            .correction = correction + first,
            .logits = logits + first * logit_stride,
            .scales = scales,
            .output = output + first * stride,
            .lost = lost + first * stride,
            .stride = stride,
            .rows = count};
  }
  void clear() const {
    std::fill(max, max + rows, SoftmaxState::empty_max);
    std::fill(sum, sum + rows, 0.0F);
    std::fill(sum_lost, sum_lost + rows, 0.0F);
    std::fill(output, output + rows * stride, 0.0F);
    std::fill(lost, lost + rows * stride, 0.0F);
  }
  SoftmaxState row(index_t r) const { return {max[r], sum[r], output + r * stride}; }
};

/// Where a refresh wants the logits of every position: row r's logit of position j goes to first[r * stride + j].
struct LogitSink {
  float* first = nullptr;  ///< null: nobody wants them
  index_t stride = 0;

  LogitSink from(index_t j) const noexcept { return {first == nullptr ? nullptr : first + j, stride}; }
};

/// Adds the first `count` rows, at most a block, to the state: the module comment's three lines. Every row of the tile
/// must see all of these positions. A row's arithmetic does not depend on which rows share its tile. `next`:
/// the key that is read after this block, or null. Values of no dimension are not read, and leave the output alone.
template <class Isa, Scalar T>
void attend_block(const Rows<T>& keys, const Rows<T>& values, index_t count, const Queries& queries, float soft_cap,
                  const TileState& state, const LogitSink& sink = {}, const T* next = nullptr) {
  const bool keys_alone = values.dim == 0;
  const Rows<T> wanted = keys_alone ? Rows<T>{next != nullptr ? next : keys.first, keys.stride, keys.dim} : values;
  score_block<Isa>(keys, wanted, count, queries, state.scales, state.logits);
  for (index_t r = 0; r < queries.rows; ++r) {
    float* logits = state.logits + r * logit_stride;
    if (soft_cap > 0) {
      std::fill(logits + count, logits + simd::padded<Isa>(count), 0.0F);
      for (index_t j = 0; j < count; j += Isa::width) {
        Isa::store(logits + j, simd::capped<Isa>(Isa::load(logits + j), soft_cap));
      }
    }
    if (sink.first != nullptr) std::copy(logits, logits + count, sink.first + r * sink.stride);
    state.correction[r] = soften<Isa>(logits, count, state.max[r], state.sum[r], state.sum_lost[r]);
  }
  if (keys_alone) return;
  for_row_tiles<Isa::most_value_rows>(queries.rows, [&](auto tile, index_t r) {
    value_rows<Isa, tile()>(ValueBlock<T>{.values = values,
                                          .count = count,
                                          .weights = state.logits + r * logit_stride,
                                          .correction = state.correction + r,
                                          .output = state.output + r * state.stride,
                                          .lost = state.lost + r * state.stride,
                                          .stride = state.stride,
                                          .ahead = {r == 0 ? next : nullptr, keys.stride, keys.dim}});
  });
}

/// Calls f(Range) for the parts of `range` between multiples of the block size.
template <class F>
void for_blocks(const Range& range, const F& f) {
  for (index_t begin = range.begin; begin < range.end;) {
    const index_t end = std::min(range.end, (begin / block + 1) * block);
    f(Range{begin, end});
    begin = end;
  }
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
