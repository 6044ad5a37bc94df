// Memory that a step works in, and that nobody needs once it has ended.
#pragma once

#include <memory>

#include "recycled/kernels/decode.hpp"
#include "recycled/score_board.hpp"

namespace recycled::inline RECYCLED_ABI {

namespace detail {
template <Scalar T, bool Recycles>
class LayerScratch;
}  // namespace detail

/// What a step, a prefill or the choice of a first set writes down on its way: packed queries, the pieces' sums, and
/// query_heads + 2 kv_heads floats a position for scores (for a sketch's query_heads + kv_heads times two bytes more,
/// and room to find its axes in). Where rows have to be widened first, those of a paged view and all of a prefill, each
/// piece takes 96 rows of floats besides, for at most 16 kv_heads or 64 pieces of a step, and as many tiles as 256
/// tokens of a prefill make. It grows when asked to and never shrinks. Layers that never run at the same time, on
/// whatever threads, can share one (LayerAttention::share, Decoder::share), which then stays in the cache from layer to
/// layer: a Decoder's layers do.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() = default;

 private:
  template <Scalar T, bool Recycles>
  friend class detail::LayerScratch;

  kernels::Workspace<simd::native> workspace_;
  ScoreBoard scores_;
};

namespace detail {

/// The scratch of one layer, with room for its longest step from the start. Copies of the layer share nothing: a copy
/// of this has a scratch of its own.
template <Scalar T, bool Recycles>
class LayerScratch {
 public:
  LayerScratch(const Shape& shape, index_t capacity, index_t max_length, index_t axis_floats)
      : shape_(shape), capacity_(capacity), max_length_(max_length), axis_floats_(axis_floats) {
    share(std::make_shared<Scratch>());
  }
  LayerScratch(const LayerScratch& other)
      : LayerScratch(other.shape_, other.capacity_, other.max_length_, other.axis_floats_) {}
  LayerScratch(LayerScratch&&) noexcept = default;
  LayerScratch& operator=(const LayerScratch&) = delete;
  LayerScratch& operator=(LayerScratch&&) noexcept = default;
  ~LayerScratch() = default;

  /// Makes room for a step over `length` positions, whose rows may have to be gathered, and lays it out for this layer:
  /// whatever shares the scratch may have another shape.
  void reserve(index_t length, const Pages& pages) { reserve(*scratch_, length, pages); }
  void share(std::shared_ptr<Scratch> scratch) {
    reserve(*scratch, max_length_, {});
    scratch_ = std::move(scratch);
  }
  const std::shared_ptr<Scratch>& shared() const noexcept { return scratch_; }
  kernels::Workspace<simd::native>& workspace() noexcept { return scratch_->workspace_; }
  ScoreBoard& scores() noexcept { return scratch_->scores_; }

 private:
  void reserve(Scratch& scratch, index_t length, const Pages& pages) const {
    scratch.workspace_.template reserve<T>(shape_.query_heads, shape_.head_dim,
                                           shape_.kv_heads * kernels::most_pieces(shape_.kv_heads), shape_.group(),
                                           shape_.value_dim, pages.table == nullptr ? 0 : kernels::block);
    if constexpr (Recycles) scratch.scores_.reserve(shape_, capacity_, length, axis_floats_);
  }

  Shape shape_;
  index_t capacity_ = 0;
  index_t max_length_ = 0;
  index_t axis_floats_ = 0;  // KeySketch::axis_floats, or 0 without a sketch
  std::shared_ptr<Scratch> scratch_;
};

}  // namespace detail

}  // namespace recycled::inline RECYCLED_ABI
