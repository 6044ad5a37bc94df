// The library owns the KV memory of all layers.
#pragma once

#include <span>
#include <vector>

#include "recycled/cache/kv_cache.hpp"
#include "recycled/layer.hpp"

namespace recycled::inline RECYCLED_ABI {

/// A model's attention: how many layers of which shape.
struct ModelShape {
  index_t layers = 0;
  Shape layer;
};

/// KV caches and attention of one sequence through all layers. A token, or a chunk of the prompt, passes through the
/// layers in any order; it counts once all of them have it. A value: a copy is a fork that shares nothing but a Budget.
/// Several sequences are several objects, and different threads may use different ones unless they share a Scratch; one
/// object is used by one thread at a time, all layers together, and its const members by several. Wrong arguments throw
/// std::invalid_argument and leave the decoder as it was; one that was moved from may be assigned to or destroyed. R:
/// what rows are recycled as, see LayerAttention.
template <Scalar T, Schedule Policy = FixedStride, Selection Keep = TopK, Scalar R = T>
class Decoder {
 public:
  using Layer = LayerAttention<T, Policy, Keep, R>;

  /// Room for options.max_length positions is taken at once; the caches grow by doubling beyond it.
  Decoder(const ModelShape& model, const LayerOptions& options, const Policy& schedule = {},
          const Keep& selection = {}) {
    detail::require(model.layers >= 1 && model.layers <= detail::most_layers, "ModelShape.layers", model.layers,
                    "1 to 2^20");
    layers_.reserve(static_cast<std::size_t>(model.layers));
    const auto scratch = std::make_shared<Scratch>();
    for (index_t i = 0; i < model.layers; ++i) {
      LayerOptions own = options;
      own.layer = i;
      Layer layer(model.layer, own, schedule, selection);
      KvCache<T> cache(layer.shape(), options.max_length);
      layer.share(scratch);
      layers_.push_back({std::move(cache), std::move(layer)});
    }
  }
  /// A copy's layers work in one Scratch of its own.
  Decoder(const Decoder& other) {
    layers_.reserve(other.layers_.size());
    const auto scratch = std::make_shared<Scratch>();
    for (const Both& both : other.layers_) {
      layers_.push_back(both);
      layers_.back().attention.share(scratch);
    }
  }
  Decoder(Decoder&&) noexcept = default;
  /// Goes on working in the Scratch that this decoder worked in.
  Decoder& operator=(const Decoder& other) {
    Decoder copy(other);
    if (!layers_.empty()) copy.share(layers_.front().attention.scratch());
    return *this = std::move(copy);
  }
  Decoder& operator=(Decoder&&) noexcept = default;
  ~Decoder() = default;

  /// A chunk of the prompt through one layer: queries [tokens, query_heads, head_dim], keys [tokens, kv_heads,
  /// head_dim] and values [tokens, kv_heads, value_dim] join the cache (rounded to T), then causal attention writes out
  /// [tokens, query_heads, value_dim]. Chunks may have any size. `compared`: see LayerAttention::step.
  template <Executor E = Serial>
  void prefill(index_t layer, std::span<const float> queries, std::span<const float> keys,
               std::span<const float> values, std::span<float> out, E&& executor = {},
               std::span<const float> compared = {}) {
    Both& both = layers_[checked(layer)];
    grow(both, detail::token_count(queries, both.attention.shape()), keys, values,
         [&](Layer& attention, const KvView<T>& kv) { attention.prefill(queries, kv, out, executor, compared); });
  }

  /// One decode step of one layer: query [query_heads, head_dim], key [kv_heads, head_dim] and value [kv_heads,
  /// value_dim] of the new token, out [query_heads, value_dim].
  template <Executor E = Serial>
  void step(index_t layer, std::span<const float> query, std::span<const float> key, std::span<const float> value,
            std::span<float> out, E&& executor = {}, std::span<const float> compared = {}) {
    Both& both = layers_[checked(layer)];
    detail::require_size(query.size(), both.attention.shape().query_size(), "query.size()", "query_heads * head_dim");
    grow(both, 1, key, value,
         [&](Layer& attention, const KvView<T>& kv) { attention.step(query, kv, out, executor, compared); });
  }

  /// What the next step of a layer reads, see LayerAttention::choose_positions: positions [kv_heads, n]. The layer
  /// holds at least one position.
  template <Executor E = Serial>
  void choose_positions(index_t layer, std::span<const index_t> positions,
                        E&& executor = {}) requires(detail::recycles<Policy>) {
    Both& both = layers_[checked_to_choose(layer)];
    both.attention.choose_positions(positions, both.cache.view(), executor);
  }
  /// The same by scores [kv_heads, the layer's positions so far].
  template <Executor E = Serial>
  void choose_by_scores(index_t layer, std::span<const float> scores,
                        E&& executor = {}) requires(detail::recycles<Policy>) {
    Both& both = layers_[checked_to_choose(layer)];
    both.attention.choose_by_scores(scores, both.cache.view(), executor);
  }

  /// Works in `scratch` from now on, as other decoders may that are never used at the same time as this one. Without
  /// this call its layers share one among themselves, and so do those of a copy.
  void share(const std::shared_ptr<Scratch>& scratch) {
    for (Both& both : layers_) both.attention.share(scratch);
  }

  /// Positions that all layers hold.
  index_t length() const noexcept {
    const auto least = std::min_element(layers_.begin(), layers_.end(), [](const Both& a, const Both& b) {
      return a.cache.length() < b.cache.length();
    });
    return least == layers_.end() ? 0 : least->cache.length();
  }

  /// Takes back all positions from `length` on, in every layer; also repairs a token that stopped between two layers.
  void truncate(index_t length) {
    detail::require_at_most(length, this->length(), "truncate: length");
    for (Both& both : layers_) {
      both.attention.truncate(length);  // first: a host's selection may throw when it is copied
      both.cache.truncate(length);
    }
  }
  /// Takes back the last `tokens` positions (speculative decoding).
  void rollback(index_t tokens) {
    detail::require_at_most(tokens, length(), "rollback: tokens");
    truncate(length() - tokens);
  }

  /// A copy that goes on by itself (beam search, several answers to one prompt): it holds the rows in use and shares
  /// nothing with this one, unless their schedules share a Budget.
  Decoder fork() const { return *this; }

  /// As newly made, with the memory kept: the next sequence.
  void clear() {
    for (Both& both : layers_) {
      both.cache.truncate(0);
      both.attention.clear();
    }
  }

  /// Writes the sequence to a binary stream: the cache of every layer, and what LayerAttention::save writes.
  void save(std::ostream& stream) const {
    detail::StateWriter io(stream);
    transfer(io, layers_, [](const Both& both) -> Both& {
      return const_cast<Both&>(both);  // NOLINT(cppcoreguidelines-pro-type-const-cast): a writer changes nothing
    });
    io.finish();
  }
  /// Goes on from a state that was saved by a decoder that was made with the same arguments, with the same bits. See
  /// LayerAttention::load.
  void load(std::istream& stream) {
    detail::StateReader io(stream);
    std::vector<Both> loaded;
    loaded.reserve(layers_.size());
    transfer(io, layers_, [&](const Both& both) -> Both& {
      loaded.push_back({both.cache.fresh(), both.attention.fresh()});
      loaded.back().attention.share(both.attention.scratch());
      return loaded.back();
    });
    layers_ = std::move(loaded);
  }

  index_t layers() const noexcept { return static_cast<index_t>(layers_.size()); }
  const Layer& layer(index_t i) const { return layers_[checked(i)].attention; }
  /// The full cache of a layer, as a view that the next call may end.
  KvView<T> view(index_t i) const { return layers_[checked(i)].cache.view(); }
  /// What every layer did since the decoder was made or cleared.
  std::vector<LayerStatistics> statistics() const {
    std::vector<LayerStatistics> all;
    all.reserve(layers_.size());
    for (const Both& both : layers_) all.push_back(both.attention.statistics());
    return all;
  }

 private:
  struct Both {
    KvCache<T> cache;
    Layer attention;
  };

  /// Layer by layer; `at` is where the state of one like this is.
  template <class Io, class At>
  static void transfer(Io& io, const std::vector<Both>& layers, const At& at) {
    io.begin("decoder");
    io.same(static_cast<index_t>(layers.size()), "ModelShape.layers");
    for (const Both& like : layers) {
      like.attention.agree(io);
      Both& both = at(like);
      both.cache.transfer(io);
      both.attention.transfer(io);
      detail::require(both.cache.length() == both.attention.length(), "saved state: length", both.attention.length(),
                      [&] { return detail::text("that of the cache, ", both.cache.length()); });
      io.end(detail::text("layer ", &like - layers.data()));
    }
  }

  std::size_t checked(index_t layer) const {
    detail::require(layer >= 0 && layer < layers(), "layer", layer,
                    [&] { return detail::text("0 to ", layers() - 1); });
    return static_cast<std::size_t>(layer);
  }

  std::size_t checked_to_choose(index_t layer) const {
    const std::size_t i = checked(layer);
    detail::require(layers_[i].cache.length() >= 1, "the layer's length", 0, "at least 1, positions to choose from");
    return i;
  }

  /// Lets `attend` see the tokens' rows behind the cache's; if it fails, they never were part of it.
  template <class F>
  static void grow(Both& both, index_t tokens, std::span<const float> keys, std::span<const float> values,
                   const F& attend) {
    const Shape& shape = both.attention.shape();
    const auto check = [&](std::span<const float> given, index_t dim, std::string_view name) {
      const index_t expected = detail::checked_product(tokens * shape.kv_heads, dim, name);
      detail::require(static_cast<index_t>(given.size()) == expected, name, given.size(),
                      [&] { return detail::text(expected, " = tokens * kv_heads * ", dim); });
    };
    check(keys, shape.head_dim, "key.size()");
    check(values, shape.value_dim, "value.size()");
    attend(both.attention, both.cache.stage(keys.data(), values.data(), tokens));
    both.cache.commit(tokens);
  }

  std::vector<Both> layers_;
};

}  // namespace recycled::inline RECYCLED_ABI
