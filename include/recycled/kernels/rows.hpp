// What the inner loops work on: rows of keys or values, and query rows.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "recycled/simd/simd.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Positions whose logits are kept at a time. The softmax corrects its sums once a block; a multiple of the positions
/// of every score tile (3, 4, 8) and of every vector.
inline constexpr index_t block = 96;
/// From one query row's logits of a block to the next one's: a tile may write up to three sums behind the block's end.
inline constexpr index_t logit_stride = block + 16;
/// Values of a row between two prefetches: a cache line of half, a block of q8_0.
inline constexpr index_t row_chunk = 32;

/// Bytes of `values` values of a row.
template <Scalar T>
constexpr index_t row_bytes(index_t values) {
  return values / values_per_element<T> * static_cast<index_t>(sizeof(T));
}

/// Rows at a fixed distance, each of them contiguous.
template <Scalar T>
struct Rows {
  const T* first = nullptr;
  index_t stride = 0;  ///< in elements of T
  index_t dim = 0;     ///< values in a row

  const T* operator[](index_t i) const noexcept { return first + i * stride; }
  Rows from(index_t i) const noexcept { return {(*this)[i], stride, dim}; }
  index_t bytes() const noexcept { return row_bytes<T>(dim); }
  index_t stride_bytes() const noexcept { return stride * static_cast<index_t>(sizeof(T)); }
};

/// The `dim` values of a stored row as R stores them.
template <class Isa, Scalar T, Scalar R>
void copy_row(const T* from, index_t dim, R* to) {
  if constexpr (std::is_same_v<T, R>) {
    // By pieces whose size is known: a call of the C library's takes as long as a short row.
    constexpr index_t piece = 64 / static_cast<index_t>(sizeof(T));
    const index_t count = dim / values_per_element<T>;
    index_t i = 0;
    if constexpr (64 % sizeof(T) == 0) {
      for (; i + piece <= count; i += piece) std::memcpy(to + i, from + i, 64);
    }
    std::copy_n(from + i, count - i, to + i);
  } else {
    static_assert(values_per_element<R> == 1, "no rows are rounded to blocks");
    index_t i = 0;
    for (; i + Isa::width <= dim; i += Isa::width) Isa::store(to + i, simd::load<Isa>(from, i));
    if (i == dim) return;
    R rest[Isa::width];
    Isa::store(rest, simd::load_first<Isa>(from, i, dim - i));
    std::copy_n(rest, dim - i, to + i);
  }
}

/// The scales of rows [0, count) for their values [32 i, 32 i + 32), as floats, zeros behind them up to a whole block:
/// one conversion for a vector of rows, and where it is used a broadcast from memory.
template <class Isa>
void gather_scales(const Rows<q8_0>& rows, index_t count, index_t i, float* scales) {
  half narrow[block];
  for (index_t j = 0; j < count; ++j) narrow[j] = rows[j][i].scale;
  std::fill(narrow + count, narrow + block, half(0.0F));
  for (index_t j = 0; j < block; j += Isa::width) Isa::store(scales + j, Isa::load(narrow + j));
}

/// Query rows, multiplied by the scale already, each padded with zeros to whole vectors.
struct Queries {
  const float* first = nullptr;
  index_t stride = 0;
  index_t rows = 0;
};

/// sums[r][c] += row(r) * column(c), vector by vector. The fewer of the two stay in registers while the others pass by
/// one at a time: so 3 x 4 sums fit into sixteen.
template <class Isa, int Rows, int Columns, class Row, class Column>
[[gnu::always_inline]] inline void add_products(typename Isa::vec (&sums)[Rows][Columns], const Row& row,
                                                const Column& column) {
  if constexpr (Rows < Columns) {
    typename Isa::vec rows[Rows];
    simd::unroll<Rows>([&](auto r) { rows[r] = row(r); });
    simd::unroll<Columns>([&](auto c) {
      const auto one = column(c);
      simd::unroll<Rows>([&](auto r) { sums[r][c] = Isa::fma(rows[r], one, sums[r][c]); });
    });
  } else {
    typename Isa::vec columns[Columns];
    simd::unroll<Columns>([&](auto c) { columns[c] = column(c); });
    simd::unroll<Rows>([&](auto r) {
      const auto one = row(r);
      simd::unroll<Columns>([&](auto c) { sums[r][c] = Isa::fma(one, columns[c], sums[r][c]); });
    });
  }
}

/// Calls f(constant<n>) for n in [1, Most].
template <int Most, class F>
void with_constant(index_t n, const F& f) {
  if constexpr (Most > 1) {
    if (n < Most) return with_constant<Most - 1>(n, f);
  }
  f(std::integral_constant<int, Most>{});
}

/// Cuts `rows` rows into as few tiles of at most Most rows as possible, even ones: 5 is 3 + 2, not 4 + 1. Calls
/// f(constant<rows of the tile>, first row) for each.
template <int Most, class F>
void for_row_tiles(index_t rows, const F& f) {
  for (index_t row = 0; row < rows;) {
    const index_t left = rows - row;
    const index_t tiles = (left + Most - 1) / Most;
    const index_t tile = (left + tiles - 1) / tiles;
    with_constant<Most>(tile, [&](auto size) { f(size, row); });
    row += tile;
  }
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
