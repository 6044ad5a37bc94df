// What one attention layer is: its dimensions, and how its logits are formed.
#pragma once

#include "recycled/types/error.hpp"
#include "recycled/types/scalar.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Dimensions of one layer. Query head h belongs to KV head h / group(): GQA; MQA is kv_heads = 1, MHA is kv_heads =
/// query_heads.
struct Shape {
  index_t query_heads = 0;
  index_t kv_heads = 0;
  index_t head_dim = 0;   ///< of queries and keys
  index_t value_dim = 0;  ///< of values and outputs; 0: the same as head_dim

  index_t group() const noexcept { return query_heads / kv_heads; }
  index_t query_size() const noexcept { return query_heads * head_dim; }
  index_t output_size() const noexcept { return query_heads * value_dim; }
};

/// How a layer turns dot products into attention weights.
struct AttentionOptions {
  float scale = 0;     ///< logit = scale * q.k; 0: 1 / sqrt(head_dim)
  float soft_cap = 0;  ///< logit = soft_cap * tanh(logit / soft_cap), as Gemma 2 does; 0: off
  index_t window = 0;  ///< a token sees itself and the window - 1 positions before it; 0: all of them
  index_t sinks = 0;   ///< with a window: the first `sinks` positions are seen as well (StreamingLLM)
};

namespace detail {

/// Far more than any context. Times a dimension it may be more than 2^63: such products are checked.
inline constexpr index_t most_positions = index_t{1} << 40;
inline constexpr index_t most_layers = index_t{1} << 20;  // of one model

/// `shape` with value_dim filled in. Throws std::invalid_argument for a shape that no layer of T can have.
template <Scalar T>
Shape checked(Shape shape) {
  // No dimension of a model comes near this, and products of two stay far below 2^63.
  constexpr index_t most = index_t{1} << 24;
  const auto dimension = [](index_t value, std::string_view name) {
    require(value >= 1 && value <= most, name, value, "1 to 2^24");
  };
  dimension(shape.query_heads, "Shape.query_heads");
  dimension(shape.kv_heads, "Shape.kv_heads");
  dimension(shape.head_dim, "Shape.head_dim");
  if (shape.value_dim == 0) shape.value_dim = shape.head_dim;
  dimension(shape.value_dim, "Shape.value_dim");
  require(shape.query_heads % shape.kv_heads == 0, "Shape.query_heads", shape.query_heads,
          [&] { return text("a multiple of kv_heads = ", shape.kv_heads); });
  const auto blocks = [] { return text("a multiple of ", values_per_element<T>, " for this KV type"); };
  require(shape.head_dim % values_per_element<T> == 0, "Shape.head_dim", shape.head_dim, blocks);
  require(shape.value_dim % values_per_element<T> == 0, "Shape.value_dim", shape.value_dim, blocks);
  return shape;
}

/// `options` with the default scale filled in. Throws std::invalid_argument for values that mean nothing.
inline AttentionOptions checked(AttentionOptions options, const Shape& shape) {
  if (options.scale == 0) options.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
  require(std::isfinite(options.scale), "AttentionOptions.scale", options.scale, "a finite number");
  require(options.soft_cap == 0 ||
              (options.soft_cap > 0 && std::isfinite(options.soft_cap) && std::isfinite(1.0F / options.soft_cap)),
          "AttentionOptions.soft_cap", options.soft_cap,
          "0 (off) or a positive, finite number, its inverse finite too");
  require(options.window >= 0, "AttentionOptions.window", options.window, "0 (off) or a count of positions");
  require(options.sinks >= 0, "AttentionOptions.sinks", options.sinks, "0 or a count of positions");
  require(options.sinks == 0 || options.window > 0, "AttentionOptions.sinks", options.sinks,
          "0 when there is no window");
  return options;
}

}  // namespace detail

/// A run of positions [begin, end).
struct Range {
  index_t begin = 0;
  index_t end = 0;
  index_t size() const noexcept { return end > begin ? end - begin : 0; }
};

/// The positions that the token at `position` sees: the sinks, then the window that ends at itself.
struct Visible {
  Range sinks;
  Range window;

  Visible(const AttentionOptions& options, index_t position) : window{0, position + 1} {
    if (options.window > 0 && position + 1 > options.window) {
      window.begin = position + 1 - options.window;
      sinks.end = std::min(options.sinks, window.begin);
    }
  }
  index_t size() const noexcept { return sinks.size() + window.size(); }
  bool contains(index_t position) const noexcept {
    return position < sinks.end || (position >= window.begin && position < window.end);
  }
};

}  // namespace recycled::inline RECYCLED_ABI
