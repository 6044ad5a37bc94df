// The recycle cache C_p of the paper: for each KV head the K rows that mattered, packed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "recycled/kernels/rows.hpp"
#include "recycled/kernels/top_k.hpp"
#include "recycled/selection/selection.hpp"
#include "recycled/types/archive.hpp"
#include "recycled/types/kv_view.hpp"
#include "recycled/types/memory.hpp"

namespace recycled::inline RECYCLED_ABI {

/// K + 1 slots for each KV head: at a recycled step the new token takes the free one, attention reads all of them in
/// one contiguous run, and then the entry of lowest rank leaves: its slot is the next free one. No row ever moves for
/// that. Rows are of type R, whatever the host's are. Heads may be worked on in parallel, each by one thread at a time.
template <Scalar R>
class RecycleCache {
 public:
  RecycleCache() = default;
  /// Memory for all heads is taken here, once. `shape` is checked; capacity is 1 to 2^40.
  RecycleCache(const Shape& shape, index_t capacity)
      : capacity_(capacity),
        key_dim_(shape.head_dim),
        value_dim_(shape.value_dim),
        keys_(slot_elements(shape, key_dim_)),
        values_(slot_elements(shape, value_dim_)),
        positions_(slots(shape)),
        ranks_(slots(shape)),
        holes_(slots(shape)),
        entering_(slots(shape)),
        heads_(shape.kv_heads, Head{}) {}

  index_t capacity() const noexcept { return capacity_; }
  index_t size(index_t head) const noexcept { return heads_[head].size; }
  /// Position of the newest token that chose the set, or cost another entry its place, or -1: once it is rolled back,
  /// something is missing, or stands for a query that never was.
  index_t last_evictor(index_t head) const noexcept { return heads_[head].last_evictor; }

  // Slots [0, size): all entries, after insert() or close_gap().
  kernels::Rows<R> keys(index_t head) const noexcept { return {key(head, 0), key_row(), key_dim_}; }
  kernels::Rows<R> values(index_t head) const noexcept { return {value(head, 0), value_row(), value_dim_}; }
  std::span<const index_t> positions(index_t head) const noexcept { return {position(head), slots(head)}; }
  std::span<float> ranks(index_t head) noexcept { return {rank(head), slots(head)}; }

  /// The positions held, ascending.
  std::vector<index_t> held(index_t head) const {
    std::vector<index_t> result;
    for_each_slot(head, [&](index_t slot) { result.push_back(position(head)[slot]); });
    std::sort(result.begin(), result.end());
    return result;
  }

  /// Puts the new token's row of `view` into the free slot; size may now be K + 1 until settle().
  template <Scalar T>
  void insert(index_t head, index_t new_position, const KvView<T>& view) noexcept {
    Head& h = heads_[head];
    write(head, h.free, new_position, newcomer_rank, view);
    ++h.size;
  }

  /// After the step: if there are K + 1 entries, the one of lowest rank leaves (of equals the lowest position).
  void settle(index_t head, index_t new_position) noexcept {
    Head& h = heads_[head];
    if (h.size <= capacity_) {
      h.free = h.size;
      return;
    }
    h.free = kernels::lowest_rank({rank(head), static_cast<std::size_t>(h.size)}, position(head));
    h.size = capacity_;
    h.last_evictor = new_position;
  }

  /// Holds the `count` <= K positions of `chosen` from now on, ranked by rank_of(position), and empties `chosen`. Only
  /// rows that were not held already are copied: neighbouring full steps choose much the same. The token at `by` chose,
  /// among `view`'s positions up to its own.
  template <Scalar T, class Ranks>
  void rebuild(index_t head, const kernels::PositionBits& chosen, index_t count, const Ranks& rank_of,
               const KvView<T>& view, index_t by) noexcept {
    close_gap(head);
    Head& h = heads_[head];
    h.last_evictor = by;
    if (count == 0) {
      h.size = h.free = 0;
      return;
    }
    index_t* const holes = holes_.data() + slot_index(head, 0);
    const index_t holes_left = keep(head, chosen, rank_of);
    index_t filled = 0;
    for (index_t s = count; s < h.size; ++s) {  // a smaller set than before
      if (position(head)[s] != hole) move(head, s, holes[filled++]);
    }
    index_t* const entering = entering_.data() + slot_index(head, 0);
    const index_t entries = chosen.drain(entering);
    // Rows from here and there: several are under way at a time.
    for (index_t i = 0; i < std::min(fetched_ahead, entries); ++i) fetch(head, entering[i], view);
    for (index_t i = 0; i < entries; ++i) {
      if (i + fetched_ahead < entries) fetch(head, entering[i + fetched_ahead], view);
      const index_t p = entering[i], slot = filled < holes_left ? holes[filled++] : h.size++;
      write(head, slot, p, detail::sane_rank(rank_of(p)), view);
    }
    h.size = count;
    h.free = count;
  }

  /// Makes the entries the slots [0, size) again.
  void close_gap(index_t head) noexcept {
    Head& h = heads_[head];
    if (h.free < h.size) move(head, h.size, h.free);
    h.free = h.size;
  }
  /// Forgets the entry of `gone`, if it is held, because the token at `by` does not see it any more.
  void remove(index_t head, index_t gone, index_t by) noexcept {
    if (remove_if(head, [gone](index_t p) { return p == gone; })) heads_[head].last_evictor = by;
  }
  /// Forgets all entries from `length` on.
  void truncate(index_t head, index_t length) noexcept {
    remove_if(head, [length](index_t p) { return p >= length; });
  }
  void clear() noexcept { std::fill(heads_.begin(), heads_.end(), Head{}); }

  /// All positions are below `length`.
  template <class Io>
  void transfer(Io& io, index_t length) {
    for (index_t g = 0; g < heads_.size(); ++g) {
      Head& h = heads_[g];
      io.count(h.size, 0, std::min(capacity_, length), "rows that are held");
      io.count(h.free, 0, h.size, "free slot");
      io.count(h.last_evictor, none, detail::most_positions, "last evictor");
      for_each_slot(g, [&](index_t s) {
        io.count(position(g)[s], 0, length - 1, "position of a row");
        io.plain(rank(g)[s]);
        if constexpr (Io::loads) rank(g)[s] = detail::sane_rank(rank(g)[s]);
        io.array(keys_.data() + slot_index(g, s) * key_row(), key_row());
        io.array(values_.data() + slot_index(g, s) * value_row(), value_row());
      });
      if constexpr (!Io::loads) continue;
      const std::vector<index_t> all = held(g);
      const auto twice = std::adjacent_find(all.begin(), all.end());
      detail::require(twice == all.end(), "saved state: position of a row", twice == all.end() ? 0 : *twice,
                      "each once");
    }
  }

 private:
  static constexpr index_t none = -1;
  static constexpr index_t hole = -1;
  // Rows, into the second-level cache: more requests can be on their way there than to the first (Zen 4: 28 us for 500
  // rows of 256 bytes, where 16 rows ahead into the first take 36).
  static constexpr index_t fetched_ahead = 8;

  struct Head {
    index_t size = 0;
    index_t free = 0;  // the slot that the next token takes; the others below size + 1 are held
    index_t last_evictor = none;
  };

  index_t slots(const Shape& shape) const {
    return detail::checked_product(shape.kv_heads, capacity_ + 1, "recycle cache size");
  }
  index_t slot_elements(const Shape& shape, index_t dim) const {
    return detail::checked_product(slots(shape), dim / values_per_element<R>, "recycle cache size");
  }
  index_t key_row() const noexcept { return key_dim_ / values_per_element<R>; }
  index_t value_row() const noexcept { return value_dim_ / values_per_element<R>; }
  index_t slot_index(index_t head, index_t slot) const noexcept { return head * (capacity_ + 1) + slot; }
  const R* key(index_t head, index_t slot) const noexcept { return keys_.data() + slot_index(head, slot) * key_row(); }
  const R* value(index_t head, index_t slot) const noexcept {
    return values_.data() + slot_index(head, slot) * value_row();
  }
  index_t* position(index_t head) noexcept { return positions_.data() + slot_index(head, 0); }
  const index_t* position(index_t head) const noexcept { return positions_.data() + slot_index(head, 0); }
  float* rank(index_t head) noexcept { return ranks_.data() + slot_index(head, 0); }
  std::size_t slots(index_t head) const noexcept { return static_cast<std::size_t>(size(head)); }

  /// Entries that are chosen keep their slots, get new ranks and leave `chosen`; the others leave holes, of which the
  /// number is returned. Which do is what a processor can't foretell, so that no branch depends on it.
  template <class Ranks>
  index_t keep(index_t head, const kernels::PositionBits& chosen, const Ranks& rank_of) noexcept {
    const index_t any = chosen.first();  // some position that has a rank
    index_t* const holes = holes_.data() + slot_index(head, 0);
    index_t count = 0;
    for (index_t s = 0; s < heads_[head].size; ++s) {
      index_t& p = position(head)[s];
      const bool stays = chosen.contains(p);
      chosen.erase(p);
      rank(head)[s] = detail::sane_rank(rank_of(stays ? p : any));
      p = stays ? p : hole;
      holes[count] = s;
      count += stays ? 0 : 1;
    }
    return count;
  }
  template <Scalar T>
  void write(index_t head, index_t slot, index_t from, float new_rank, const KvView<T>& view) noexcept {
    kernels::copy_row<simd::native>(view.key(from, head), key_dim_, keys_.data() + slot_index(head, slot) * key_row());
    kernels::copy_row<simd::native>(view.value(from, head), value_dim_,
                                    values_.data() + slot_index(head, slot) * value_row());
    position(head)[slot] = from;
    rank(head)[slot] = new_rank;
  }
  // Always inline, see simd::prefetch_l2.
  template <Scalar T>
  [[gnu::always_inline]] void fetch(index_t head, index_t from, const KvView<T>& view) const noexcept {
    constexpr index_t line = 64;
    const T* const key = view.key(from, head);
    const T* const value = view.value(from, head);
    for (index_t b = 0; b < kernels::row_bytes<T>(key_dim_); b += line) simd::prefetch_l2(key, b);
    for (index_t b = 0; b < kernels::row_bytes<T>(value_dim_); b += line) simd::prefetch_l2(value, b);
  }
  void move(index_t head, index_t from, index_t to) noexcept {
    std::copy_n(key(head, from), key_row(), keys_.data() + slot_index(head, to) * key_row());
    std::copy_n(value(head, from), value_row(), values_.data() + slot_index(head, to) * value_row());
    position(head)[to] = position(head)[from];
    rank(head)[to] = rank(head)[from];
  }
  template <class F>
  void for_each_slot(index_t head, const F& f) const {
    const Head& h = heads_[head];
    for (index_t s = 0; s < h.size + (h.free < h.size ? 1 : 0); ++s) {
      if (s != h.free) f(s);
    }
  }
  template <class Condition>
  bool remove_if(index_t head, const Condition& leaves) noexcept {
    close_gap(head);
    Head& h = heads_[head];
    const index_t before = h.size;
    for (index_t s = h.size; s-- > 0;) {
      if (!leaves(position(head)[s])) continue;
      --h.size;
      if (s != h.size) move(head, h.size, s);
    }
    h.free = h.size;
    return h.size < before;
  }

  index_t capacity_ = 0;
  index_t key_dim_ = 0;
  index_t value_dim_ = 0;
  Array<R> keys_;             // [kv_heads, capacity + 1, key_dim]
  Array<R> values_;           // [kv_heads, capacity + 1, value_dim]
  Array<index_t> positions_;  // [kv_heads, capacity + 1]
  Array<float> ranks_;        // [kv_heads, capacity + 1]
  Array<index_t> holes_;      // [kv_heads, capacity + 1]: while a set is rebuilt, slots that have become free,
  Array<index_t> entering_;   // and positions that are new
  Array<Head> heads_;         // [kv_heads]
};

}  // namespace recycled::inline RECYCLED_ABI
