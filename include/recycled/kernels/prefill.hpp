// Causal attention of many tokens: the decode tile with more rows.
//
//   for token t at position p:  out = softmax(einsum("hd,jd->hj", q_t, K[visible(p)])) V[visible(p)]
#pragma once

#include "recycled/kernels/workspace.hpp"
#include "recycled/types/kv_view.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Query rows in a tile. A block of keys and values is widened to floats once for all of them, so the more the better,
/// as long as queries, outputs and the widened block stay in L2 (290 KiB at 128 values a row). A prompt of 4096 halves
/// takes 0.75 of the time that it takes with 32 rows, and every few rows widening for themselves.
inline constexpr index_t prefill_rows = 128;
/// Tokens whose queries and outputs are in the workspace at a time; bounds it for prompts of any length.
inline constexpr index_t prefill_tokens = 256;

/// The rows of `positions` as floats in `to`, in whole vectors.
template <class Isa, Scalar T>
Rows<float> widen(const Rows<T>& rows, const Pages& pages, const Range& positions, float* to) {
  const Rows<float> wide{to, simd::padded<Isa>(rows.dim), rows.dim};
  for (index_t j = positions.begin; j < positions.end; ++j, to += wide.stride) {
    const T* const row = rows[pages.row(j)];
    index_t d = 0;
    for (; d + Isa::width <= rows.dim; d += Isa::width) Isa::store(to + d, simd::load<Isa>(row, d));
    if (d < rows.dim) Isa::store(to + d, simd::load_first<Isa>(row, d, rows.dim - d));
  }
  return wide;
}

/// Attends rows [0, seen.size()) of a block, which stand for the positions `seen`, for the tokens of one tile: `rows`
/// holds group rows for each token from `position` on. What every token sees whole is one tile; at the causal edge and
/// at the edge of a window each token reads exactly what it sees, so that a NaN in a row reaches no token that doesn't
/// see it.
template <class Isa>
void attend_prefill_block(const Rows<float>& keys, const Rows<float>& values, Range positions, const Queries& queries,
                          index_t group, index_t position, const AttentionOptions& options, const TileState& state) {
  const index_t tokens = queries.rows / group;
  const Visible first(options, position);
  const Visible last(options, position + tokens - 1);
  if (positions.end <= first.window.end && positions.begin >= last.window.begin) {
    attend_block<Isa>(keys, values, positions.size(), queries, options.soft_cap, state);
    return;
  }
  for (index_t t = 0; t < tokens; ++t) {
    const Visible visible(options, position + t);
    const Queries own{queries.first + t * group * queries.stride, queries.stride, group};
    for (const Range& seen : {visible.sinks, visible.window}) {
      const Range part{std::max(positions.begin, seen.begin), std::min(positions.end, seen.end)};
      if (part.size() == 0) continue;
      const index_t skip = part.begin - positions.begin;
      attend_block<Isa>(keys.from(skip), values.from(skip), part.size(), own, options.soft_cap,
                        state.part(t * group, group));
    }
  }
}

/// Attention of `tokens` tokens that are the last rows of `kv`: queries [tokens, query_heads, head_dim] to out [tokens,
/// query_heads, value_dim]. The workspace is reserved by prefill_reserve.
template <class Isa, Scalar T, class Executor>
void prefill(const Shape& shape, const AttentionOptions& options, const KvView<T>& kv, const float* queries,
             index_t tokens, float* out, Workspace<Isa>& workspace, Executor& executor) {
  const index_t group = shape.group();
  const index_t tile_tokens = std::max(index_t{1}, prefill_rows / group);
  for (index_t done = 0; done < tokens; done += prefill_tokens) {
    const index_t chunk = std::min(prefill_tokens, tokens - done);
    const index_t tiles = (chunk + tile_tokens - 1) / tile_tokens;
    const index_t chunk_position = kv.length - tokens + done;
    workspace.pack_queries(queries + done * shape.query_size(), chunk, shape, options.scale);
    executor(shape.kv_heads * tiles, [&](index_t task) {
      const index_t g = task / tiles;
      const index_t first = (task % tiles) * tile_tokens;
      const index_t count = std::min(tile_tokens, chunk - first);
      const Rows<T> keys{kv.head_keys(g), kv.key_strides.position, shape.head_dim};
      const Rows<T> values{kv.head_values(g), kv.value_strides.position, shape.value_dim};
      const Queries rows = workspace.queries((g * chunk + first) * group, count * group);
      const TileState state = workspace.tile(task, count * group);
      state.clear();
      const index_t position = chunk_position + first;
      const index_t window = Visible(options, position).window.begin / block * block;
      const index_t sinks = std::min(window, options.sinks);
      for (index_t begin = 0; begin < position + count; begin += block) {
        if (begin >= sinks && begin < window) begin = window;  // no token of the tile sees what is between
        const Range block_of{begin, std::min(begin + block, position + count)};
        attend_prefill_block<Isa>(widen<Isa>(keys, kv.pages, block_of, workspace.wide_keys(task)),
                                  widen<Isa>(values, kv.pages, block_of, workspace.wide_values(task)), block_of, rows,
                                  group, position, options, state);
      }
      for (index_t r = 0; r < count * group; ++r) {
        const index_t row = (done + first + r / group) * shape.query_heads + g * group + r % group;
        state.row(r).normalize(out + row * shape.value_dim, shape.value_dim);
      }
    });
  }
}

/// Makes room for prefill of any number of tokens.
template <class Isa>
void prefill_reserve(const Shape& shape, index_t tokens, Workspace<Isa>& workspace) {
  const index_t chunk = std::min(tokens, prefill_tokens);
  const index_t tile_tokens = std::max(index_t{1}, prefill_rows / shape.group());
  // Tiles read their rows widened.
  workspace.template reserve<float>(chunk * shape.query_heads, shape.head_dim,
                                    shape.kv_heads * ((chunk + tile_tokens - 1) / tile_tokens),
                                    tile_tokens * shape.group(), shape.value_dim, block);
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
