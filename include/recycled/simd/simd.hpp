// The one place where an instruction set is chosen, and what can be said once for all of them.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

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

/// Values [i, i + width) of a row, as floats; of a row of q8_0 without the scales of its blocks.
template <class Isa, Scalar T>
typename Isa::vec load_unscaled(const T* row, index_t i) {
  if constexpr (std::is_same_v<T, q8_0>) {
    static_assert(q8_0::block % Isa::width == 0);
    return Isa::load_quants(row[i / q8_0::block].quants + i % q8_0::block);
  } else {
    return Isa::load(row + i);
  }
}

/// Values [i, i + width) of a row, as floats.
template <class Isa, Scalar T>
typename Isa::vec load(const T* row, index_t i) {
  if constexpr (std::is_same_v<T, q8_0>) {
    return Isa::mul(load_unscaled<Isa>(row, i), Isa::broadcast(row[i / q8_0::block].scale));
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

/// Whether values from here and there load as a vector: Isa::gather and gather_sums.
template <class Isa>
inline constexpr bool gathers = requires(const float* from, const index_t* at) {
  Isa::gather(from, at);
  Isa::gather_sums(static_cast<const std::int16_t*>(nullptr), at);
};

/// Whether lanes of a mask can be brought together: Isa::append.
template <class Isa>
inline constexpr bool compresses = requires(float* to) {
  Isa::append(typename Isa::vec{}, 0U, to);
};

/// Calls f(constant<0>), ..., f(constant<N - 1>): a loop whose index is a constant, so that what it indexes may be
/// registers.
template <int N, class F>
[[gnu::always_inline]] inline void unroll(const F& f) {
  [&]<int... I>(std::integer_sequence<int, I...> /*indices*/) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>{}), ...);
  }
  (std::make_integer_sequence<int, N>{});
}

/// `n` rounded up to whole vectors.
template <class Isa>
constexpr index_t padded(index_t n) {
  return (n + Isa::width - 1) / Isa::width * Isa::width;
}

/// An address, not a pointer: it may lie beyond the end of an array, where a prefetch does no harm.
[[gnu::always_inline]] inline const void* address(const void* base, index_t bytes) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): nothing is read through it
  return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(base) + static_cast<std::uintptr_t>(bytes));
}
/// Asks for the cache line `bytes` behind `base` while something else is computed: into the second-level cache, where
/// many requests can be on their way from memory, or from there into the first. (Always inline: GCC 12 takes a function
/// that only prefetches for one without effect, and drops its calls.)
[[gnu::always_inline]] inline void prefetch_l2(const void* base, index_t bytes) {
  __builtin_prefetch(address(base, bytes), 0, 2);
}
[[gnu::always_inline]] inline void prefetch_l1(const void* base, index_t bytes) {
  __builtin_prefetch(address(base, bytes), 0, 3);
}

}  // namespace recycled::inline RECYCLED_ABI::simd
