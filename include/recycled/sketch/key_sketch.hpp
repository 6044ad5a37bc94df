// An image of a layer's keys that is a small part of their size and finds the rows that matter.
//
// For each KV head: axes that keep most of what queries see in its keys (axes.hpp), and of every key its coordinates on
// them, in four bits each. Positions go by stretches: what is coded is the difference of a key to the mean of the
// stretch before, which follows keys wherever positions turn them; a query's logit is its product with that mean, in
// float, and with the codes.
#pragma once

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

#include "recycled/kernels/code_scan.hpp"
#include "recycled/kernels/score_tile.hpp"
#include "recycled/kernels/workspace.hpp"
#include "recycled/sketch/axes.hpp"
#include "recycled/sketch/seen_queries.hpp"
#include "recycled/types/archive.hpp"
#include "recycled/types/kv_view.hpp"
#include "recycled/types/memory.hpp"

namespace recycled::inline RECYCLED_ABI {

/// The sketch of all KV heads of one layer. Heads may be worked on in parallel, each by one thread at a time; a value,
/// and one of a layer.
template <Scalar T>
class KeySketch {
 public:
  /// Of `coordinates` axes for each KV head: a multiple of 4, at most 64. `shape` is checked; `layer` is which one of a
  /// model this is: layers don't all look for new axes at the same token.
  KeySketch(const Shape& shape, index_t coordinates, index_t layer = 0)
      : shape_(shape),
        coordinates_(coordinates),
        layer_(layer),
        row_stride_(simd::padded<Isa>(shape.head_dim)),
        key_axes_(shape.kv_heads * coordinates * row_stride_, 0.0F),  // what pads a row stays so
        query_axes_(shape.kv_heads * coordinates * row_stride_, 0.0F),
        inverses_(shape.kv_heads * coordinates),
        scratch_(shape.kv_heads * scratch_floats()),
        weights_(shape.kv_heads * shape.group() * kernels::code_weight_bytes(coordinates)),
        scales_(shape.query_heads),
        anchors_(shape.query_heads),
        peaks_(shape.query_heads),
        factors_(shape.query_heads),
        seen_(shape),
        heads_(static_cast<std::size_t>(shape.kv_heads)) {}

  bool built(index_t g) const noexcept { return head(g).built_length > 0; }
  /// Whether a head should get new axes for a cache of `length` positions: there are none, the cache has grown by a
  /// quarter to a half, or by now it is known what queries look like.
  bool aged(index_t g, index_t length) const noexcept {
    const Head& h = head(g);
    const index_t turn = (layer_ * shape_.kv_heads + g) % turns;
    return length >= h.built_length + h.built_length / 2 - h.built_length / 4 * turn / turns ||
           (h.built_queries < SeenQueries::most_tokens && seen_.count() >= SeenQueries::most_tokens + turn);
  }
  /// Of one head's image of `positions` positions.
  index_t bytes(index_t positions) const noexcept {
    return positions * coordinates_ / 2 + stretches(positions) * shape_.head_dim * static_cast<index_t>(sizeof(float));
  }

  /// What tells it which axes matter: to be given the queries of the prompt and of decode steps.
  SeenQueries& seen() noexcept { return seen_; }

  /// Floats that a head needs while its axes are being found.
  static index_t axis_floats(const Shape& shape) {
    return detail::AxisScratch::floats(shape.head_dim, simd::padded<Isa>(shape.head_dim));
  }
  /// Finds axes anew for those heads that have aged, from the positions of `kv` and the queries seen, and codes all
  /// positions. `axis_memory`: axis_floats for each KV head.
  template <class E>
  void renew(const KvView<T>& kv, float* axis_memory, E& executor) {
    bool any = false;
    for (index_t g = 0; g < shape_.kv_heads; ++g) any = any || aged(g, kv.length);
    if (!any) return;
    executor(shape_.kv_heads, [&](index_t g) {
      if (!aged(g, kv.length)) return;
      Head& h = head(g);
      look_for_axes(g, kv, {axis_memory + g * axis_floats(shape_), shape_.head_dim, row_stride_});
      h.length = 0;
      catch_up(g, kv);
      h.built_length = kv.length;
      h.built_queries = seen_.count();
    });
  }
  /// Room for an image of `length` positions.
  void reserve(index_t length) {
    for (Head& h : heads_) reserve(h, length);
  }
  /// Codes what `kv` has of one head beyond the positions that have codes. Keys may come late, several at a time.
  void catch_up(index_t g, const KvView<T>& kv) noexcept {
    Head& h = head(g);
    while (h.length < kv.length) {
      const index_t stretch = h.length / kernels::code_stretch;
      if (h.length % kernels::code_stretch == 0 && stretch > 0) note_mean(g, kv, stretch);
      const index_t end = std::min((stretch + 1) * kernels::code_stretch, kv.length);
      encode(g, kv, stretch, end);
      h.length = end;
    }
  }
  /// Positions from `length` on are gone. If they were most of what axes were found from, so are these.
  void truncate(index_t length) noexcept {
    for (Head& h : heads_) {
      h.length = std::min(h.length, length);
      if (length < h.built_length / 2) h.built_length = 0;
    }
  }
  void clear() noexcept {
    for (Head& h : heads_) h.length = h.built_length = h.built_queries = 0;
    seen_.clear();
  }

  /// Of a layer that has `length` positions. Axes and means go without what pads them for this machine's vectors.
  template <class Io>
  void transfer(Io& io, index_t length) {
    seen_.transfer_count(io);
    for (index_t g = 0; g < shape_.kv_heads; ++g) {
      seen_.transfer(io, g);
      Head& h = head(g);
      index_t coded = built(g) ? h.length : 0;
      io.count(coded, 0, length, "positions of the sketch");
      io.count(h.built_length, 0, detail::most_positions, "positions of its axes");
      io.count(h.built_queries, 0, detail::most_positions, "queries of its axes");
      if (!built(g)) continue;  // nor is anything coded, as far as anybody asks
      io.array(inverses_.data() + g * coordinates_, coordinates_);
      for (index_t c = g * coordinates_; c < (g + 1) * coordinates_; ++c) {
        io.array(key_axes_.data() + c * row_stride_, shape_.head_dim);
        io.array(query_axes_.data() + c * row_stride_, shape_.head_dim);
      }
      // A stretch at a time, and of this head, so that memory is taken for what there is.
      for (index_t begin = 0; begin < std::max(coded, index_t{1}); begin += kernels::code_stretch) {
        if constexpr (Io::loads) reserve(h, begin + kernels::code_stretch);
        io.array(mean(g, begin / kernels::code_stretch), shape_.head_dim);
        kernels::for_each_code_run(h.codes.data(), coordinates_, begin, std::min(begin + kernels::code_stretch, coded),
                                   [&](std::uint8_t* codes, index_t bytes) { io.array(codes, bytes); });
      }
      if constexpr (Io::loads) h.length = coded;
    }
  }

  /// The logits of the group's packed query rows at positions [0, length), in `to`, whose rows have room for whole
  /// blocks of codes, and their log-sum-exps: NaN for all rows, and no logits, if one of them is no number.
  // NOLINTBEGIN(readability-non-const-parameter): what it returns is written to
  kernels::CodeLogits<simd::native> scan(index_t g, const kernels::Queries& queries, index_t length, float soft_cap,
                                         std::int16_t* to, index_t stride, std::span<float> lse) noexcept {
    // NOLINTEND(readability-non-const-parameter)
    Head& h = head(g);
    const kernels::Rows<float> axes{query_axes_.data() + g * coordinates_ * row_stride_, row_stride_, shape_.head_dim};
    const index_t weight_bytes = kernels::code_weight_bytes(coordinates_), count = stretches(length);
    const index_t first = g * shape_.group();
    std::int8_t* const weights = weights_.data() + first * weight_bytes;
    float* const scales = scales_.data() + first;
    const auto centre = [&](index_t r) {  // a code of 7.5 stands for 0; each weight is there twice
      const std::int8_t* const row = weights + r * weight_bytes;
      return 7.5F / 2 * scales[r] * static_cast<float>(std::accumulate(row, row + weight_bytes, 0));
    };
    for_products(g, axes, coordinates_, queries, [&](index_t r, index_t /*first*/, const float* products, index_t) {
      scales[r] = kernels::round_weights(products, coordinates_, weights + r * weight_bytes);
    });
    const kernels::Rows<float> means{h.means.data(), row_stride_, shape_.head_dim};
    for_products(g, means, count, queries, [&](index_t r, index_t at, const float* products, index_t n) {
      std::transform(products, products + n, h.biases.data() + r * count + at,
                     [middle = centre(r)](float product) { return product - middle; });
    });
    const kernels::CodeRows rows{
        weights, scales, h.biases.data(), count, anchors_.data() + first, factors_.data() + first, h.offsets.data()};
    const float unit = rows.fix_point(shape_.group(), coordinates_, soft_cap > 0);
    const kernels::CodeLogits<Isa> logits{to, stride, unit, rows.anchors, peaks_.data() + first};
    if (unit == unit) {
      kernels::scan_codes<Isa>(h.codes.data(), length, coordinates_, rows, soft_cap, logits, lse);
    } else {
      std::fill(lse.begin(), lse.end(), unit);
    }
    return logits;
  }

 private:
  using Isa = simd::native;
  static constexpr index_t most_samples = 2048;
  static constexpr index_t turns = 32;

  struct Head {
    Array<std::uint8_t> codes;    // in blocks of 32 positions
    Array<float> means;           // [stretch, row_stride]: what its codes are differences to
    Array<float> biases;          // [query row, stretch], of the last scan,
    Array<std::int16_t> offsets;  // and what CodeRows makes of them
    index_t length = 0;           // positions that have codes
    index_t built_length = 0;     // positions that the axes were found from; 0: none were
    index_t built_queries = 0;    // and how many tokens' queries had been seen then
  };

  static index_t stretches(index_t positions) {
    return (positions + kernels::code_stretch - 1) / kernels::code_stretch;
  }
  void reserve(Head& h, index_t length) {
    const auto grow = [](auto& array, index_t size) {
      const index_t before = array.size();
      if (size <= before) return;
      array.resize(std::max(size, 2 * before));
      std::fill(array.begin() + before, array.end(), 0);
    };
    grow(h.codes, kernels::code_bytes(length, coordinates_));
    grow(h.means, stretches(length) * row_stride_);
    grow(h.biases, shape_.group() * stretches(length));
    grow(h.offsets, shape_.group() * stretches(length));
  }
  Head& head(index_t g) noexcept { return heads_[static_cast<std::size_t>(g)]; }
  const Head& head(index_t g) const noexcept { return heads_[static_cast<std::size_t>(g)]; }
  /// Products of a block, the scales of a block of q8_0, one row, and the middle of each coordinate's codes.
  index_t scratch_floats() const {
    return coordinates_ * kernels::logit_stride + shape_.head_dim / q8_0::block * kernels::block + row_stride_ +
           coordinates_ + 96;
  }
  float* scratch(index_t g) noexcept { return scratch_.data() + g * scratch_floats(); }
  float* scales_of(index_t g) noexcept { return scratch(g) + coordinates_ * kernels::logit_stride + 32; }
  float* row_of(index_t g) noexcept { return scales_of(g) + shape_.head_dim / q8_0::block * kernels::block + 32; }
  float* middles_of(index_t g) noexcept { return row_of(g) + row_stride_; }

  /// Calls f(r, first, products, n) with the products of query row r and rows [first, first + n).
  template <class F>
  void for_products(index_t g, const kernels::Rows<float>& rows, index_t count, const kernels::Queries& queries,
                    const F& f) noexcept {
    float* const products = scratch(g);
    for (index_t first = 0; first < count; first += kernels::block) {
      const index_t n = std::min(kernels::block, count - first);
      kernels::for_row_tiles<4>(queries.rows, [&](auto tile, index_t r) {
        const kernels::Queries some{queries.first + r * queries.stride, queries.stride, tile()};
        kernels::score_block<Isa>(rows.from(first), rows.from(first), n, some, products, products);
        for (index_t i = 0; i < tile(); ++i) f(r + i, first, products + i * kernels::logit_stride, n);
      });
    }
  }

  /// The mean of every `apart`-th key of [begin, end), of those that are numbers.
  void mean_of(index_t g, const KvView<T>& kv, index_t begin, index_t end, index_t apart, float* to) noexcept {
    float* const row = row_of(g);
    float count = 0;
    std::fill_n(to, row_stride_, 0.0F);
    for (index_t j = begin; j < end; j += apart) {
      read_key(g, kv, j, row);
      if (!detail::all_finite<Isa>(row, row_stride_)) continue;
      const float share = 1 / ++count;
      for (index_t d = 0; d < shape_.head_dim; ++d) to[d] += (row[d] - to[d]) * share;
    }
  }
  void note_mean(index_t g, const KvView<T>& kv, index_t stretch) noexcept {
    const index_t end = stretch * kernels::code_stretch;
    mean_of(g, kv, end - kernels::code_stretch, end, 1, mean(g, stretch));
  }
  float* mean(index_t g, index_t stretch) noexcept { return head(g).means.data() + stretch * row_stride_; }
  void read_key(index_t g, const KvView<T>& kv, index_t position, float* row) const noexcept {
    decode(kv.key(position, g), shape_.head_dim, row);
    std::fill(row + shape_.head_dim, row + row_stride_, 0.0F);
  }

  void look_for_axes(index_t g, const KvView<T>& kv, const detail::AxisScratch& s) noexcept {
    const index_t apart = (kv.length + most_samples - 1) / most_samples, dim = shape_.head_dim;
    mean_of(g, kv, 0, kv.length, apart, mean(g, 0));  // before the first stretch there is none
    for (index_t i = 1; i < stretches(kv.length); ++i) note_mean(g, kv, i);
    const auto moments = [&](const detail::Matrix& to, index_t count, const auto& read) {
      std::fill_n(to.first, dim * row_stride_, 0.0F);
      index_t waiting = 0, taken = 0;
      for (index_t i = 0; i < count; ++i) {
        read(i, s.samples[waiting]);
        if (detail::all_finite<Isa>(s.samples[waiting], row_stride_)) ++waiting;  // what is no number says nothing
        if (waiting < detail::AxisScratch::rows && i + 1 < count) continue;
        detail::add_moments<Isa>(s.samples, waiting, to, dim);
        taken += waiting;
        waiting = 0;
      }
      return taken;
    };
    const index_t keys = moments(s.keys, (kv.length + apart - 1) / apart, [&](index_t i, float* row) {
      read_key(g, kv, i * apart, row);
      const float* const near = mean(g, i * apart / kernels::code_stretch);
      for (index_t d = 0; d < dim; ++d) row[d] -= near[d];
    });
    for (index_t i = 0; i < dim * row_stride_; ++i) s.keys.first[i] /= static_cast<float>(std::max(keys, index_t{1}));
    const index_t queries = moments(s.queries, seen_.rows(), [&](index_t i, float* row) {
      std::copy_n(seen_.row(g, i), dim, row);
      std::fill(row + dim, row + row_stride_, 0.0F);
    });
    detail::temper(s.queries, dim, queries);
    const index_t first = g * coordinates_ * row_stride_;
    detail::find_axes<Isa>(s, dim, coordinates_,
                           {key_axes_.data() + first, query_axes_.data() + first, inverses_.data() + g * coordinates_});
  }

  /// Codes of positions [length, end) of one stretch.
  void encode(index_t g, const KvView<T>& kv, index_t stretch, index_t end) noexcept {
    const kernels::Queries axes{key_axes_.data() + g * coordinates_ * row_stride_, row_stride_, coordinates_};
    float* const coordinates = scratch(g);
    for (index_t c = 0; c < coordinates_; ++c) {
      const float to_mean = detail::dot<Isa>(mean(g, stretch), axes.first + c * row_stride_, row_stride_);
      middles_of(g)[c] = 7.5F - to_mean * inverses_[g * coordinates_ + c];
    }
    for (index_t begin = head(g).length; begin < end;) {
      const Range run = kv.pages.run({begin, std::min(begin + kernels::block, end)});
      const kernels::Rows<T> keys{kv.head_keys(g) + run.begin * kv.key_strides.position, kv.key_strides.position,
                                  shape_.head_dim};
      kernels::score_block<Isa>(keys, keys, run.size(), axes, scales_of(g), coordinates);
      for (index_t c = 0; c < coordinates_; c += 4) {
        float fours[kernels::block];
        for (index_t j = 0; j < run.size(); j += Isa::width) {
          const auto weigh = [&](index_t i, float weight, simd::native::vec sum) __attribute__((always_inline)) {
            return Isa::fma(code(g, c + i, coordinates + (c + i) * kernels::logit_stride + j), Isa::broadcast(weight),
                            sum);
          };
          Isa::store(fours + j, weigh(3, 4096, weigh(1, 256, weigh(2, 16, weigh(0, 1, Isa::zero())))));
        }
        for (index_t j = 0; j < run.size(); ++j) {
          kernels::set_codes(head(g).codes.data(), coordinates_, begin + j, c, static_cast<unsigned>(fours[j]));
        }
      }
      begin += run.size();
    }
  }
  /// The codes of a vector of positions. What is no number becomes 0.
  typename Isa::vec code(index_t g, index_t c, const float* values) noexcept {
    const auto exact =
        Isa::fma(Isa::load(values), Isa::broadcast(inverses_[g * coordinates_ + c]), Isa::broadcast(middles_of(g)[c]));
    return Isa::round(Isa::min(Isa::max(exact, Isa::zero()), Isa::broadcast(15)));
  }

  Shape shape_;
  index_t coordinates_ = 0;
  index_t layer_ = 0;
  index_t row_stride_ = 0;
  Array<float> key_axes_;       // [kv_heads, coordinates, row_stride]
  Array<float> query_axes_;     // the same for queries
  Array<float> inverses_;       // [kv_heads, coordinates]
  Array<float> scratch_;        // [kv_heads, scratch_floats]
  Array<std::int8_t> weights_;  // [query_heads, code_weight_bytes]
  Array<float> scales_;         // [query_heads]: a logit to a sum,
  Array<float> anchors_;        // and what kernels::CodeRows wants to note of it
  Array<float> peaks_;          // the largest logit of each, relative to its anchor
  Array<std::int16_t> factors_;
  SeenQueries seen_;
  std::vector<Head> heads_;
};

}  // namespace recycled::inline RECYCLED_ABI
