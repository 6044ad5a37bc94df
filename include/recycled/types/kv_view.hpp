// A look at KV memory that somebody else owns: nothing is copied, any layout with contiguous rows will do.
#pragma once

#include <cstdint>
#include <ostream>
#include <utility>

#include "recycled/types/shape.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Distance from one row to the next position's and to the next head's, in elements of the KV type (q8_0: in blocks).
struct Strides {
  index_t position = 0;
  index_t head = 0;

  /// As in an error: "1024, 128".
  friend std::ostream& operator<<(std::ostream& out, const Strides& strides) {
    return out << strides.position << ", " << strides.head;
  }
  bool operator==(const Strides&) const = default;
};

/// The order of the rows, where it is not that of the positions: a paged cache, or cells that were free when their
/// tokens came. The row of position j is table[j / size] * size + j % size; without a table it is j. What the table
/// says of a position that a layer knows must not change, nor what is in that row: a layer looks at an entry once, and
/// at all of them when the table is another than the last time.
struct Pages {
  const std::int32_t* table = nullptr;
  index_t size = 1;  ///< rows in a page

  bool operator==(const Pages&) const = default;  // the same table, not an equal one
  index_t row(index_t position) const noexcept {
    if (table == nullptr) return position;
    return size == 1 ? table[position] : table[position / size] * size + position % size;
  }
  /// The rows from that of positions.begin on that lie side by side, at most as many as there are positions.
  Range run(const Range& positions) const noexcept {
    if (table == nullptr) return positions;
    const index_t first = row(positions.begin);
    index_t position = positions.begin;
    do {
      position = (position / size + 1) * size;
    } while (position < positions.end && row(position) == first + position - positions.begin);
    return {first, first + std::min(position, positions.end) - positions.begin};
  }
};

/// Keys and values of one layer: the row of position j and KV head g starts at keys + row * key_strides.position +
/// g * key_strides.head, row being j unless `pages` tell another, and is contiguous. No alignment is asked for beyond
/// T's own.
template <Scalar T>
struct KvView {
  const T* keys = nullptr;
  const T* values = nullptr;
  Strides key_strides;
  Strides value_strides;
  index_t length = 0;  ///< positions that may be read; when a token is decoded, its own row is the last of them
  Pages pages = {};

  const T* key(index_t position, index_t head) const noexcept {
    return head_keys(head) + pages.row(position) * key_strides.position;
  }
  const T* value(index_t position, index_t head) const noexcept {
    return head_values(head) + pages.row(position) * value_strides.position;
  }
  /// Row 0 of a head, whichever position that is.
  const T* head_keys(index_t head) const noexcept { return keys + head * key_strides.head; }
  const T* head_values(index_t head) const noexcept { return values + head * value_strides.head; }

  /// The layout [position, head, dim]: what a projection writes, and what llama.cpp keeps with flash attention.
  static KvView position_major(const T* keys, const T* values, Shape shape, index_t length) {
    const auto [key_row, value_row] = row_elements(shape);
    return {keys, values, {shape.kv_heads * key_row, key_row}, {shape.kv_heads * value_row, value_row}, length, {}};
  }
  /// The layout [head, position, dim], with room for `max_length` positions in every head.
  static KvView head_major(const T* keys, const T* values, Shape shape, index_t length, index_t max_length) {
    const auto [key_row, value_row] = row_elements(shape);
    detail::require(max_length >= 0 && max_length >= length, "head_major: max_length", max_length,
                    [&] { return detail::text("0 or more, and at least the length, ", length); });
    const auto room = [&](index_t row) {
      return detail::checked_product(max_length, row, "head_major: room of a head");
    };
    return {keys, values, {key_row, room(key_row)}, {value_row, room(value_row)}, length, {}};
  }

 private:
  static std::pair<index_t, index_t> row_elements(Shape shape) {
    shape = detail::checked<T>(shape);
    return {shape.head_dim / values_per_element<T>, shape.value_dim / values_per_element<T>};
  }
};

namespace detail {

/// What of a layer's views has been checked already: a step need not look at all pages again.
struct SeenPages {
  Pages pages;  ///< the same as now, or nothing is known
  Strides key_strides, value_strides;
  index_t positions = 0;  ///< these first ones' pages are good
  index_t rows = 0;       ///< all within so many rows
};

/// Throws std::invalid_argument for pages that can't be.
template <Scalar T>
SeenPages checked_pages(const KvView<T>& view, const SeenPages& before) {
  const Pages& pages = view.pages;
  SeenPages seen{pages, view.key_strides, view.value_strides, view.length, view.length};
  if (pages.table == nullptr) return seen;
  require(pages.size >= 1 && pages.size <= index_t{1} << 20, "KvView.pages.size", pages.size, "1 to 2^20 rows");
  const bool same =
      before.pages == pages && before.key_strides == view.key_strides && before.value_strides == view.value_strides;
  seen.rows = same ? before.rows : 0;
  for (index_t page = same ? before.positions / pages.size : 0; page <= (view.length - 1) / pages.size; ++page) {
    require(pages.table[page] >= 0, "KvView.pages.table", pages.table[page],
            [page] { return text("a page, 0 or more, at index ", page); });
    seen.rows = std::max(seen.rows, (index_t{pages.table[page]} + 1) * pages.size);
  }
  return seen;
}

/// Throws std::invalid_argument unless `view` can be a layer of `shape` (already checked).
template <Scalar T>
SeenPages check(const KvView<T>& view, const Shape& shape, const SeenPages& before = {}) {
  require(view.length >= 1, "KvView.length", view.length, "at least 1: the new token's row is already in it");
  require(view.length <= most_positions, "KvView.length", view.length, "at most 2^40 positions");
  require(view.keys != nullptr, "KvView.keys", "null", "a pointer to the first key");
  require(view.values != nullptr, "KvView.values", "null", "a pointer to the first value");
  const SeenPages seen = checked_pages(view, before);
  const index_t rows = seen.rows;
  const auto stride = [&](index_t value, index_t least, index_t count, std::string_view name) {
    // In bytes, and some rows further on, which are asked for ahead. Where there is one row alone it leads nowhere, but
    // is multiplied all the same.
    const index_t most = std::numeric_limits<index_t>::max() / 2 / std::max(count, index_t{8}) / index_t{sizeof(T)};
    require(value <= most && value >= (count == 1 ? -most : least), name, value,
            [&] { return text("at least one row of ", least, " elements, and no overflow over ", count); });
  };
  const index_t key_row = shape.head_dim / values_per_element<T>;
  const index_t value_row = shape.value_dim / values_per_element<T>;
  const auto apart = [&](const Strides& strides, index_t row, std::string_view name) {
    const bool heads_inside = strides.position >= (shape.kv_heads - 1) * strides.head + row;
    const bool positions_inside = strides.head >= (rows - 1) * strides.position + row;
    require(rows == 1 || shape.kv_heads == 1 || heads_inside || positions_inside, name, strides,
            "rows that don't overlap: all heads within a position, or all positions within a head");
  };
  stride(view.key_strides.position, key_row, rows, "KvView.key_strides.position");
  stride(view.key_strides.head, key_row, shape.kv_heads, "KvView.key_strides.head");
  stride(view.value_strides.position, value_row, rows, "KvView.value_strides.position");
  stride(view.value_strides.head, value_row, shape.kv_heads, "KvView.value_strides.head");
  apart(view.key_strides, key_row, "KvView.key_strides (position, head)");
  apart(view.value_strides, value_row, "KvView.value_strides (position, head)");
  return seen;
}

}  // namespace detail

}  // namespace recycled::inline RECYCLED_ABI
