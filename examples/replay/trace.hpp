// A trace: queries, keys and values of one layer of a real model while it read a text.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <iomanip>
#include <recycled/types/shape.hpp>
#include <span>
#include <sstream>

#include "npy.hpp"

namespace replay {

struct Trace {
  recycled::Shape shape;
  index_t tokens = 0;
  index_t first_query = 0;  ///< the token whose query is stored first: a trace may hold those of the last tokens only
  std::vector<float> queries;  ///< [tokens - first_query, query_heads, head_dim]
  std::vector<float> keys;     ///< [tokens, kv_heads, head_dim]
  std::vector<float> values;   ///< [tokens, kv_heads, value_dim]

  std::span<const float> query(index_t token) const { return queries_of(token, token + 1); }
  /// Of tokens [begin, end).
  std::span<const float> queries_of(index_t begin, index_t end) const {
    return std::span(queries).subspan(static_cast<std::size_t>((begin - first_query) * shape.query_size()),
                                      static_cast<std::size_t>((end - begin) * shape.query_size()));
  }
};

inline Tensor read_finite(const std::string& path) {
  Tensor tensor = read_npy(path);
  for (std::size_t i = 0; i < tensor.values.size(); ++i) {
    if (!std::isfinite(tensor.values[i])) {
      npy::fail(path, "value " + std::to_string(i), std::to_string(tensor.values[i]), "a finite number");
    }
  }
  return tensor;
}

/// Reads layerNN_queries.npy, layerNN_keys.npy and layerNN_values.npy, each [token, head, dim]. Throws
/// std::runtime_error for files that are broken or don't belong together.
inline Trace load_trace(const std::string& folder, index_t layer) {
  const auto path = [&](std::string_view what) {
    std::ostringstream name;
    name << "layer" << std::setw(2) << std::setfill('0') << layer << '_' << what << ".npy";
    return (std::filesystem::path(folder) / name.str()).string();
  };
  Tensor queries = read_finite(path("queries"));
  Tensor keys = read_finite(path("keys"));
  Tensor values = read_finite(path("values"));
  const auto check = [](bool ok, const std::string& file, std::string_view name, index_t value,
                        const std::string& expectation) {
    if (!ok) npy::fail(file, name, std::to_string(value), expectation);
  };
  const auto [tokens, kv_heads, head_dim] = keys.shape;
  check(values.shape[0] == tokens, path("values"), "tokens", values.shape[0], std::to_string(tokens) + " as the keys");
  check(values.shape[1] == kv_heads, path("values"), "heads", values.shape[1],
        std::to_string(kv_heads) + " as the keys");
  check(queries.shape[0] <= tokens, path("queries"), "tokens", queries.shape[0],
        "at most " + std::to_string(tokens) + ", the keys'");
  check(queries.shape[1] % kv_heads == 0, path("queries"), "heads", queries.shape[1],
        "a multiple of " + std::to_string(kv_heads) + ", the keys'");
  check(queries.shape[2] == head_dim, path("queries"), "dim", queries.shape[2],
        std::to_string(head_dim) + " as the keys");
  return {{queries.shape[1], kv_heads, head_dim, values.shape[2]},
          tokens,
          tokens - queries.shape[0],
          std::move(queries.values),
          std::move(keys.values),
          std::move(values.values)};
}

/// Throws std::invalid_argument for a value that is infinite once it is stored as an S: it would make every output NaN,
/// or wrong.
template <recycled::Scalar S>
void check_held(const std::vector<float>& rows, std::string_view name) {
  constexpr index_t some = recycled::values_per_element<S>;
  const auto size = static_cast<index_t>(rows.size());
  std::array<S, 1> element;
  std::array<float, some> held;
  for (index_t i = 0; i < size; i += some) {
    const float* const given = rows.data() + i;
    recycled::encode(given, some, element.data());
    recycled::decode(element.data(), some, held.data());
    if (std::all_of(held.begin(), held.end(), [](float x) { return std::isfinite(x); })) continue;
    const float* const largest =
        std::max_element(given, given + some, [](float a, float b) { return std::abs(a) < std::abs(b); });
    std::ostringstream message;
    message << name << ": value " << largest - rows.data() << " = " << *largest << ", expected what "
            << recycled::type_name<S> << " holds (bf16 and f32 hold more)";
    throw std::invalid_argument(message.str());
  }
}

}  // namespace replay
