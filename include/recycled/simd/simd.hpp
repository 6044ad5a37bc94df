// The one place where an instruction set is chosen, and what can be said once for all of them.
#pragma once

#include <type_traits>

#include "recycled/simd/generic.hpp"
#if defined(RECYCLED_HAS_AVX2)
#include "recycled/simd/avx2.hpp"
#endif
#if defined(RECYCLED_HAS_AVX512)
#include "recycled/simd/avx512.hpp"
#endif
#if defined(RECYCLED_HAS_NEON)
#include "recycled/simd/neon.hpp"
#endif

namespace recycled::inline RECYCLED_ABI::simd {

#if defined(RECYCLED_HAS_AVX512)
using native = avx512;
#elif defined(RECYCLED_HAS_AVX2)
using native = avx2;
#elif defined(RECYCLED_HAS_NEON)
using native = neon;
#else
using native = generic;
#endif

/// Values [i, i + width) of a row, as floats.
template <class Isa, Scalar T>
typename Isa::vec load(const T* row, index_t i) {
  if constexpr (std::is_same_v<T, q8_0>) {
    static_assert(q8_0::block % Isa::width == 0);
    return Isa::load(row[i / q8_0::block], i % q8_0::block);
  } else {
    return Isa::load(row + i);
  }
}

/// Values [i, i + n) of a row with n < width, and zeros behind them: nothing beyond the row is read.
template <class Isa, Scalar T>
typename Isa::vec load_first(const T* row, index_t i, index_t n) {
  if constexpr (std::is_same_v<T, q8_0>) {
    return load<Isa>(row, i);  // rows are whole blocks, so this is never the end of one
  } else if constexpr (requires { Isa::load_first(row, n); }) {
    return Isa::load_first(row + i, n);
  } else {
    T padded[Isa::width];
    for (index_t j = 0; j < Isa::width; ++j) padded[j] = j < n ? row[i + j] : T(0.0F);
    return Isa::load(padded);
  }
}

/// `n` rounded up to whole vectors.
template <class Isa>
constexpr index_t padded(index_t n) {
  return (n + Isa::width - 1) / Isa::width * Isa::width;
}

/// Asks for the cache line at `p` to be brought to the second-level cache while something else is computed.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace recycled::inline RECYCLED_ABI::simd
