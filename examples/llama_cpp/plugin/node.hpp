// A FLASH_ATTN_EXT node of a ggml graph, and which of them the plugin can take.
//
//   out[stream, token, head, :] = softmax(scale * Q[stream, head, token, :] K[stream, head / group]^T + mask) V
#pragma once

#include <ggml-impl.h>
#include <ggml.h>

#include <cstring>
#include <optional>
#include <recycled/recycled.hpp>

namespace plugin {

using recycled::index_t;

/// The tensors and their dimensions, by the names that Recycled uses.
class Node {
 public:
  explicit Node(const ggml_tensor* out) : out_(out) {}

  const ggml_tensor* queries() const { return out_->src[0]; }  ///< f32 [dim, token, head, stream]
  const ggml_tensor* keys() const { return out_->src[1]; }     ///< [dim, cell, KV head, stream]
  const ggml_tensor* values() const { return out_->src[2]; }
  const ggml_tensor* mask() const { return out_->src[3]; }  ///< f16 [cell, token, 1, stream or 1], or null
  const ggml_tensor* out() const { return out_; }           ///< f32 [dim, head, token, stream]

  index_t tokens() const { return queries()->ne[1]; }
  index_t streams() const { return queries()->ne[3]; }
  index_t cells() const { return keys()->ne[1]; }
  recycled::Shape shape() const { return {queries()->ne[2], keys()->ne[2], keys()->ne[0], values()->ne[0]}; }
  recycled::AttentionOptions options() const { return {.scale = parameter(0), .soft_cap = parameter(2)}; }

  /// The tensor that holds the cache of this layer, or null: keys that are no view of one were computed for this graph
  /// alone.
  const ggml_tensor* cache() const {
    const ggml_tensor* const source = keys()->view_src;
    return source != nullptr && source->op == GGML_OP_NONE ? source : nullptr;
  }

  /// Whether the plugin can compute it, whatever the mask holds.
  bool claimed() const {
    const ggml_tensor *q = queries(), *k = keys(), *v = values(), *m = mask();
    if (out_->src[4] != nullptr) return false;               // sinks that are learned logits
    if (parameter(1) != 0) return false;                     // ALiBi
    if (ggml_get_op_params_i32(out_, 4) != 0) return false;  // a mask that stands for a sparse set
    if (q->type != GGML_TYPE_F32 || out_->type != GGML_TYPE_F32 || k->type != v->type || !known(k->type)) return false;
    if (q->nb[0] != sizeof(float) || !ggml_is_contiguous(out_)) return false;
    if (parameter(0) == 0 || q->ne[2] % k->ne[2] != 0 || v->ne[2] != k->ne[2]) return false;
    if (k->ne[3] != q->ne[3] || v->ne[3] != q->ne[3]) return false;
    if (!rows_fit(k) || !rows_fit(v)) return false;
    if (m == nullptr) return q->ne[1] <= most_unmasked_tokens;
    return m->type == GGML_TYPE_F16 && m->ne[0] >= k->ne[1] && m->ne[2] == 1 && (m->ne[3] == 1 || m->ne[3] == q->ne[3]);
  }

 private:
  /// Without a mask tokens see one another both ways: an encoder, for whose many tokens the host has better tiles.
  static constexpr index_t most_unmasked_tokens = 32;

  static bool known(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 || type == GGML_TYPE_Q8_0;
  }
  /// Contiguous rows at distances that are whole elements, and no two of them over one another.
  static bool rows_fit(const ggml_tensor* t) {
    const std::size_t row = ggml_row_size(t->type, t->ne[0]), element = ggml_type_size(t->type);
    const auto apart = [&](int inner, int outer) {
      return t->nb[inner] >= row && t->nb[outer] >= static_cast<std::size_t>(t->ne[inner] - 1) * t->nb[inner] + row;
    };
    return t->nb[0] == element && t->ne[0] % ggml_blck_size(t->type) == 0 && t->nb[1] % element == 0 &&
           t->nb[2] % element == 0 && (apart(1, 2) || apart(2, 1));
  }
  float parameter(std::size_t i) const {
    float value;
    std::memcpy(&value, out_->op_params + i, sizeof value);
    return value;
  }

  const ggml_tensor* out_;
};

}  // namespace plugin
