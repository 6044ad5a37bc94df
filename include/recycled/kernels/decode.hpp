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

/// Into how many pieces a head's positions are cut at most: 64 for all heads together feed every thread of a desktop
/// evenly, also where there is a single KV head, and bound the workspace.
constexpr index_t most_pieces(index_t kv_heads) { return std::max(index_t{2}, 64 / kv_heads); }

/// Positions in a piece: whole blocks, and at least 4, because a piece costs a state to clear and to merge, and its
/// first block of keys comes unannounced.
constexpr index_t piece_length(index_t positions, index_t kv_heads) {
  return std::max(4 * block, (positions / most_pieces(kv_heads) / block + 1) * block);
}

/// What one KV head attends to in this step.
template <Scalar T>
struct HeadWork {
  Rows<T> keys = {};
  Rows<T> values = {};
  Range sinks = {};        ///< attended before the window; empty without a sliding window
  Range window = {};       ///< positions, or slots of the recycle cache
  LogitSink sink = {};     ///< where the logits are kept for a selection
  index_t piece = block;   ///< positions in a piece
  index_t first_tile = 0;  ///< its pieces' tiles in the workspace

  index_t size() const noexcept { return sinks.size() + window.size(); }
  index_t first() const noexcept { return sinks.size() > 0 ? sinks.begin : window.begin; }
  /// At least one: a head without positions has a tile to say so.
  index_t pieces() const noexcept { return std::max(index_t{1}, (size() + piece - 1) / piece); }
};

/// Cuts all heads and numbers their tiles; returns how many there are.
template <Scalar T>
index_t assign_tiles(std::span<HeadWork<T>> heads) {
  index_t tiles = 0;
  for (HeadWork<T>& head : heads) {
    head.piece = piece_length(head.size(), static_cast<index_t>(heads.size()));
    head.first_tile = tiles;
    tiles += head.pieces();
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
  // Pieces count visible positions: the sinks first, then the window.
  const index_t begin = (tile - head.first_tile) * head.piece;
  const index_t end = std::min(head.size(), begin + head.piece);
  const Queries queries = workspace.queries(g * group, group);
  const index_t sinks = head.sinks.size();
  const Range in_sinks{begin, std::min(end, sinks)};
  const Range in_window{head.window.begin + std::max(begin - sinks, index_t{0}), head.window.begin + end - sinks};
  // Executors mostly hand out neighbouring pieces: this one ends by fetching the first keys of the next.
  const T* next = in_window.end < head.window.end ? head.keys[in_window.end] : nullptr;
  if (next == nullptr && after != heads.end() && after->size() > 0) next = after->keys[after->first()];
  attend_range<Isa>(head.keys, head.values, in_sinks, queries, soft_cap, state, head.sink);
  attend_range<Isa>(head.keys, head.values, in_window, queries, soft_cap, state, head.sink, next);
}

/// Merges the pieces of head `g` into its first tile; writes its group's lse [group] and, unless `out` is null,
/// outputs [group, value_dim].
template <class Isa, Scalar T>
void merge_pieces(const HeadWork<T>& head, index_t group, index_t value_dim, Workspace<Isa>& workspace, float* out,
                  float* lse) {
  for (index_t r = 0; r < group; ++r) {
    SoftmaxState merged = workspace.tile(head.first_tile, group).row(r);
    for (index_t p = 1; p < head.pieces(); ++p)
      merged.merge(workspace.tile(head.first_tile + p, group).row(r), value_dim);
    lse[r] = merged.lse();
    if (out != nullptr) merged.normalize(out + r * value_dim, value_dim);
  }
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
