// Memory that a step works in, and that nobody needs once it has ended.
#pragma once

#include <memory>

#include "recycled/kernels/workspace.hpp"
#include "recycled/score_board.hpp"

namespace recycled::inline RECYCLED_ABI {

/// What a step, a prefill or the choice of a first set writes down on its way: packed queries, the pieces' sums, and
/// query_heads + 2 kv_heads floats a position for scores. It grows when asked to and never shrinks. Layers that never
/// run at the same time can share one (LayerAttention::share, Decoder::share), which then stays in the cache from layer
/// to layer: a Decoder's layers do.
class Scratch {
 public:
  Scratch() = default;

 private:
  template <Scalar T, Selection Keep, bool Recycles>
  friend class TokenAttention;

  kernels::Workspace<simd::native> workspace_;
  ScoreBoard scores_;
};

namespace detail {

/// The scratch of one layer. Copies of the layer share nothing, so a copy of this has a scratch of its own.
class ScratchOfLayer {
 public:
  ScratchOfLayer() : scratch_(std::make_shared<Scratch>()) {}
  ScratchOfLayer(const ScratchOfLayer& /*other*/) : ScratchOfLayer() {}
  ScratchOfLayer(ScratchOfLayer&&) noexcept = default;
  ScratchOfLayer& operator=(const ScratchOfLayer& /*other*/) { return *this = ScratchOfLayer(); }
  ScratchOfLayer& operator=(ScratchOfLayer&&) noexcept = default;
  ~ScratchOfLayer() = default;

  void share(std::shared_ptr<Scratch> scratch) noexcept { scratch_ = std::move(scratch); }
  Scratch& operator*() const noexcept { return *scratch_; }

 private:
  std::shared_ptr<Scratch> scratch_;
};

}  // namespace detail

}  // namespace recycled::inline RECYCLED_ABI
