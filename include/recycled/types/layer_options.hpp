// How a layer recycles, and the checks of what it is given.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>

#include "recycled/types/shape.hpp"

namespace recycled::inline RECYCLED_ABI {

/// A layer that keeps a sketch of its keys refreshes by it: of every key a few coordinates of four bits each, which say
/// well enough which positions matter. A refresh reads them and K rows then, not all rows. What the coordinates are is
/// found out from the keys and the last queries (LayerAttention::observe takes up to 64 tokens' gladly), and again
/// whenever the context has grown by a quarter to a half. (Not the paper's.)
///
/// With `keys` the keys are their own sketch: a refresh reads all of them, which says exactly what matters, and of the
/// values only those that do. That is half of a full step and K rows, takes no memory, and loses next to nothing: what
/// a full step's output has besides counts at that one token.
///
/// Layers with a sliding window do neither: the window bounds what a full step reads.
struct SketchOptions {
  index_t coordinates = 0;  ///< of each key: 0 for no sketch, else a multiple of 4 up to 64; 32 do for most models
  index_t full_every = 64;  ///< of so many refreshes of a KV head one is a full step all the same, at least 1
  bool keys = false;  ///< the keys themselves serve as one; with `coordinates` 0, and `full_every` counts for nothing
};

/// How a layer recycles.
struct LayerOptions {
  index_t capacity = 0;    ///< K: positions kept for each KV head; the paper takes an eighth of the context
  index_t max_length = 0;  ///< positions to size all buffers for; beyond it (or at 0) they grow by doubling
  AttentionOptions attention = {};
  SketchOptions sketch = {};
  /// Which layer of the model this is (a Decoder numbers its own). Layers take turns with the steps that a schedule
  /// takes now and then, so that all tokens take the same time; with the same number they take them at the same token.
  index_t layer = 0;
};

namespace detail {

/// `options` with defaults filled in, for a layer that recycles or one that never does. `shape` is checked.
template <bool Recycles>
LayerOptions checked(LayerOptions options, const Shape& shape) {
  require(options.capacity >= (Recycles ? 1 : 0) && options.capacity <= most_positions, "LayerOptions.capacity",
          options.capacity, Recycles ? "1 to 2^40 positions" : "0 to 2^40 positions");
  require(options.max_length >= 0 && options.max_length <= most_positions, "LayerOptions.max_length",
          options.max_length, "0 to 2^40 positions");
  if constexpr (Recycles) {  // each count is sound, their product may not be
    const index_t slots = checked_product(shape.kv_heads, options.capacity + 1, "recycle cache size");
    checked_product(slots, std::max(shape.head_dim, shape.value_dim), "recycle cache size");
  }
  require(options.sketch.coordinates >= 0 && options.sketch.coordinates <= 64 && options.sketch.coordinates % 4 == 0,
          "SketchOptions.coordinates", options.sketch.coordinates, "0 or a multiple of 4 up to 64");
  require(!options.sketch.keys || options.sketch.coordinates == 0, "SketchOptions.coordinates",
          options.sketch.coordinates, "0 with SketchOptions.keys");
  require(options.sketch.full_every >= 1, "SketchOptions.full_every", options.sketch.full_every, "at least 1");
  require(options.layer >= 0 && options.layer <= most_layers, "LayerOptions.layer", options.layer, "0 to 2^20");
  options.attention = checked(options.attention, shape);
  return options;
}

/// What a saved state and the layer that it is loaded into have in common. `options` are checked.
template <class Io>
void agree(Io& io, const Shape& shape, const LayerOptions& options) {
  io.same(shape.query_heads, "Shape.query_heads");
  io.same(shape.kv_heads, "Shape.kv_heads");
  io.same(shape.head_dim, "Shape.head_dim");
  io.same(shape.value_dim, "Shape.value_dim");
  io.same(options.capacity, "LayerOptions.capacity");
  io.same(options.layer, "LayerOptions.layer");
  io.same(options.attention.scale, "AttentionOptions.scale");
  io.same(options.attention.soft_cap, "AttentionOptions.soft_cap");
  io.same(options.attention.window, "AttentionOptions.window");
  io.same(options.attention.sinks, "AttentionOptions.sinks");
  io.same(options.sketch.coordinates, "SketchOptions.coordinates");
  io.same(index_t{options.sketch.keys}, "SketchOptions.keys");
}

inline void require_size(std::size_t size, index_t expected, std::string_view name, std::string_view what) {
  require(static_cast<index_t>(size) == expected, name, size, [&] { return text(expected, " = ", what); });
}

/// A number of positions to keep or to take back, of those there are.
inline void require_at_most(index_t value, index_t positions, std::string_view name) {
  require(value >= 0 && value <= positions, name, value,
          [&] { return text("0 to the ", positions, " positions there are"); });
}

/// How many tokens' queries these are: at least one.
inline index_t token_count(std::span<const float> queries, const Shape& shape) {
  const auto size = static_cast<index_t>(queries.size());
  require(size >= shape.query_size() && size % shape.query_size() == 0, "query.size()", size,
          [&] { return text("a positive multiple of query_heads * head_dim = ", shape.query_size()); });
  return size / shape.query_size();
}

/// One KV head's positions that a host chose, of `length` with the new token's own: -1 for none, at most `capacity` of
/// the others.
inline void check_chosen(std::span<const index_t> positions, index_t capacity, index_t length) {
  index_t count = 0;
  for (const index_t p : positions) {
    require(p >= -1 && p < length, "positions", p, [&] { return text("-1 for none, or 0 to ", length - 1); });
    if (p >= 0 && p + 1 < length) ++count;
  }
  require(count <= capacity, "positions of a KV head", count, [&] { return text("at most the capacity, ", capacity); });
}

/// What the schedule is to compare: nothing in particular, or one query's worth.
inline void check_compared(std::span<const float> compared, const Shape& shape) {
  if (!compared.empty()) require_size(compared.size(), shape.query_size(), "compared.size()", "query_heads * head_dim");
}

}  // namespace detail

}  // namespace recycled::inline RECYCLED_ABI
