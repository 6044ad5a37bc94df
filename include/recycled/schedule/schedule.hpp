// When to take a full step: the concept.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include "recycled/kernels/cosine.hpp"
#include "recycled/types/error.hpp"

namespace recycled::inline RECYCLED_ABI {

/// What a step reads.
enum class StepKind {
  full,      ///< the whole cache; chooses the recycle cache anew
  recycled,  ///< the recycle cache and the new token
  sketched,  ///< all keys or a sketch of them, to choose the recycle cache anew, and then that (SketchOptions)
};

/// What a schedule knows when it decides: about the whole layer or, if it decides for each KV head, about one head.
struct StepInfo {
  index_t step = 0;                     ///< decode steps since the prompt; the first is 1
  index_t length = 0;                   ///< positions, the new token's included
  index_t layer = 0;                    ///< LayerOptions.layer: what happens now and then is to be spread over them
  index_t age = 0;                      ///< steps since the last full one of this scope (1 right after it)
  index_t kv_head = 0;                  ///< which head is asked about; 0 for a whole layer
  index_t kv_heads = 1;                 ///< how many there are
  index_t head_dim = 0;                 ///< of the queries below
  std::span<const float> queries;       ///< [query heads in scope, head_dim], as the host passed them
  std::span<const float> full_queries;  ///< the same at the last full step; the last prompt token's count as one
};

/// What a schedule learns from a full step of one KV head (or, by the sketch's scores, from a sketched one).
struct Refresh {
  index_t step = 0;
  index_t kv_head = 0;
  index_t kv_heads = 1;
  /// The measured staleness: attention mass that the old set (and the new token) still held, relative to what the new
  /// set holds; the least over the group's query heads. 1: nothing had been lost; 0: everything had. A refresh of a set
  /// that left out nothing, because it has room for all that is visible, is not told.
  float retained_mass = 1;
};

/// What a schedule learns from every step of its layer, all KV heads together.
struct Cost {
  index_t layer = 0;             ///< LayerOptions.layer
  std::uint64_t bytes_read = 0;  ///< of rows, and of the sketch where it was read
  std::uint64_t bytes_full = 0;  ///< what a full step reads
};

/// A schedule is copyable, moves without throwing, and decides: recycled or, for a refresh, full. Where the layer has a
/// sketch a refresh is a sketched step most of the time, and counts as a full one for all that a schedule is told. One
/// object serves a layer, on the thread that calls it; with `static constexpr bool per_head = true` it is asked about
/// every KV head, else once about all of them. Optional members:
///     void observe(const Refresh&)          after full steps that replaced a set of a head; must not throw
///     void spent(const Cost&)               after every step of the layer; must not throw
///     void reserve(index_t kv_heads)        once a layer is made: for how many heads it will be asked; may throw
///     void validate() const                 throws std::invalid_argument for parameters that mean nothing
///     void transfer(Io& io)                 names what was learnt, to be saved, see Learnt
///     static constexpr bool recycles = false  promises to answer `full` always: no recycle cache is kept
template <class S>
concept Schedule = detail::Value<S> && requires(S& schedule, const StepInfo& info) {
  { schedule.decide(info) } -> std::same_as<StepKind>;
};

namespace detail {

template <class S>
inline constexpr bool per_head = [] {
  if constexpr (requires { S::per_head; }) return static_cast<bool>(S::per_head);
  return false;
}();

template <class S>
inline constexpr bool recycles = [] {
  if constexpr (requires { S::recycles; }) return static_cast<bool>(S::recycles);
  return true;
}();

}  // namespace detail

/// Cosine of the angle between the means of two sets of vectors, each [n, dim]. NaN if a mean is zero or not a number.
inline float mean_cosine(std::span<const float> a, std::span<const float> b, index_t dim) {
  const auto mean_at = [dim](std::span<const float> set, index_t d) {
    double sum = 0;
    for (index_t i = d; i < static_cast<index_t>(set.size()); i += dim) sum += static_cast<double>(set.data()[i]);
    return sum;
  };
  double ab = 0;
  double aa = 0;
  double bb = 0;
  for (index_t d = 0; d < dim; ++d) {
    const double x = mean_at(a, d);
    const double y = mean_at(b, d);
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  return static_cast<float>(ab / std::sqrt(aa * bb));
}

/// Whether a KV head has recycled for long enough: `longest` steps, of other heads and layers up to a quarter fewer, so
/// that calm ones do not all refresh at the same token.
inline bool is_overdue(const StepInfo& info, index_t longest) noexcept {
  return info.age >= longest - (info.layer * info.kv_heads + info.kv_head) % (longest / 4 + 1);
}

/// The least cosine between a vector of `a` and the one at its place in `b`, each [n, dim]. NaN if any is: where a
/// vector is zero or not a number.
inline float least_cosine(std::span<const float> a, std::span<const float> b, index_t dim) noexcept {
  float least = 1;
  for (index_t i = 0; i < static_cast<index_t>(a.size()); i += dim) {
    const float cosine = kernels::cosine(a.data() + i, b.data() + i, dim);
    if (!(cosine >= least)) least = cosine;
    if (least != least) break;
  }
  return least;
}

}  // namespace recycled::inline RECYCLED_ABI
