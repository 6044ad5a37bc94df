// The full cache C_f of the paper: every position so far, nothing is ever evicted.
#pragma once

#include <algorithm>
#include <utility>

#include "recycled/types/archive.hpp"
#include "recycled/types/kv_view.hpp"
#include "recycled/types/memory.hpp"

namespace recycled::inline RECYCLED_ABI {

/// One layer's keys and values, [kv_head, position, dim], so that a head's rows are one run of memory. Grows by
/// doubling unless its final size is reserved. Written by one thread at a time; const members, and the rows of a view,
/// are for several.
template <Scalar T>
class KvCache {
 public:
  KvCache() = default;
  /// `shape` is checked. Room for `reserved` positions is taken at once.
  KvCache(const Shape& shape, index_t reserved) : shape_(shape) { reserve(reserved); }
  /// A copy has the same room; only the rows in use are copied.
  KvCache(const KvCache& other) : shape_(other.shape_), length_(other.length_) { move_to(other.room_, other); }
  KvCache(KvCache&& other) noexcept { *this = std::move(other); }
  KvCache& operator=(const KvCache& other) { return *this = KvCache(other); }
  KvCache& operator=(KvCache&& other) noexcept {
    shape_ = other.shape_;
    keys_ = std::move(other.keys_);
    values_ = std::move(other.values_);
    room_ = std::exchange(other.room_, 0);
    length_ = std::exchange(other.length_, 0);
    return *this;
  }
  ~KvCache() = default;

  index_t length() const noexcept { return length_; }
  KvView<T> view() const noexcept { return view_of(length_); }

  /// Makes room for `positions` in all; the contents stay. If memory runs out, nothing has changed.
  void reserve(index_t positions) {
    if (positions > room_) move_to(positions, *this);
  }

  /// Writes tokens of keys [tokens, kv_heads, head_dim] and values [tokens, kv_heads, value_dim], rounded to T, behind
  /// the last position, and shows them. They are part of the cache once commit() is called.
  KvView<T> stage(const float* keys, const float* values, index_t tokens) {
    if (length_ + tokens > room_) reserve(std::max({length_ + tokens, 2 * room_, index_t{256}}));
    for (index_t t = 0; t < tokens; ++t) {
      for (index_t g = 0; g < shape_.kv_heads; ++g) {
        const index_t row = t * shape_.kv_heads + g;
        const index_t place = g * room_ + length_ + t;
        encode(keys + row * shape_.head_dim, shape_.head_dim, keys_.data() + place * key_row());
        encode(values + row * shape_.value_dim, shape_.value_dim, values_.data() + place * value_row());
      }
    }
    return view_of(length_ + tokens);
  }
  void commit(index_t tokens) noexcept { length_ += tokens; }

  /// Forgets positions from `length` on.
  void truncate(index_t length) noexcept { length_ = std::min(length_, length); }

  /// An empty one with the same room.
  KvCache fresh() const { return KvCache(shape_, room_); }
  /// Rows go position by position: so no more memory is taken than there are rows to read.
  template <class Io>
  void transfer(Io& io) {
    index_t length = length_;
    io.count(length, 0, detail::most_positions, "length");
    for (index_t p = 0; p < length; ++p) {
      if constexpr (Io::loads) {
        if (p == room_) reserve(std::max(2 * room_, index_t{256}));
        length_ = p + 1;
      }
      for (index_t g = 0; g < shape_.kv_heads; ++g) {
        io.array(keys_.data() + (g * room_ + p) * key_row(), key_row());
        io.array(values_.data() + (g * room_ + p) * value_row(), value_row());
      }
    }
  }

 private:
  index_t key_row() const noexcept { return shape_.head_dim / values_per_element<T>; }
  index_t value_row() const noexcept { return shape_.value_dim / values_per_element<T>; }

  KvView<T> view_of(index_t length) const noexcept {
    return {keys_.data(), values_.data(), {key_row(), room_ * key_row()}, {value_row(), room_ * value_row()}, length};
  }

  /// Takes memory for `room` positions and copies the rows of `from` into it.
  void move_to(index_t room, const KvCache& from) {
    Array<T> keys(detail::checked_product(shape_.kv_heads * key_row(), room, "KV cache size"));
    Array<T> values(detail::checked_product(shape_.kv_heads * value_row(), room, "KV cache size"));
    for (index_t g = 0; g < shape_.kv_heads && from.length_ > 0; ++g) {
      std::copy_n(from.view().key(0, g), from.length_ * key_row(), keys.data() + g * room * key_row());
      std::copy_n(from.view().value(0, g), from.length_ * value_row(), values.data() + g * room * value_row());
    }
    keys_ = std::move(keys);
    values_ = std::move(values);
    room_ = room;
  }

  Shape shape_;
  Array<T> keys_;    // [kv_heads, room, head_dim]
  Array<T> values_;  // [kv_heads, room, value_dim]
  index_t room_ = 0;
  index_t length_ = 0;
};

}  // namespace recycled::inline RECYCLED_ABI
