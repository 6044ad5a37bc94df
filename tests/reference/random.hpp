// Seeded data, and KV caches of any type and layout made of it.
#pragma once

#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <recycled/types/kv_view.hpp>
#include <recycled/types/memory.hpp>
#include <vector>

#include "reference/attention.hpp"

namespace reference {

/// The same numbers for the same seed.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  float normal() { return normal_(engine_); }
  /// A whole number of [low, high].
  index_t between(index_t low, index_t high) { return std::uniform_int_distribution<index_t>(low, high)(engine_); }
  std::vector<float> row(index_t dim, float deviation = 1) {
    std::vector<float> values(static_cast<std::size_t>(dim));
    for (float& x : values) x = deviation * normal();
    return values;
  }
  Rows rows(index_t count, index_t dim, float deviation = 1) {
    Rows all;
    for (index_t j = 0; j < count; ++j) all.push_back(row(dim, deviation));
    return all;
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

/// What is left of a row that has been stored as T.
template <recycled::Scalar T>
std::vector<float> rounded(const std::vector<float>& row) {
  const index_t dim = static_cast<index_t>(row.size());
  std::vector<T> stored(row.size() / static_cast<std::size_t>(recycled::values_per_element<T>));
  recycled::encode(row.data(), dim, stored.data());
  std::vector<float> values(row.size());
  recycled::decode(stored.data(), dim, values.data());
  return values;
}

/// What may stand where nobody looks.
enum class Poison { quiet_nan, signalling_nan, negative_nan, infinite, negative_infinite, huge };
inline constexpr Poison every_poison[] = {Poison::quiet_nan, Poison::signalling_nan,    Poison::negative_nan,
                                          Poison::infinite,  Poison::negative_infinite, Poison::huge};

/// An element of T that poisons whatever it touches.
template <recycled::Scalar T>
T poison(Poison kind = Poison::quiet_nan) {
  if constexpr (std::same_as<T, recycled::q8_0>) {
    T element{poison<recycled::half>(kind), {}};
    std::fill(std::begin(element.quants), std::end(element.quants),
              kind == Poison::huge ? std::int8_t{127} : std::int8_t{1});
    return element;
  } else {
    // As bits: a conversion would make quiet NaNs of signalling ones. All these formats end in their mantissa.
    using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>;
    constexpr int mantissa = std::same_as<T, float> ? 23 : std::same_as<T, recycled::half> ? 10 : 7;
    constexpr Bits sign = Bits{1} << (8 * sizeof(T) - 1), quiet = Bits{1} << (mantissa - 1);
    constexpr auto endless = static_cast<Bits>(sign - (quiet << 1));
    const Bits bits[] = {endless | quiet, endless | 1,    static_cast<Bits>(~Bits{0}),
                         endless,         sign | endless, static_cast<Bits>(endless - 1)};
    return Eigen::numext::bit_cast<T>(bits[static_cast<int>(kind)]);
  }
}

/// Where the rows of a cache lie.
struct Layout {
  bool position_major = false;         ///< [position, head, dim], else [head, position, dim]
  index_t padding = 0;                 ///< elements behind every row
  index_t offset = 0;                  ///< elements before the first row: 1 leaves every row unaligned
  index_t room = 0;                    ///< positions behind the last
  index_t page = 0;                    ///< positions in a page, and the pages lie in no order; 0: the whole is one
  index_t value_offset = 0;            ///< elements before the first value, on top of `offset`
  Poison between = Poison::quiet_nan;  ///< whatever is no row
};

/// Keys and values of one layer.
template <recycled::Scalar T>
class Cache {
 public:
  Cache(const recycled::Shape& shape, index_t length, Layout layout = {})
      : shape_(recycled::detail::checked<T>(shape)),
        length_(length),
        layout_(layout),
        pages_(shuffled_pages()),
        keys_(elements(shape_.head_dim), poison<T>(layout.between)),
        values_(layout.value_offset + elements(shape_.value_dim), poison<T>(layout.between)) {}

  /// Normal keys and values; the logits of normal queries are then about normal, too.
  static Cache random(const recycled::Shape& shape, index_t length, Random& random, Layout layout = {}) {
    Cache cache(shape, length, layout);
    for (index_t g = 0; g < shape.kv_heads; ++g) {
      for (index_t j = 0; j < length; ++j) {
        cache.set_key(j, g, random.row(cache.shape_.head_dim));
        cache.set_value(j, g, random.row(cache.shape_.value_dim));
      }
    }
    return cache;
  }

  /// The same rows in another layout; of KV head g those of head `heads`[g], if there are any.
  Cache arranged(Layout layout, const std::vector<index_t>& heads = {}) const {
    Cache other(shape_, length_, layout);
    for (index_t g = 0; g < shape_.kv_heads; ++g) {
      const index_t from = heads.empty() ? g : heads[static_cast<std::size_t>(g)];
      for (index_t j = 0; j < length_; ++j) {
        std::copy_n(view().key(j, from), row_elements(shape_.head_dim), other.key(j, g));
        std::copy_n(view().value(j, from), row_elements(shape_.value_dim), other.value(j, g));
      }
    }
    return other;
  }

  recycled::KvView<T> view() const { return view(length_); }
  recycled::KvView<T> view(index_t length) const {
    return {keys_.data() + layout_.offset,
            values_.data() + layout_.offset + layout_.value_offset,
            strides(shape_.head_dim),
            strides(shape_.value_dim),
            length,
            {pages_.empty() ? nullptr : pages_.data(), std::max(layout_.page, index_t{1})}};
  }
  const recycled::Shape& shape() const { return shape_; }
  const Layout& layout() const { return layout_; }
  index_t length() const { return length_; }

  void set_key(index_t position, index_t head, const std::vector<float>& row) {
    recycled::encode(row.data(), shape_.head_dim, key(position, head));
  }
  void set_value(index_t position, index_t head, const std::vector<float>& row) {
    recycled::encode(row.data(), shape_.value_dim, value(position, head));
  }
  void poison_key(index_t position, index_t head) { *key(position, head) = poison<T>(); }
  void poison_value(index_t position, index_t head) { *value(position, head) = poison<T>(); }
  /// The whole rows of all heads.
  void spoil(index_t position, Poison kind) {
    for (index_t g = 0; g < shape_.kv_heads; ++g) {
      std::fill_n(key(position, g), row_elements(shape_.head_dim), poison<T>(kind));
      std::fill_n(value(position, g), row_elements(shape_.value_dim), poison<T>(kind));
    }
  }

  /// What is stored, as floats.
  Rows keys(index_t head) const { return decoded(head, shape_.head_dim, &recycled::KvView<T>::key); }
  Rows values(index_t head) const { return decoded(head, shape_.value_dim, &recycled::KvView<T>::value); }

 private:
  static index_t row_elements(index_t dim) { return dim / recycled::values_per_element<T>; }
  index_t elements(index_t dim) const {
    return layout_.offset + shape_.kv_heads * rows() * (row_elements(dim) + layout_.padding);
  }
  recycled::Strides strides(index_t dim) const {
    const index_t row = row_elements(dim) + layout_.padding;
    if (layout_.position_major) return {shape_.kv_heads * row, row};
    return {row, rows() * row};
  }
  index_t rows() const {
    return layout_.page == 0 ? length_ + layout_.room : static_cast<index_t>(pages_.size() + 1) * layout_.page;
  }
  std::vector<std::int32_t> shuffled_pages() const {
    if (layout_.page == 0) return {};
    std::vector<std::int32_t> pages(static_cast<std::size_t>((length_ + layout_.room) / layout_.page + 1));
    std::iota(pages.begin(), pages.end(), 1);
    std::shuffle(pages.begin(), pages.end(), std::mt19937_64(1));
    return pages;
  }
  T* key(index_t position, index_t head) { return const_cast<T*>(view().key(position, head)); }
  T* value(index_t position, index_t head) { return const_cast<T*>(view().value(position, head)); }
  template <class Place>
  Rows decoded(index_t head, index_t dim, Place place) const {
    Rows rows(static_cast<std::size_t>(length_), std::vector<float>(static_cast<std::size_t>(dim)));
    for (index_t j = 0; j < length_; ++j) {
      recycled::decode((view().*place)(j, head), dim, rows[static_cast<std::size_t>(j)].data());
    }
    return rows;
  }

  recycled::Shape shape_;
  index_t length_;
  Layout layout_;
  std::vector<std::int32_t> pages_;
  recycled::Array<T> keys_;
  recycled::Array<T> values_;
};

}  // namespace reference
