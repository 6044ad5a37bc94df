// Which instruction set this translation unit is compiled for, and the namespace that keeps it apart.
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && \
    defined(__FMA__) && defined(__F16C__)
#define RECYCLED_HAS_AVX512 1
#endif
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define RECYCLED_HAS_AVX2 1
#endif
#if defined(__aarch64__) && defined(__ARM_NEON)
#define RECYCLED_HAS_NEON 1
#endif
#if defined(__cpp_exceptions)
#define RECYCLED_HAS_EXCEPTIONS 1
#endif

// NaN and infinity mean something here: a position that was not seen, a query that is no number. And what is rounded,
// or summed with what was lost before, is not for the compiler to reorder. (Clang does not say that it may.)
#if (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || defined(__ASSOCIATIVE_MATH__)
#error "recycled: -ffast-math changes results, as do parts of it; compile this file with -fno-fast-math"
#endif

// Every name of the library lives in an inline namespace that says how it was compiled. Two objects built with
// different -march (or one of them with -fno-exceptions) then share no symbol of ours, and the linker can't hand
// the code of one to the other: a program may carry several builds and choose at run time. (Inline functions of the
// standard library and of Eigen are shared all the same; optimised builds inline those that are used here.) Where two
// levels lead to the same source but not to the same code of the compiler (SSE4, AVX alone, BF16), the names differ all
// the same. Of single flags (-mssse3, -mfma, ...) and of CPUs by name (-march=bdver4 beside x86-64-v3) not every
// mixture has a name of its own.
#if defined(RECYCLED_HAS_EXCEPTIONS)
#define RECYCLED_ABI_NAME(isa) isa##_v0
#else
#define RECYCLED_ABI_NAME(isa) isa##_nothrow_v0
#endif

#if defined(RECYCLED_HAS_AVX512) && defined(__AVX512BF16__)
#define RECYCLED_ABI RECYCLED_ABI_NAME(avx512bf16)
#elif defined(RECYCLED_HAS_AVX512)
#define RECYCLED_ABI RECYCLED_ABI_NAME(avx512)
#elif defined(RECYCLED_HAS_AVX2)
#if defined(__AVX512F__)
#define RECYCLED_ABI RECYCLED_ABI_NAME(avx2_512f)
#else
#define RECYCLED_ABI RECYCLED_ABI_NAME(avx2)
#endif
#elif defined(RECYCLED_HAS_NEON)
#if defined(__ARM_FEATURE_SVE)
#define RECYCLED_ABI RECYCLED_ABI_NAME(neon_sve)
#elif defined(__ARM_FEATURE_ATOMICS)
#define RECYCLED_ABI RECYCLED_ABI_NAME(neon_lse)
#else
#define RECYCLED_ABI RECYCLED_ABI_NAME(neon)
#endif
#elif defined(__AVX2__)
#define RECYCLED_ABI RECYCLED_ABI_NAME(generic_avx2)
#elif defined(__FMA__)
#define RECYCLED_ABI RECYCLED_ABI_NAME(generic_fma)
#elif defined(__F16C__)
#define RECYCLED_ABI RECYCLED_ABI_NAME(generic_f16c)
#elif defined(__AVX__)
#define RECYCLED_ABI RECYCLED_ABI_NAME(generic_avx)
#elif defined(__SSE4_2__)
#define RECYCLED_ABI RECYCLED_ABI_NAME(generic_sse4_2)
#elif defined(__SSE4_1__)
#define RECYCLED_ABI RECYCLED_ABI_NAME(generic_sse4_1)
#elif defined(__SSSE3__)
#define RECYCLED_ABI RECYCLED_ABI_NAME(generic_ssse3)
#else
#define RECYCLED_ABI RECYCLED_ABI_NAME(generic)
#endif

namespace recycled::inline RECYCLED_ABI {

/// Counts, positions, strides and sizes: signed and 64 bits wide on every platform.
using index_t = std::int64_t;

namespace detail {

/// What a layer's policies are: to assign a layer, all is copied first, and moved when nothing can fail any more.
template <class T>
concept Value = std::copyable<T> && std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T>;

}  // namespace detail

}  // namespace recycled::inline RECYCLED_ABI
