// One token's attention: full and recycled steps are the same kernel over different rows.
//
//   full:     all visible rows of the host's cache          recycled:  the K + 1 rows of the recycle cache
//
// The positions of every KV head are cut at fixed places, pieces run on any number of threads, and the partial states
// merge in the order of the pieces: the result has the same bits for any number of threads.
#pragma once

#include <span>

#include "recycled/kernels/workspace.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// How `positions` positions are cut: pieces of at least 4 blocks (a piece costs a state to clear and to merge), at
/// most 32 of them (that bounds the workspace, and feeds every thread of a desktop even at a single KV head).
struct Cut {
  static constexpr index_t most_pieces = 32;
  index_t positions;
  index_t piece;  ///< positions in a piece, whole blocks

  explicit Cut(index_t n) : positions(n), piece(std::max(4 * block, (n / most_pieces / block + 1) * block)) {}
  /// At least one: a head without positions has a tile to say so.
  index_t pieces() const noexcept { return std::max(index_t{1}, (positions + piece - 1) / piece); }
};

/// What one KV head attends to in this step.
template <Scalar T>
struct HeadWork {
  Rows<T> keys = {};
  Rows<T> values = {};
  Range sinks = {};        ///< attended before the window; empty without a sliding window
  Range window = {};       ///< positions, or slots of the recycle cache
  LogitSink sink = {};     ///< where the logits are kept for a selection
  index_t first_tile = 0;  ///< its pieces' tiles in the workspace

  index_t size() const noexcept { return sinks.size() + window.size(); }
};

/// Numbers the tiles of all heads; returns how many there are.
template <Scalar T>
index_t assign_tiles(std::span<HeadWork<T>> heads) {
  index_t tiles = 0;
  for (HeadWork<T>& head : heads) {
    head.first_tile = tiles;
    tiles += Cut(head.size()).pieces();
  }
  return tiles;
}

/// Runs one piece: tile `tile` of the numbering above. Queries are packed in `workspace`, `group` rows a KV head.
template <class Isa, Scalar T>
void attend_piece(std::span<const HeadWork<T>> heads, index_t tile, index_t group, float soft_cap,
                  Workspace<Isa>& workspace) {
  const auto after =
      std::upper_bound(heads.begin(), heads.end(), tile, [](index_t t, const auto& h) { return t < h.first_tile; });
  const HeadWork<T>& head = *(after - 1);
  const index_t g = after - 1 - heads.begin();
  const TileState state = workspace.tile(tile, group);
  state.clear();
  const Cut cut(head.size());
  // Pieces count visible positions: the sinks first, then the window.
  const index_t begin = (tile - head.first_tile) * cut.piece;
  const index_t end = std::min(cut.positions, begin + cut.piece);
  const Queries queries = workspace.queries(g * group, group);
  const index_t sinks = head.sinks.size();
  const Range in_sinks{begin, std::min(end, sinks)};
  const Range in_window{head.window.begin + std::max(begin - sinks, index_t{0}), head.window.begin + end - sinks};
  attend_range<Isa>(head.keys, head.values, in_sinks, queries, soft_cap, state, head.sink);
  attend_range<Isa>(head.keys, head.values, in_window, queries, soft_cap, state, head.sink);
}

/// Merges the pieces of head `g` into its first tile; writes its group's lse [group] and, unless `out` is null,
/// outputs [group, value_dim].
template <class Isa, Scalar T>
void merge_pieces(const HeadWork<T>& head, index_t group, index_t value_dim, Workspace<Isa>& workspace, float* out,
                  float* lse) {
  const index_t pieces = Cut(head.size()).pieces();
  for (index_t r = 0; r < group; ++r) {
    SoftmaxState merged = workspace.tile(head.first_tile, group).row(r);
    for (index_t p = 1; p < pieces; ++p) merged.merge(workspace.tile(head.first_tile + p, group).row(r), value_dim);
    lse[r] = merged.lse();
    if (out != nullptr) merged.normalize(out + r * value_dim, value_dim);
  }
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
