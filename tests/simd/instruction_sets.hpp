// Typed tests over every instruction set that this program is compiled for, alone and with every KV type.
#pragma once

#include <gtest/gtest.h>

#include <recycled/simd/simd.hpp>
#include <string>

namespace testing_types {

namespace simd = recycled::simd;

/// An instruction set and a KV type.
template <class I, recycled::Scalar S>
struct Kernel {
  using Isa = I;
  using T = S;
};

template <class T>
constexpr const char* type_name() {
  if constexpr (std::is_same_v<T, float>) return "float";
  if constexpr (std::is_same_v<T, recycled::half>) return "half";
  if constexpr (std::is_same_v<T, recycled::bfloat16>) return "bfloat16";
  if constexpr (std::is_same_v<T, recycled::q8_0>) return "q8_0";
}

struct Names {
  template <class T>
  static std::string GetName(int) {
    if constexpr (requires { typename T::Isa; }) {
      return std::string(T::Isa::name) + "_" + type_name<typename T::T>();
    } else {
      return T::name;
    }
  }
};

template <class... Isas>
struct Lists {
  using InstructionSets = testing::Types<Isas...>;
  using Kernels = testing::Types<Kernel<Isas, float>..., Kernel<Isas, recycled::half>...,
                                 Kernel<Isas, recycled::bfloat16>..., Kernel<Isas, recycled::q8_0>...>;
};

using Built = Lists<simd::generic
#if defined(RECYCLED_HAS_AVX2)
                    ,
                    simd::avx2
#endif
#if defined(RECYCLED_HAS_AVX512)
                    ,
                    simd::avx512
#endif
#if defined(RECYCLED_HAS_NEON)
                    ,
                    simd::neon
#endif
                    >;

using InstructionSets = Built::InstructionSets;
using Kernels = Built::Kernels;
/// The instruction set that the library itself would choose. Tests that take long to compile run on this one: the tests
/// of the kernels are built for several -march, and every set is the native one of a build.
using NativeKernels = Lists<simd::native>::Kernels;

}  // namespace testing_types
