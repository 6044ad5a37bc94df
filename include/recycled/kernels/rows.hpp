// What the inner loops work on: rows of keys or values, and query rows.
#pragma once

#include <type_traits>

#include "recycled/simd/simd.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Positions whose logits are kept at a time: keys and values of a block (2 x 16 KiB at 128 halves a row) fit in L1/L2,
/// and the softmax is corrected once a block instead of once a position.
inline constexpr index_t block = 64;

/// Contiguous rows at a fixed distance.
template <Scalar T>
struct Rows {
  const T* first = nullptr;
  index_t stride = 0;  ///< in elements of T
  index_t dim = 0;     ///< values in a row

  const T* operator[](index_t i) const noexcept { return first + i * stride; }
  index_t bytes() const noexcept { return dim / values_per_element<T> * static_cast<index_t>(sizeof(T)); }
};

/// Query rows, multiplied by the scale already, each padded with zeros to whole vectors.
struct Queries {
  const float* first = nullptr;
  index_t stride = 0;
  index_t rows = 0;
};

/// Calls f(constant<Tile>, first row) until `rows` rows are covered, Tile = Most as long as that many are left.
template <int Most, class F>
void for_row_tiles(index_t rows, const F& f) {
  index_t row = 0;
  for (; row + Most <= rows; row += Most) f(std::integral_constant<int, Most>{}, row);
  if constexpr (Most > 1) {
    if (row < rows) {
      for_row_tiles<Most - 1>(rows - row, [&](auto tile, index_t r) { f(tile, row + r); });
    }
  }
}

/// Values of a row in a cache line (of q8_0: as good as).
template <Scalar T>
inline constexpr index_t values_per_line = 64 / static_cast<index_t>(sizeof(T));
template <>
inline constexpr index_t values_per_line<q8_0> = 64;

}  // namespace recycled::inline RECYCLED_ABI::kernels
