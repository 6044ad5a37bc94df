// Precompiled for the tests, so that the suite builds in half the time: what nearly all of them include, and the
// kernels that kernels.cpp compiles for all of them.
#pragma once

#include <gtest/gtest.h>

#if !defined(__cpp_exceptions)
#include "reference/no_exceptions.hpp"
#endif

#include <recycled/recycled.hpp>

#define COMPILED_KERNELS(Prefix, T)                                                                                  \
  Prefix template void attend_block<simd::native, T>(const Rows<T>&, const Rows<T>&, index_t, const Queries&, float, \
                                                     const TileState&, const LogitSink&, const T*);                  \
  Prefix template void score_block<simd::native, T>(const Rows<T>&, const Rows<T>&, index_t, const Queries&, float*, \
                                                    float*);

namespace recycled::inline RECYCLED_ABI::kernels {

COMPILED_KERNELS(extern, float)
COMPILED_KERNELS(extern, half)
COMPILED_KERNELS(extern, bfloat16)
COMPILED_KERNELS(extern, q8_0)

}  // namespace recycled::inline RECYCLED_ABI::kernels
