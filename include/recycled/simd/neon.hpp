// AArch64 NEON: four floats, thirty-two registers.
#pragma once

#include <arm_neon.h>

#include "recycled/simd/generic.hpp"

namespace recycled::inline RECYCLED_ABI::simd {

/// What each operation means: simd/generic.hpp.
struct neon {
  static constexpr const char* name = "neon";
  static constexpr int width = 4;
  // 4 x 4 sums, 4 keys or values, 1 query or weight: 21 of 32 registers.
  static constexpr int most_score_rows = 4;
  static constexpr int most_value_rows = 4;
  static constexpr int score_positions(int rows) { return rows <= 2 ? 8 : 4; }
  static constexpr int value_vectors(int rows) { return rows <= 2 ? 8 : 4; }

  using vec = float32x4_t;

  static vec broadcast(float x) { return vdupq_n_f32(x); }
  static vec zero() { return vdupq_n_f32(0); }
  static vec load(const float* p) { return vld1q_f32(p); }
  static vec load(const half* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))));
  }
  static vec load(const bfloat16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)), 16));
  }
  static vec load_quants(const std::int8_t* p) {
    std::int32_t four = 0;
    __builtin_memcpy(&four, p, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
  }
  static vec broadcast(half x) { return vdupq_n_f32(static_cast<float>(x)); }
  static void store(float* p, vec a) { vst1q_f32(p, a); }

  static vec add(vec a, vec b) { return vaddq_f32(a, b); }
  static vec sub(vec a, vec b) { return vsubq_f32(a, b); }
  static vec mul(vec a, vec b) { return vmulq_f32(a, b); }
  static vec div(vec a, vec b) { return vdivq_f32(a, b); }
  static vec fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
  static vec max(vec a, vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static vec min(vec a, vec b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static vec select_less(vec x, vec y, vec a, vec b) { return vbslq_f32(vcltq_f32(x, y), a, b); }
  static unsigned greater_mask(vec a, vec b) {
    const uint32x4_t bit = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgtq_f32(a, b), bit));
  }
  static vec round(vec a) { return vrndnq_f32(a); }
  static vec scale_by_power_of_2(vec a, vec n) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
  }

  static float reduce_add(vec a) { return vaddvq_f32(a); }
  static float reduce_max(vec a) { return vmaxvq_f32(a); }
  static void store_sums(float* sums, vec a, vec b, vec c, vec d) {
    vst1q_f32(sums, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
  }
};

}  // namespace recycled::inline RECYCLED_ABI::simd
