// Compiled once for each instruction set, under the name PART_NAME.
#include "part.hpp"

#include <recycled/recycled.hpp>
#include <span>

namespace {

/// Decodes the sequence; returns the outputs.
template <class Decoder>
std::vector<float> decode(Decoder&& decoder, const Sequence& sequence) {
  constexpr std::size_t query_size = Sequence::query_heads * Sequence::head_dim;
  constexpr std::size_t key_size = Sequence::kv_heads * Sequence::head_dim;
  recycled::ThreadPool pool{2};
  std::vector<float> out(sequence.queries.size());

  const auto tokens = [](auto& rows, std::size_t row_size, std::size_t first, std::size_t count) {
    return std::span(rows).subspan(first * row_size, count * row_size);
  };
  decoder.prefill(0, tokens(sequence.queries, query_size, 0, Sequence::prompt),
                  tokens(sequence.keys, key_size, 0, Sequence::prompt),
                  tokens(sequence.values, key_size, 0, Sequence::prompt), tokens(out, query_size, 0, Sequence::prompt),
                  pool);
  for (std::size_t t = Sequence::prompt; t < Sequence::prompt + Sequence::steps; ++t) {
    decoder.step(0, tokens(sequence.queries, query_size, t, 1), tokens(sequence.keys, key_size, t, 1),
                 tokens(sequence.values, key_size, t, 1), tokens(out, query_size, t, 1), pool);
  }
  return out;
}

}  // namespace

std::vector<float> PART_NAME(const Sequence& sequence) {
  using recycled::bfloat16, recycled::SelfCalibrating;
  const recycled::ModelShape model{
      .layers = 1,
      .layer = {.query_heads = Sequence::query_heads, .kv_heads = Sequence::kv_heads, .head_dim = Sequence::head_dim}};
  // What a sketch makes of near ties is a matter of rounding: it has to run here, not to agree.
  recycled::Decoder<bfloat16, SelfCalibrating> sketched{model, {.capacity = 32, .sketch = {.coordinates = 16}}};
  for (const float x : decode(sketched, sequence)) {
    if (!(x > -10 && x < 10)) return {};
  }
  return decode(recycled::Decoder<bfloat16>{model, {.capacity = 32}, {.stride = 7}}, sequence);
}
