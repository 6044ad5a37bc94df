// An image of a layer's keys that is a sixteenth to a thirty-second of their size and finds the rows that matter.
//
// For each KV head: the leading principal axes of its keys, and of every key its coordinates on them, in four bits
// each. A query's coordinates times a key's are about their dot product, up to a constant that all positions share: the
// mean key is left out, and a softmax does not see it.
#pragma once

#include <Eigen/Eigenvalues>
#include <atomic>
#include <new>
#include <span>
#include <vector>

#include "recycled/kernels/code_scan.hpp"
#include "recycled/kernels/score_tile.hpp"
#include "recycled/kernels/workspace.hpp"
#include "recycled/types/kv_view.hpp"
#include "recycled/types/memory.hpp"

namespace recycled::inline RECYCLED_ABI {

/// The sketch of all KV heads of one layer. Heads may be worked on in parallel; a value, and one of a layer.
template <Scalar T>
class KeySketch {
 public:
  /// Of `coordinates` axes for each KV head: a multiple of 4, at most 64. `shape` is checked.
  KeySketch(const Shape& shape, index_t coordinates)
      : shape_(shape),
        coordinates_(coordinates),
        axis_stride_(simd::padded<Isa>(shape.head_dim)),
        key_axes_(shape.kv_heads * coordinates * axis_stride_),
        query_axes_(shape.kv_heads * coordinates * axis_stride_),
        inverses_(shape.kv_heads * coordinates),
        middles_(shape.kv_heads * coordinates),
        scratch_(shape.kv_heads * scratch_floats()),
        weights_(shape.kv_heads * shape.group() * kernels::code_weight_bytes(coordinates)),
        scales_(shape.kv_heads * shape.group()),
        seen_queries_(seen_tokens * shape.query_size()),
        codes_(static_cast<std::size_t>(shape.kv_heads)),
        lengths_(shape.kv_heads, 0) {}

  bool built() const noexcept { return built_length_ > 0; }
  /// Whether a cache of `length` positions should get new axes: it has doubled (so each position is coded twice on
  /// average, however long a sequence becomes), or by now it is known what queries look like.
  bool aged(index_t length) const noexcept {
    return length >= 2 * built_length_ || (built_queries_ < seen_tokens && seen_ >= seen_tokens);
  }
  /// Of one head's codes of `positions` positions.
  index_t bytes(index_t positions) const noexcept { return positions * coordinates_ / 2; }

  /// Takes note of queries [tokens, query_heads, head_dim]: the last 64 tokens' say what axes are for.
  void see(std::span<const float> queries) noexcept {
    const index_t size = shape_.query_size(), given = static_cast<index_t>(queries.size()) / size;
    for (index_t t = std::max(given - seen_tokens, index_t{0}); t < given; ++t, ++seen_) {
      std::copy_n(queries.data() + t * size, size, seen_queries_.data() + seen_ % seen_tokens * size);
    }
  }
  /// The same for a decode step's, of which some will do.
  void see_step(std::span<const float> query, index_t length) noexcept {
    if (seen_ < seen_tokens || length % noted_apart == 0) see(query);
  }

  /// Finds axes from the positions of `kv` and the queries seen, and codes all positions. If memory runs out, there is
  /// no sketch.
  template <class E>
  void build(const KvView<T>& kv, E& executor) {
    const index_t seen = seen_;
    clear();
    seen_ = seen;
    reserve(kv.length);
    std::atomic<bool> no_memory{false};  // pieces must not throw
    executor(shape_.kv_heads, [&](index_t g) {
#if defined(RECYCLED_HAS_EXCEPTIONS)
      try {
        find_axes(g, kv);
      } catch (const std::bad_alloc&) {
        no_memory = true;
      }
#else
      find_axes(g, kv);
#endif
      encode(g, kv, 0);
    });
#if defined(RECYCLED_HAS_EXCEPTIONS)
    if (no_memory) throw std::bad_alloc();
#endif
    built_length_ = kv.length;
    built_queries_ = seen_;
  }
  /// Room for codes of `length` positions.
  void reserve(index_t length) {
    for (auto& head : codes_) {
      const index_t bytes = kernels::code_bytes(length, coordinates_), before = head.size();
      if (bytes <= before) continue;
      head.resize(std::max(bytes, 2 * before));
      std::fill(head.begin() + before, head.end(), std::uint8_t{0});
    }
  }
  /// Codes what `kv` has of one head beyond the positions that have codes. Keys may come late, several at a time.
  void catch_up(index_t g, const KvView<T>& kv) noexcept { encode(g, kv, lengths_[g]); }
  /// Positions from `length` on are gone.
  void truncate(index_t length) noexcept {
    for (index_t& coded : lengths_) coded = std::min(coded, length);
  }
  void clear() noexcept {
    truncate(0);
    built_length_ = built_queries_ = seen_ = 0;
  }

  /// The logits of the group's packed query rows at positions [0, length), in `sums` (see CodeLogits), and their
  /// log-sum-exp.
  kernels::CodeLogits<simd::native> scan(index_t g, const kernels::Queries& queries, index_t length, float soft_cap,
                                         std::int16_t* sums, index_t stride, std::span<float> lse) noexcept {
    float* const exact = scratch(g);
    const kernels::Rows<float> axes{query_axes_.data() + g * coordinates_ * axis_stride_, axis_stride_,
                                    shape_.head_dim};
    const index_t weight_bytes = kernels::code_weight_bytes(coordinates_);
    std::int8_t* const weights = weights_.data() + g * shape_.group() * weight_bytes;
    float* const scales = scales_.data() + g * shape_.group();
    kernels::for_row_tiles<4>(queries.rows, [&](auto tile, index_t r) {
      const kernels::Queries rows{queries.first + r * queries.stride, queries.stride, tile()};
      kernels::score_block<Isa>(axes, axes, coordinates_, rows, nullptr, exact);
      for (index_t i = 0; i < tile(); ++i) {
        scales[r + i] =
            kernels::round_weights(exact + i * kernels::logit_stride, coordinates_, weights + (r + i) * weight_bytes);
      }
    });
    const kernels::CodeLogits<Isa> logits{sums, stride, scales, soft_cap};
    kernels::scan_codes<Isa>(codes_[static_cast<std::size_t>(g)].data(), length, coordinates_, weights, logits, lse);
    return logits;
  }

 private:
  using Isa = simd::native;
  static constexpr index_t most_samples = 4096;
  static constexpr index_t seen_tokens = 64;
  static constexpr index_t noted_apart = 8;           // steps: the queries seen then reach 512 tokens back
  static constexpr float step_of_deviation = 0.335F;  // the best even steps for sixteen codes of a normal distribution

  index_t scratch_floats() const {
    return coordinates_ * kernels::logit_stride + shape_.head_dim / q8_0::block * kernels::block + 64;
  }
  float* scratch(index_t g) noexcept { return scratch_.data() + g * scratch_floats(); }

  /// What counts is not how far coordinates are off, but logits. So with keys k and queries q as they come, E[qq^T] =
  /// S, the axes are the principal ones of S^(1/2) k: of all projections to so few coordinates they keep most of q.k =
  /// (S^(-1/2) q).(S^(1/2) k). Keys get S^(1/2) times these axes, queries S^(-1/2) times them.
  void find_axes(index_t g, const KvView<T>& kv) {
    const index_t apart = (kv.length + most_samples - 1) / most_samples;
    Eigen::MatrixXf keys(shape_.head_dim, (kv.length + apart - 1) / apart);
    index_t samples = 0;
    for (index_t j = 0; j < kv.length; j += apart) {
      decode(kv.key(j, g), shape_.head_dim, keys.col(samples).data());
      if (keys.col(samples).allFinite()) ++samples;  // what is no number says nothing of the others
    }
    auto sound = keys.leftCols(samples);
    const Eigen::VectorXf mean =
        samples > 0 ? Eigen::VectorXf(sound.rowwise().mean()) : Eigen::VectorXf::Zero(shape_.head_dim);
    sound.colwise() -= mean;
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXf> of_queries(query_moments(g));
    const Eigen::MatrixXf root = of_queries.operatorSqrt(), inverse = of_queries.operatorInverseSqrt();
    Eigen::MatrixXf moments = Eigen::MatrixXf::Zero(shape_.head_dim, shape_.head_dim);
    moments.selfadjointView<Eigen::Lower>().rankUpdate(sound, 1.0F / static_cast<float>(std::max(samples, index_t{1})));
    moments = root * moments.selfadjointView<Eigen::Lower>() * root;
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXf> of_keys(moments);
    for (index_t c = 0; c < coordinates_; ++c) {
      const index_t i = g * coordinates_ + c, from = shape_.head_dim - 1 - c;  // eigenvalues ascend
      std::fill_n(key_axes_.data() + i * axis_stride_, axis_stride_, 0.0F);
      std::fill_n(query_axes_.data() + i * axis_stride_, axis_stride_, 0.0F);
      inverses_[i] = 0;
      middles_[i] = 7.5F;
      if (from < 0 || !(of_keys.eigenvalues()[from] > 0)) continue;
      const float step = step_of_deviation * std::sqrt(of_keys.eigenvalues()[from]);
      const Eigen::VectorXf key_axis = root * of_keys.eigenvectors().col(from);
      const Eigen::VectorXf query_axis = inverse * of_keys.eigenvectors().col(from) * step;
      std::copy(key_axis.begin(), key_axis.end(), key_axes_.data() + i * axis_stride_);
      std::copy(query_axis.begin(), query_axis.end(), query_axes_.data() + i * axis_stride_);
      inverses_[i] = 1 / step;
      middles_[i] = 7.5F - mean.dot(key_axis) * inverses_[i];
    }
  }
  /// E[qq^T] of KV head g's queries, with a share of what it would be if they came from everywhere: the fewer were
  /// seen, the less they say about others.
  Eigen::MatrixXf query_moments(index_t g) const {
    const index_t dim = shape_.head_dim, tokens = std::min(seen_, seen_tokens);
    const Eigen::MatrixXf everywhere = Eigen::MatrixXf::Identity(dim, dim);
    Eigen::MatrixXf moments = Eigen::MatrixXf::Zero(dim, dim);
    for (index_t t = 0; t < tokens; ++t) {
      const Eigen::Map<const Eigen::MatrixXf> group(
          seen_queries_.data() + (t * shape_.query_heads + g * shape_.group()) * dim, dim, shape_.group());
      if (group.allFinite()) moments.noalias() += group * group.transpose();
    }
    const float mean = moments.trace() / static_cast<float>(dim);
    if (!(mean > 0) || !std::isfinite(mean)) return everywhere;
    const float share = std::max(0.05F, static_cast<float>(dim) / static_cast<float>(4 * tokens * shape_.group()));
    return moments / mean + share * everywhere;
  }

  /// Codes of positions [begin, kv.length).
  void encode(index_t g, const KvView<T>& kv, index_t begin) noexcept {
    const kernels::Queries axes{key_axes_.data() + g * coordinates_ * axis_stride_, axis_stride_, coordinates_};
    float* const coordinates = scratch(g);
    float* const scales = coordinates + coordinates_ * kernels::logit_stride + 32;
    std::uint8_t* const codes = codes_[static_cast<std::size_t>(g)].data();
    while (begin < kv.length) {
      const Range run = kv.pages.run({begin, std::min(begin + kernels::block, kv.length)});
      const kernels::Rows<T> keys{kv.head_keys(g) + run.begin * kv.key_strides.position, kv.key_strides.position,
                                  shape_.head_dim};
      kernels::score_block<Isa>(keys, keys, run.size(), axes, scales, coordinates);
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
          kernels::set_codes(codes, coordinates_, begin + j, c, static_cast<unsigned>(fours[j]));
        }
      }
      begin += run.size();
    }
    lengths_[g] = kv.length;
  }
  /// The codes of a vector of positions. What is no number becomes 0.
  typename Isa::vec code(index_t g, index_t c, const float* values) const noexcept {
    const index_t i = g * coordinates_ + c;
    const auto exact = Isa::fma(Isa::load(values), Isa::broadcast(inverses_[i]), Isa::broadcast(middles_[i]));
    return Isa::round(Isa::min(Isa::max(exact, Isa::zero()), Isa::broadcast(15)));
  }

  Shape shape_;
  index_t coordinates_ = 0;
  index_t axis_stride_ = 0;
  Array<float> key_axes_;                   // [kv_heads, coordinates, axis_stride]
  Array<float> query_axes_;                 // the same for queries: what a code more means in logits
  Array<float> inverses_;                   // [kv_heads, coordinates]: codes to a unit
  Array<float> middles_;                    // [kv_heads, coordinates]: the mean key's code
  Array<float> scratch_;                    // [kv_heads, scratch_floats]
  Array<std::int8_t> weights_;              // [query_heads, code_weight_bytes]
  Array<float> scales_;                     // [query_heads]
  Array<float> seen_queries_;               // [seen_tokens, query_heads, head_dim], the newest over the oldest
  std::vector<Array<std::uint8_t>> codes_;  // for each KV head, in blocks of 32 positions
  index_t seen_ = 0;                        // tokens whose queries were seen
  Array<index_t> lengths_;                  // [kv_heads]: positions that have codes
  index_t built_length_ = 0;                // positions that the axes were found from; 0: none were
  index_t built_queries_ = 0;               // and how many tokens' queries had been seen then
};

}  // namespace recycled::inline RECYCLED_ABI
