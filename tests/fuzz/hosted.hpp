// Rows as a host may keep them, in any layout, and layers over them that are called as a Decoder is.
#pragma once

#include <sanitizer/asan_interface.h>

#include <memory>
#include <numeric>

#include "fuzz/fuzz.hpp"

namespace fuzz {

/// How rows lie in memory.
struct Layout {
  bool head_major = false;
  index_t gap = 0;     // elements between what lies side by side: heads, or with head_major positions,
  index_t room = 0;    // and behind all of it
  index_t offset = 0;  // elements before the first row
  index_t page = 0;    // rows in a page; 0 for no table
  index_t spare = 0;   // pages that nothing is written to
  std::vector<std::pair<index_t, index_t>> swaps = {};  // of pages, which lie in order else

  /// Taken from the end: inputs are the same whatever else they begin with.
  static Layout of(Bytes& bytes) {
    Layout layout{bytes.last(0, 1) == 1, bytes.last(0, 3), bytes.last(0, 5), bytes.last(0, 3), bytes.last(0, 9)};
    if (layout.page == 9) layout.page = 100;
    if (layout.page == 0) return layout;
    layout.spare = bytes.last(0, 3);
    layout.swaps.resize(static_cast<std::size_t>(bytes.last(0, 15)));
    for (auto& [one, other] : layout.swaps) {
      one = bytes.last(0, 255);
      other = bytes.last(0, 255);
    }
    return layout;
  }
};

/// Of up to `most` positions. AddressSanitizer sees whoever reads a row that was not written, or between rows.
template <recycled::Scalar T>
class Rows {
 public:
  Rows(const Layout& layout, const recycled::Shape& shape, index_t most)
      : most_(most),
        kv_heads_(shape.kv_heads),
        size_(std::max(layout.page, index_t{1})),
        paged_(layout.page > 0),
        places_(static_cast<std::size_t>((most + size_ - 1) / size_ + layout.spare)),
        table_(places_.size() - static_cast<std::size_t>(layout.spare), -1),
        keys_(layout, shape.head_dim, kv_heads_, pages() * size_),
        values_(layout, shape.value_dim == 0 ? shape.head_dim : shape.value_dim, kv_heads_, pages() * size_) {
    std::iota(places_.begin(), places_.end(), 0);
    for (const auto& [one, other] : layout.swaps) std::swap(place(one % pages()), place(other % pages()));
  }

  index_t most() const { return most_; }
  /// Keys and values [kv_heads, dim] of a position.
  void write(index_t position, const float* key, const float* value) {
    table_[static_cast<std::size_t>(position / size_)] = place(position / size_);
    for (index_t g = 0; g < kv_heads_; ++g) {
      keys_.write(row(position), g, key);
      values_.write(row(position), g, value);
    }
  }
  recycled::KvView<T> view(index_t length) const {
    check(length <= most_, "the host has such rows");
    return {keys_.first(), values_.first(), keys_.strides, values_.strides, length, pages_of_view()};
  }

 private:
  struct Part {
    Part(const Layout& layout, index_t values, index_t kv_heads, index_t rows)
        : dim(values), offset(layout.offset), size(values / recycled::values_per_element<T>) {
      const index_t inner = size + layout.gap, outer = (layout.head_major ? rows : kv_heads) * inner + layout.room;
      strides = layout.head_major ? recycled::Strides{inner, outer} : recycled::Strides{outer, inner};
      memory.resize(offset + (rows - 1) * strides.position + (kv_heads - 1) * strides.head + size);
      ASAN_POISON_MEMORY_REGION(memory.data(), static_cast<std::size_t>(memory.size()) * sizeof(T));
    }
    const T* first() const { return memory.data() + offset; }
    void write(index_t row, index_t head, const float* values) {
      T* const to = memory.data() + offset + row * strides.position + head * strides.head;
      ASAN_UNPOISON_MEMORY_REGION(to, static_cast<std::size_t>(size) * sizeof(T));
      recycled::encode(values + head * dim, dim, to);
    }

    index_t dim, offset, size;
    recycled::Strides strides;
    recycled::Array<T> memory;
  };

  index_t pages() const { return static_cast<index_t>(places_.size()); }
  std::int32_t& place(index_t page) { return places_[static_cast<std::size_t>(page)]; }
  recycled::Pages pages_of_view() const { return {paged_ ? table_.data() : nullptr, size_}; }
  index_t row(index_t position) const { return pages_of_view().row(position); }

  index_t most_, kv_heads_, size_;
  bool paged_;
  std::vector<std::int32_t> places_;  // of every page
  std::vector<std::int32_t> table_;   // -1 where nothing was written
  Part keys_, values_;
};

/// A layer over rows of its own. Copies share them.
template <class Layer, recycled::Scalar T>
class Hosted {
 public:
  using Floats = std::span<const float>;

  Hosted(const Layer& layer, const Layout& layout, index_t most)
      : layer_(layer), rows_(std::make_shared<Rows<T>>(layout, layer.shape(), most)) {}

  void prefill(index_t /*layer*/, Floats queries, Floats keys, Floats values, std::span<float> out) {
    layer_.prefill(queries, grown(0, keys, values), out);
  }
  void step(index_t /*layer*/, Floats query, Floats key, Floats value, std::span<float> out) {
    layer_.step(query, grown(0, key, value), out);
  }
  /// Behind so many tokens that the layer does not get to see; fewer than none can't be.
  void observe(Floats queries, Floats keys, Floats values, index_t unseen) {
    const index_t end = grown(std::max(unseen, index_t{0}), keys, values).length;
    layer_.observe(queries, unseen < 0 ? end - 1 : end);
  }
  void prepare() { layer_.prepare(rows_->view(length())); }
  /// From a view that holds what is to come, too: one row, or in an empty layer so many.
  void choose_positions(index_t /*layer*/, std::span<const index_t> positions, index_t more = 0) {
    layer_.choose_positions(positions, with(more));
  }
  void choose_by_scores(index_t /*layer*/, Floats scores, index_t more = 0) {
    layer_.choose_by_scores(scores, with(more));
  }
  recycled::KvView<T> with(index_t more) {
    const index_t end = length() == 0 ? more : length() + std::min(more, index_t{1});
    fill(length(), end);
    return rows_->view(end);
  }
  void truncate(index_t length) { layer_.truncate(length); }
  void rollback(index_t tokens) { layer_.rollback(tokens); }
  void clear() { layer_.clear(); }
  Hosted fork() const { return *this; }
  void save(std::ostream& stream) const { layer_.save(stream); }
  void load(std::istream& stream) { layer_.load(stream); }
  /// All rows, for whatever length was loaded: of a longer sequence the host has forgotten the end.
  void restore() {
    truncate(std::min(length(), rows_->most() / 2));
    fill(0, length());
  }
  index_t length() const { return layer_.length(); }

 private:
  index_t row_size() const { return layer_.shape().kv_heads * layer_.shape().head_dim; }
  recycled::KvView<T> grown(index_t before, Floats keys, Floats values) {
    const index_t tokens = static_cast<index_t>(keys.size()) / row_size();
    for (index_t i = 0; i < before + tokens; ++i) {
      const index_t from = std::max(i - before, index_t{0}) * row_size();
      rows_->write(length() + i, keys.data() + from, values.data() + from);
    }
    return rows_->view(length() + before + tokens);
  }
  void fill(index_t from, index_t to) {
    const std::vector<float> some(static_cast<std::size_t>(row_size()), 0.5F);
    for (index_t p = from; p < to; ++p) rows_->write(p, some.data(), some.data());
  }

  Layer layer_;
  std::shared_ptr<Rows<T>> rows_;
};

}  // namespace fuzz
