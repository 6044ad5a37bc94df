// The types that keys and values are stored in. Arithmetic is float everywhere.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <string_view>

#include "recycled/types/config.hpp"

namespace recycled::inline RECYCLED_ABI {

using half = Eigen::half;          ///< IEEE binary16, as storage
using bfloat16 = Eigen::bfloat16;  ///< upper half of a binary32, as storage

/// 32 values of one row and their common scale: value[i] = scale * quants[i]. GGML's block_q8_0, byte for byte.
struct q8_0 {
  static constexpr int block = 32;
  half scale = half(0);
  std::int8_t quants[block] = {};
};
static_assert(sizeof(q8_0) == 34, "q8_0 must have GGML's layout");

/// What a KV cache may be made of.
template <class T>
concept Scalar = std::same_as<T, float> || std::same_as<T, half> || std::same_as<T, bfloat16> || std::same_as<T, q8_0>;

/// Values that one stored element holds: 32 for q8_0, else 1. A row of `dim` values is dim / values_per_element<T>
/// elements of T, and strides count such elements.
template <Scalar T>
inline constexpr index_t values_per_element = 1;
template <>
inline constexpr index_t values_per_element<q8_0> = q8_0::block;

/// f32, f16, bf16 or q8_0.
template <Scalar T>
inline constexpr std::string_view type_name = std::same_as<T, float>      ? "f32"
                                              : std::same_as<T, half>     ? "f16"
                                              : std::same_as<T, bfloat16> ? "bf16"
                                                                          : "q8_0";

namespace detail {

/// 32 floats as GGML quantizes them: scale = max|x| / 127, rounded to half; quants by the scale before it was rounded.
inline q8_0 quantize(const float* x) {
  float largest = 0;
  for (int i = 0; i < q8_0::block; ++i) {
    if (std::abs(x[i]) > largest || x[i] != x[i]) largest = std::abs(x[i]);  // a NaN stays, and makes the scale one
  }
  const float scale = largest / 127.0F;
  const float inverse = scale != 0 ? 1.0F / scale : 0.0F;
  q8_0 result{.scale = half(scale)};
  for (int i = 0; i < q8_0::block; ++i) {
    // Clamped, because converting a NaN or an overflow to an integer would be undefined.
    const float quant = std::round(x[i] * inverse);
    result.quants[i] = static_cast<std::int8_t>(quant > -127.0F ? std::min(quant, 127.0F) : -127.0F);
  }
  return result;
}

}  // namespace detail

/// Rounds a row of `dim` floats to T (to nearest, ties to even; q8_0 as GGML does).
template <Scalar T>
void encode(const float* values, index_t dim, T* row) {
  if constexpr (std::same_as<T, q8_0>) {
    for (index_t b = 0; b < dim / q8_0::block; ++b) row[b] = detail::quantize(values + b * q8_0::block);
  } else {
    for (index_t i = 0; i < dim; ++i) row[i] = static_cast<T>(values[i]);
  }
}

/// The `dim` floats that a stored row stands for.
template <Scalar T>
void decode(const T* row, index_t dim, float* values) {
  if constexpr (std::same_as<T, q8_0>) {
    for (index_t i = 0; i < dim; ++i) {
      const q8_0& b = row[i / q8_0::block];
      values[i] = static_cast<float>(b.scale) * static_cast<float>(b.quants[i % q8_0::block]);
    }
  } else {
    for (index_t i = 0; i < dim; ++i) values[i] = static_cast<float>(row[i]);
  }
}

}  // namespace recycled::inline RECYCLED_ABI
