// Keys as codes of four bits, and all their logits for a few query rows: the inner loop of a sketched refresh.
//
//   logits[r][j] = scales[r] * sums[r][j] + biases[r][j's stretch]
//   sums[r][j]   = sum over coordinates c of weights[r][c] * codes[j][c]
//
// Codes 0 to 15 times signed bytes, summed up exactly in 16 bits: the same on every instruction set, and half of what
// floats would be to write down and read again. 32 positions
// stand together, four coordinates after four, so that a vector of codes is many positions' and a weight is the same
// for all of its lanes: no sum ever crosses lanes. A code is unpacked once for all query rows.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "recycled/kernels/rows.hpp"
#include "recycled/kernels/select.hpp"
#include "recycled/simd/math.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Positions whose codes stand together.
inline constexpr index_t code_block = 32;

/// Positions that share a bias.
inline constexpr index_t code_stretch = 128;

/// Bytes of a block's codes; `coordinates` is a multiple of 4.
constexpr index_t code_block_bytes(index_t coordinates) { return code_block * coordinates / 2; }
/// Bytes that the codes of `positions` positions take.
constexpr index_t code_bytes(index_t positions, index_t coordinates) {
  return (positions + code_block - 1) / code_block * code_block_bytes(coordinates);
}

/// Writes the codes of a position's coordinates c to c + 3, given as code 0 + 16 code 2 + 256 code 1 + 4096 code 3.
inline void set_codes(std::uint8_t* codes, index_t coordinates, index_t position, index_t c, unsigned four) {
  std::uint8_t* const at = codes + position / code_block * code_block_bytes(coordinates) + c / 4 * 2 * code_block +
                           position % code_block * 2;
  at[0] = static_cast<std::uint8_t>(four & 255);
  at[1] = static_cast<std::uint8_t>(four >> 8);
}

/// Calls f(first, bytes) for the runs of memory in which the codes of positions [begin, end) lie; a block begins at
/// `begin`.
template <class Codes, class F>
void for_each_code_run(Codes* codes, index_t coordinates, index_t begin, index_t end, const F& f) {
  const index_t whole = end / code_block * code_block;
  if (whole > begin) f(codes + code_bytes(begin, coordinates), code_bytes(whole - begin, coordinates));
  for (index_t c = 0; end > whole && c < coordinates; c += 4) {
    f(codes + code_bytes(whole, coordinates) + c / 4 * 2 * code_block, (end - whole) * 2);
  }
}

/// Bytes that the weights of a query row take: each stands twice.
constexpr index_t code_weight_bytes(index_t coordinates) { return 2 * coordinates; }

/// Rounds a query row's weights to bytes, as finely as sums in 16 bits allow, and returns what a logit is to be
/// multiplied by. NaN if a weight is no finite number.
inline float round_weights(const float* exact, index_t coordinates, std::int8_t* weights) {
  double largest = 0;
  double sum = 0;
  for (index_t c = 0; c < coordinates; ++c) {
    const double magnitude = std::abs(static_cast<double>(exact[c]));
    largest = magnitude > largest ? magnitude : largest;
    sum += magnitude;
  }
  // 15 times the sum of the rounded weights, each of which may have grown by a half, has to stay below 2^15.
  const double room = 32767.0 / 15 - static_cast<double>(coordinates) / 2;
  const double scale = std::max(largest / 127, sum / room);
  const bool sound = sum < std::numeric_limits<double>::infinity() && scale > 0;
  for (index_t c = 0; c < coordinates; ++c) {
    const auto weight =
        sound ? static_cast<std::int8_t>(std::lrint(static_cast<double>(exact[c]) / scale)) : std::int8_t{0};
    weights[c / 4 * 8 + c % 4 / 2 * 4 + c % 2] = weight;
    weights[c / 4 * 8 + c % 4 / 2 * 4 + c % 2 + 2] = weight;
  }
  return sound || sum == 0 ? static_cast<float>(scale) : std::numeric_limits<float>::quiet_NaN();
}

/// What a scan found: the logits of a KV head's query rows, as sums and what they are to be multiplied by.
template <class Isa>
struct CodeLogits {
  std::int16_t* sums = nullptr;  ///< row r's start at sums + r * stride, and have room for whole blocks
  index_t stride = 0;
  const float* scales = nullptr;
  const float* biases = nullptr;  ///< row r's start at biases + r * bias_stride
  index_t bias_stride = 0;
  float soft_cap = 0;  ///< AttentionOptions.soft_cap

  /// Of positions [j, j + width), j a multiple of width.
  typename Isa::vec load(index_t r, index_t j) const {
    return capped(
        Isa::fma(Isa::load_sums(sums + r * stride + j), Isa::broadcast(scales[r]), Isa::broadcast(bias(r, j))));
  }
  /// Of a vector of positions.
  typename Isa::vec gather(index_t r, const index_t* positions) const {
    return capped(Isa::fma(Isa::gather_sums(sums + r * stride, positions), Isa::broadcast(scales[r]),
                           Isa::template gather<stretch_shift>(biases + r * bias_stride, positions)));
  }
  float at(index_t r, index_t j) const {
    return capped(static_cast<float>(sums[r * stride + j]) * scales[r] + bias(r, j));
  }
  /// The largest of positions [begin, end), where a stretch begins: no scale is negative, so that of a stretch is that
  /// of its largest sum.
  float largest(index_t r, index_t begin, index_t end) const {
    const std::int16_t* const row = sums + r * stride;
    auto top = Isa::broadcast(std::numeric_limits<float>::lowest());
    for (index_t j = begin; j < end; j += code_stretch) {
      const index_t last = std::min(j + code_stretch, end), whole = j + (last - j) / Isa::code_lanes * Isa::code_lanes;
      std::int16_t lanes[Isa::code_lanes];
      std::fill_n(lanes, Isa::code_lanes, row[j]);
      auto most = Isa::load_sums16(lanes);
      for (index_t i = j; i < whole; i += Isa::code_lanes) most = Isa::max(most, Isa::load_sums16(row + i));
      Isa::store(lanes, most);
      for (index_t i = whole; i < last; ++i) lanes[i - whole] = std::max(lanes[i - whole], row[i]);
      for (int i = 0; i < Isa::code_lanes; i += Isa::width) {
        // What is no number comes first: then it stays.
        top = Isa::max(top, Isa::fma(Isa::load_sums(lanes + i), Isa::broadcast(scales[r]), Isa::broadcast(bias(r, j))));
      }
    }
    return capped(Isa::reduce_max(top));
  }

  /// Calls f(i, x) for vectors of positions from `begin`, of a stretch that ends at `end` or later: x = slope * (logit
  /// - shift) + offset. The last vector may reach beyond `end`.
  template <class F>
  [[gnu::always_inline]] void for_each_line(index_t r, index_t begin, index_t end, float slope, float shift,
                                            float offset, const F& f) const {
    const std::int16_t* const row = sums + r * stride;
    if (soft_cap > 0) {
      for (index_t i = begin; i < end; i += Isa::width) {
        f(i, Isa::fma(Isa::sub(load(r, i), Isa::broadcast(shift)), Isa::broadcast(slope), Isa::broadcast(offset)));
      }
      return;
    }
    const auto factor = Isa::broadcast(slope * scales[r]);
    const auto rest = Isa::broadcast(slope * (bias(r, begin) - shift) + offset);
    for (index_t i = begin; i < end; i += Isa::width) f(i, Isa::fma(Isa::load_sums(row + i), factor, rest));
  }
  /// The largest log-weight of the group, as group_log_weights has it, for whole vectors of positions.
  void log_weights(std::span<const float> lse, index_t length, float* weights) const {
    for (index_t begin = 0; begin < length; begin += code_stretch) {
      const index_t end = std::min(begin + code_stretch, length);
      std::fill(weights + begin, weights + begin + simd::padded<Isa>(end - begin),
                -std::numeric_limits<float>::infinity());
      for (index_t r = 0; r < static_cast<index_t>(lse.size()); ++r) {
        for_each_line(r, begin, end, 1, lse.data()[r], 0, [weights](index_t i, typename Isa::vec x) {
          Isa::store(weights + i, Isa::max(x, Isa::load(weights + i)));
        });
      }
    }
  }
  /// As StepLogits::mass.
  float mass(index_t r, float lse, std::span<const index_t> positions, float* scratch) const {
    const auto count = static_cast<index_t>(positions.size());
    index_t i = 0;
    if constexpr (simd::gathers<Isa>) {
      for (; i + Isa::width <= count; i += Isa::width) Isa::store(scratch + i, gather(r, positions.data() + i));
    }
    for (; i < count; ++i) scratch[i] = at(r, positions.data()[i]);
    return kernels::mass<Isa>(scratch, count, lse);
  }

 private:
  float bias(index_t r, index_t j) const {
    return biases[r * bias_stride + static_cast<index_t>(static_cast<std::uint64_t>(j) / code_stretch)];
  }
  static constexpr int stretch_shift = std::countr_zero(static_cast<std::uint64_t>(code_stretch));

  typename Isa::vec capped(typename Isa::vec logits) const {
    return soft_cap > 0 ? simd::capped<Isa>(logits, soft_cap) : logits;
  }
  float capped(float logit) const { return soft_cap > 0 ? soft_cap * std::tanh(logit / soft_cap) : logit; }
};

/// The module comment's sums for Rows query rows and whole blocks of positions; row r's weights start at weights + r *
/// code_weight_bytes.
template <class Isa, int Rows>
void scan_rows(const std::uint8_t* codes, index_t blocks, index_t coordinates, const std::int8_t* weights,
               std::int16_t* to, index_t stride) {
  constexpr index_t lanes = Isa::code_lanes;
  constexpr int parts = Isa::code_parts;
  static_assert(code_block % (lanes * parts) == 0);
  for (index_t b = 0; b < blocks; ++b) {
    const std::uint8_t* const at = codes + b * code_block_bytes(coordinates);
    for (index_t first = 0; first < code_block; first += lanes * parts) {
      typename Isa::sums16 sums[Rows][parts];
      simd::unroll<Rows>([&](auto r) { simd::unroll<parts>([&](auto i) { sums[r][i] = Isa::zero_sums16(); }); });
      for (index_t c = 0; c < coordinates; c += 4) {
        const std::uint8_t* const four = at + c / 4 * 2 * code_block + first * 2;
        typename Isa::codes unpacked[parts];
        simd::unroll<parts>([&](auto i) { unpacked[i] = Isa::load_codes(four + i * lanes * 2); });
        simd::unroll<Rows>([&](auto r) {
          const auto weight = Isa::load_code_weights(weights + r * code_weight_bytes(coordinates) + c * 2);
          simd::unroll<parts>([&](auto i) { sums[r][i] = Isa::add_products(sums[r][i], unpacked[i], weight); });
        });
      }
      simd::unroll<Rows>([&](auto r) {
        simd::unroll<parts>(
            [&](auto i) { Isa::store(to + r * stride + b * code_block + first + i * lanes, sums[r][i]); });
      });
    }
  }
}

/// log(sum of exp(logit)) over positions that come a stretch at a time, to about .03: it only says how the query heads
/// of a group compare.
template <class Isa>
class CodeLogSumExp {
 public:
  /// Positions [begin, end) of row r, where a stretch begins. Meanwhile `ahead` is fetched, so many bytes a position:
  /// memory would be idle.
  void add(const CodeLogits<Isa>& logits, index_t r, index_t begin, index_t end, const void* ahead = nullptr,
           index_t bytes = 0) {
    const float largest = logits.largest(r, begin, end);
    const float max = largest <= max_ ? max_ : largest;  // a NaN stays
    // A float's bits are about its logarithm: 2^23 (log2 x + 127), if a little is taken off, and back.
    constexpr float one = 127 * 8388608.0F - 366393.0F, per_nat = 8388608.0F * 1.44269504F, most = 2147483520.0F;
    auto sums = Isa::zero();
    const index_t whole = begin + (end - begin) / Isa::width * Isa::width;
    for (index_t j = begin; j < whole; j += code_stretch) {
      logits.for_each_line(
          r, j, std::min(j + code_stretch, whole), per_nat, max,
          one, [&](index_t i, typename Isa::vec bits) __attribute__((always_inline)) {
            for (index_t line = 0; line < Isa::width * bytes; line += 64) {
              simd::prefetch_l2(ahead, (i - begin) * bytes + line);
            }
            bits = Isa::min(Isa::max(bits, Isa::zero()), Isa::broadcast(most));
            sums = Isa::add(sums, Isa::from_bits(bits));
          });
    }
    float sum = Isa::reduce_add(sums);
    for (index_t j = whole; j < end; ++j) sum += std::exp(logits.at(r, j) - max);
    sum_ = sum_ * std::exp(max_ - max) + sum;
    max_ = max;
  }
  /// NaN if a logit is none. (The largest one's share is 1, even where logits are so large that it was rounded away.)
  float value() const { return max_ + std::log(sum_ < 1 ? 1.0F : sum_); }

 private:
  float max_ = std::numeric_limits<float>::lowest();
  float sum_ = 0;
};

/// All sums and, while they are in the cache, the log-sum-exp of each row.
template <class Isa>
void scan_codes(const std::uint8_t* codes, index_t positions, index_t coordinates, const std::int8_t* weights,
                const CodeLogits<Isa>& logits, std::span<float> lse) {
  constexpr index_t stretch = 32 * code_block;
  static_assert(stretch % code_stretch == 0 && code_stretch % code_block == 0);
  for_row_tiles<4>(static_cast<index_t>(lse.size()), [&](auto tile, index_t r) {
    CodeLogSumExp<Isa> sums[tile()];
    for (index_t begin = 0; begin < positions; begin += stretch) {
      const index_t end = std::min(begin + stretch, positions);
      scan_rows<Isa, tile()>(codes + begin / code_block * code_block_bytes(coordinates),
                             (end - begin + code_block - 1) / code_block, coordinates,
                             weights + r * code_weight_bytes(coordinates), logits.sums + r * logits.stride + begin,
                             logits.stride);
      // The next stretch, a part with each row.
      const index_t next = (begin + stretch) / code_block * code_block_bytes(coordinates);
      const index_t share = code_block_bytes(coordinates) / code_block / tile();
      for (index_t i = 0; i < tile(); ++i) {
        sums[i].add(logits, r + i, begin, end, simd::address(codes, next + i * stretch * share), share);
      }
    }
    for (index_t i = 0; i < tile(); ++i) lse.data()[r + i] = sums[i].value();
  });
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
