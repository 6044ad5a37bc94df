// What the KV heads of one step read, cut into pieces, run and merged.
#pragma once

#include <span>
#include <type_traits>

#include "recycled/kernels/decode.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Heads read rows of the host's type T, or rows of the recycle cache's type R. Where these are the same, all heads are
/// cut and run together; else those of one type and those of the other are, side by side in the same tasks.
template <Scalar T, Scalar R>
class StepWork {
 public:
  explicit StepWork(index_t kv_heads) : host_{kv_heads}, recycled_{mixed ? kv_heads : 0}, tiles_(kv_heads, Tiles{}) {}

  // A step's heads, in their order.
  void begin() noexcept { host_.count = recycled_.count = 0; }
  void read_host(const kernels::HeadWork<T>& work) noexcept { host_.add(work); }
  void read_recycled(const kernels::HeadWork<R>& work) noexcept {
    if constexpr (mixed) {
      recycled_.add(work);
    } else {
      host_.add(work);
    }
  }

  /// Runs all pieces of all heads. Queries are packed in `workspace`, `group` rows a KV head.
  template <class E, class Isa>
  void run(E& executor, index_t group, float soft_cap, kernels::Workspace<Isa>& workspace) {
    const kernels::Cut first = kernels::cut(host_.all(), tiles_.size());
    const kernels::Cut second = kernels::cut(recycled_.all(), tiles_.size());
    for (const auto& work : host_.all()) note(work);
    for (const auto& work : recycled_.all()) note(work);
    if (first.tasks + second.tasks == 0) return;
    executor(first.tasks + second.tasks, [&](index_t task) {
      if (task < first.tasks) {
        kernels::attend_task<Isa, T>(host_.all(), first, task, group, soft_cap, workspace);
      } else if constexpr (mixed) {
        kernels::attend_task<Isa, R>(recycled_.all(), second, task - first.tasks, group, soft_cap, workspace);
      }
    });
  }
  /// Runs the pieces of a head at once, on the calling thread: its rows are in that core's cache. Heads may do so in
  /// parallel.
  template <class Isa>
  void run_alone(kernels::HeadWork<R> work, index_t group, float soft_cap, kernels::Workspace<Isa>& workspace) {
    kernels::cut(work, tiles_.size());
    note(work);
    for (index_t task = 0; task < work.pieces(); ++task)
      kernels::attend_task<Isa, R>({&work, 1}, {}, task, group, soft_cap, workspace);
  }
  /// Writes the lse [group] of KV head `g` and, unless `out` is null, its outputs [group, value_dim].
  template <class Isa>
  void merge(index_t g, index_t group, index_t value_dim, kernels::Workspace<Isa>& workspace, float* out,
             float* lse) const noexcept {
    kernels::merge_pieces(tiles_[g].first, tiles_[g].count, group, value_dim, workspace, out, lse);
  }

 private:
  static constexpr bool mixed = !std::is_same_v<T, R>;

  /// Where the partial results of a head are.
  struct Tiles {
    index_t first = 0;
    index_t count = 0;
  };

  template <Scalar S>
  struct Part {
    explicit Part(index_t kv_heads) : heads(kv_heads) {}
    void add(const kernels::HeadWork<S>& work) noexcept { heads[count++] = work; }
    std::span<kernels::HeadWork<S>> all() noexcept { return {heads.data(), static_cast<std::size_t>(count)}; }
    Array<kernels::HeadWork<S>> heads;
    index_t count = 0;
  };

  template <Scalar S>
  void note(const kernels::HeadWork<S>& work) noexcept {
    tiles_[work.head] = {work.first_tile, work.pieces()};
  }

  Part<T> host_;
  Part<R> recycled_;
  Array<Tiles> tiles_;  // [kv_heads]
};

}  // namespace recycled::inline RECYCLED_ABI
