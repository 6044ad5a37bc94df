// One token's attention: full and recycled steps are the same kernel over different rows.
//
//   full:     all visible rows of the host's cache          recycled:  the K + 1 rows of the recycle cache
//
// The positions of every KV head are cut at fixed places, pieces run on any number of threads, and the partial states
// merge in the order of the pieces: the result has the same bits for any number of threads.
//
// Where rows of all KV heads lie side by side, as [position, head, dim], a task works on all heads, block by block:
// neighbouring memory is read at nearly the same time then, at 20 GB/s in place of 17 (two threads that read 32, 8
// heads of 128 halves).
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

#include "recycled/kernels/workspace.hpp"
#include "recycled/types/kv_view.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Into how many pieces a head's positions are cut at most: one by one, heads make about 64 tasks together or more,
/// also a single KV head; heads that are worked on together make no more than one of them, and keep as many threads
/// busy. It bounds the workspace.
constexpr index_t most_pieces(index_t kv_heads) { return std::max(index_t{16}, 64 / kv_heads); }

/// Positions in a piece, and the last piece is what remains of them. Whole blocks, about 4 at least, because a piece
/// costs a state to clear and to merge. The same in every layout, and so are the bits of the result.
constexpr index_t piece_length(index_t positions, index_t kv_heads) {
  const auto over = [](index_t a, index_t b) { return (a + b - 1) / b; };
  const index_t pieces = std::clamp(over(positions, 4 * block), index_t{1}, most_pieces(kv_heads));
  return std::max(over(over(positions, pieces), block), index_t{1}) * block;
}

/// What one KV head attends to in this step.
template <Scalar T>
struct HeadWork {
  index_t head = 0;  ///< whose queries
  Rows<T> keys = {};
  Rows<T> values = {};
  Pages pages = {};        ///< which row is that of a position
  Range sinks = {};        ///< attended before the window; empty without a sliding window
  Range window = {};       ///< positions, or slots of the recycle cache
  LogitSink sink = {};     ///< where the logits are kept for a selection
  index_t piece = block;   ///< positions in a piece
  index_t first_tile = 0;  ///< its pieces' tiles in the workspace,
  index_t first_task = 0;  ///< and the first of the tasks that work on it alone

  index_t size() const noexcept { return sinks.size() + window.size(); }
  const T* key(index_t position) const noexcept { return keys[pages.row(position)]; }
  index_t first() const noexcept { return sinks.size() > 0 ? sinks.begin : window.begin; }
  /// At least one: a head without positions has a tile to say so.
  index_t pieces() const noexcept { return std::max(index_t{1}, (size() + piece - 1) / piece); }
};

/// How the heads of a step are cut into tasks.
struct Cut {
  index_t tasks = 0;
  bool together = false;  ///< a task is a piece of all heads, else of one
};

/// Whether the heads' rows of a position lie side by side, and all heads attend to the same positions.
template <Scalar T>
bool lie_together(std::span<const HeadWork<T>> heads) {
  const auto address = [](const T* p) { return reinterpret_cast<std::uintptr_t>(p); };
  const HeadWork<T>& first = heads.front();
  return heads.size() > 1 && std::all_of(heads.begin(), heads.end(), [&](const HeadWork<T>& head) {
           const auto distance = address(head.keys.first) - address(first.keys.first);  // huge if it lies before
           return distance < static_cast<std::uintptr_t>(first.keys.stride_bytes()) &&
                  head.keys.stride == first.keys.stride && head.sinks.end == first.sinks.end &&
                  head.window.begin == first.window.begin && head.window.end == first.window.end;
         });
}

/// Cuts one head of the layer's `kv_heads`. Its tiles are its own whatever else is cut.
template <Scalar T>
void cut(HeadWork<T>& head, index_t kv_heads) {
  head.piece = piece_length(head.size(), kv_heads);
  head.first_tile = head.head * most_pieces(kv_heads);
}
/// Cuts several.
template <Scalar T>
Cut cut(std::span<HeadWork<T>> heads, index_t kv_heads) {
  if (heads.empty()) return {};
  index_t tasks = 0;
  for (HeadWork<T>& head : heads) {
    cut(head, kv_heads);
    head.first_task = tasks;
    tasks += head.pieces();
  }
  const bool together = lie_together<T>(heads);
  return {together ? heads.front().pieces() : tasks, together};
}

/// `rows` of `positions` side by side: where they are or, if they are scattered, copied to `room`.
template <Scalar T>
Rows<T> gather(const Rows<T>& rows, const Pages& pages, const Range& positions, float* room) {
  const Range run = pages.run(positions);
  if (run.size() == positions.size()) return rows.from(run.begin);
  auto* const packed = reinterpret_cast<T*>(room);
  const Rows<T> copies{packed, rows.dim / values_per_element<T>, rows.dim};
  for (index_t j = 0; j < positions.size(); ++j) {
    std::memcpy(packed + j * copies.stride, rows[pages.row(positions.begin + j)],
                static_cast<std::size_t>(rows.bytes()));
  }
  return copies;
}

/// Runs one task. Queries are packed in `workspace`, `group` rows a KV head.
template <class Isa, Scalar T>
void attend_task(std::span<const HeadWork<T>> heads, const Cut& cut, index_t task, index_t group, float soft_cap,
                 Workspace<Isa>& workspace) {
  const auto alone = [&] {  // the head whose task it is
    const auto after =
        std::upper_bound(heads.begin(), heads.end(), task, [](index_t t, const auto& h) { return t < h.first_task; });
    return after - 1 - heads.begin();
  };
  const index_t first = cut.together ? 0 : alone();
  const index_t end = cut.together ? static_cast<index_t>(heads.size()) : first + 1;
  const auto head = [&](index_t g) -> const HeadWork<T>& { return heads.data()[g]; };
  const index_t piece = cut.together ? task : task - head(first).first_task;
  const auto state = [&](index_t g) { return workspace.tile(head(g).first_tile + piece, group); };
  const index_t room = head(first).first_tile + piece;  // one for all heads, so that it stays in L1
  for (index_t g = first; g < end; ++g) state(g).clear();
  // Pieces count visible positions: the sinks first, then the window.
  const HeadWork<T>& any = head(first);
  const index_t from = piece * any.piece;
  const index_t to = std::min(any.size(), from + any.piece);
  const index_t sinks = any.sinks.size();
  const Range in_sinks{from, std::min(to, sinks)};
  const Range in_window{any.window.begin + std::max(from - sinks, index_t{0}), any.window.begin + to - sinks};
  for (const Range& range : {in_sinks, in_window}) {
    for_blocks(range, [&](Range positions) {
      for (index_t g = first; g < end; ++g) {
        // Whose keys are read next: the next head's, or the next positions', also if they are those of the next task;
        // executors mostly hand out neighbouring ones.
        const T* next = nullptr;
        if (g + 1 < end) {
          next = head(g + 1).key(positions.begin);
        } else if (positions.end < any.window.end) {
          next = any.key(positions.end);
        } else if (end < static_cast<index_t>(heads.size()) && head(end).size() > 0) {
          next = head(end).key(head(end).first());
        }
        const Rows<T> keys = gather(head(g).keys, head(g).pages, positions, workspace.wide_keys(room));
        const Rows<T> values = gather(head(g).values, head(g).pages, positions, workspace.wide_values(room));
        if (keys.stride != head(g).keys.stride) next = nullptr;  // scattered, and the next ones are likely to be, too
        attend_block<Isa>(keys, values, positions.size(), workspace.queries(head(g).head * group, group), soft_cap,
                          state(g), head(g).sink.from(positions.begin), next);
      }
    });
  }
}

/// Merges a head's pieces into the first of their tiles; writes its group's lse [group] and, unless `out` is null,
/// outputs [group, value_dim].
template <class Isa>
void merge_pieces(index_t first_tile, index_t pieces, index_t group, index_t value_dim, Workspace<Isa>& workspace,
                  float* out, float* lse) {
  for (index_t r = 0; r < group; ++r) {
    SoftmaxState merged = workspace.tile(first_tile, group).row(r);
    for (index_t p = 1; p < pieces; ++p) merged.merge(workspace.tile(first_tile + p, group).row(r), value_dim);
    lse[r] = merged.lse();
    if (out != nullptr) merged.normalize(out + r * value_dim, value_dim);
  }
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
