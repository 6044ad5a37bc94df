// Runs a Decoder over random tokens and hands back its outputs, for tests that compare bits.
#pragma once

#include <bit>
#include <cmath>
#include <recycled/recycled.hpp>
#include <vector>

#include "reference/decoder.hpp"
#include "reference/random.hpp"

namespace reference {

/// Tokens whose queries drift, so that a similarity schedule now recycles and now does not.
class Tokens {
 public:
  Tokens(const recycled::Shape& shape, std::uint64_t seed)
      : shape_(recycled::detail::checked<float>(shape)), random_(seed), query_(random_.row(shape_.query_size())) {}

  Token next() {
    for (float& x : query_) x = 0.95F * x + 0.31F * random_.normal();
    return {query_, random_.row(shape_.kv_heads * shape_.head_dim), random_.row(shape_.kv_heads * shape_.value_dim)};
  }
  std::vector<Token> next(index_t count) {
    std::vector<Token> tokens;
    for (index_t i = 0; i < count; ++i) tokens.push_back(next());
    return tokens;
  }

 private:
  recycled::Shape shape_;
  Random random_;
  std::vector<float> query_;
};

/// All tokens' queries, keys or values in one run: [tokens, heads, dim].
inline std::vector<float> packed(const std::vector<Token>& tokens, std::vector<float> Token::*part) {
  std::vector<float> all;
  for (const Token& token : tokens) all.insert(all.end(), (token.*part).begin(), (token.*part).end());
  return all;
}

using Bits = std::vector<std::uint32_t>;

inline Bits bits(const std::vector<float>& values) {
  Bits result;
  for (const float value : values) result.push_back(std::bit_cast<std::uint32_t>(value));
  return result;
}

/// Which KV heads of an output [query_heads, value_dim] have a NaN.
inline std::vector<bool> heads_with_nan(const std::vector<float>& out, const recycled::Shape& shape) {
  std::vector<bool> result(at(shape.kv_heads));
  const std::size_t size = at(shape.group() * shape.value_dim);
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (std::isnan(out[i])) result[i / size] = true;
  }
  return result;
}

/// The same prompt through every layer, in one chunk; returns the outputs' bits.
template <class Decoder, class E = recycled::Serial>
Bits prefill(Decoder& decoder, const std::vector<Token>& tokens, E&& executor = {}) {
  Bits result;
  for (index_t i = 0; i < decoder.layers(); ++i) {
    std::vector<float> out(tokens.size() * at(decoder.layer(i).shape().output_size()));
    decoder.prefill(i, packed(tokens, &Token::query), packed(tokens, &Token::key), packed(tokens, &Token::value), out,
                    executor);
    const Bits one = bits(out);
    result.insert(result.end(), one.begin(), one.end());
  }
  return result;
}

/// Every token is a decode step, the same in every layer.
template <class Decoder, class E = recycled::Serial>
Bits decode(Decoder& decoder, const std::vector<Token>& tokens, E&& executor = {}) {
  Bits result;
  for (const Token& token : tokens) {
    for (index_t i = 0; i < decoder.layers(); ++i) {
      std::vector<float> out(at(decoder.layer(i).shape().output_size()));
      decoder.step(i, token.query, token.key, token.value, out, executor);
      const Bits one = bits(out);
      result.insert(result.end(), one.begin(), one.end());
    }
  }
  return result;
}

}  // namespace reference
