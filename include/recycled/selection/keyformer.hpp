#pragma once

#include <cmath>
#include <cstdint>

#include "recycled/selection/gathered.hpp"

namespace recycled::inline RECYCLED_ABI {

namespace detail {

/// Gumbel noise, -log(-log u) with u even in (0, 1), which depends on its arguments alone; from -2.82 to 16.7.
inline float gumbel(std::uint64_t seed, index_t query, index_t position) noexcept {
  // The finalizer of SplitMix64 (Steele et al. 2014), once for each argument.
  const auto mix = [](std::uint64_t x) {
    x += 0x9E3779B97F4A7C15U;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
    return x ^ (x >> 31);
  };
  const std::uint64_t bits =
      mix(mix(mix(seed) + static_cast<std::uint64_t>(query)) + static_cast<std::uint64_t>(position));
  // 23 bits and a half: a float holds that exactly, so that u is neither 0 nor 1.
  const float u = (static_cast<float>(bits >> 41) + 0.5F) / 8388608;
  return -std::log(-std::log(u));
}

}  // namespace detail

/// Keyformer (Adnan et al. 2024, arXiv:2403.09054): the most recent positions, and of the others the key tokens, those
/// whose scores sum up to the most over all steps that attended to them. A step's scores are softmax((x + noise) / t)
/// of its logits x, with Gumbel noise, for what will still come, and a temperature t that rises from 1 to 2 while
/// tokens are generated, because the fewer positions are left, the more the weights of those that stay are inflated.
///
/// What differs: x are log-weights, the largest of the group's query heads, where Keyformer has a score for each query
/// head (softmax does not see the constant between a logit and a log-weight). Of the prompt's queries the last
/// `observation_window` count, their mean weights stand for each of them, each with noise of its own. Noise is a
/// function of seed, query and position, the same for all KV heads.
struct Keyformer {
  index_t recent = 0;               ///< how many are kept for being recent, .2 to .3 K in the paper; must be given
  index_t observation_window = 32;  ///< last prompt queries whose scores are gathered
  index_t tokens = 256;             ///< that are expected to be generated: with the last the temperature is 2
  std::uint64_t seed = 0;           ///< of the noise
  detail::Gathered gathered = {};   ///< starts empty
  index_t prompt = 0;               ///< where generation began; found by itself

  void rank(const Scores& measured, std::span<float> ranks) {
    const auto length = static_cast<index_t>(ranks.size());
    if (measured.of_prompt) gathered.sums.clear();
    if (gathered.sums.empty()) prompt = length;
    gathered.extend(ranks.size());
    for (index_t query = length - measured.queries; query < length; ++query) {
      gather(measured.log_weights, query, ranks, [](std::size_t j) { return static_cast<index_t>(j); });
    }
    for (std::size_t j = 0; j < ranks.size(); ++j) ranks[j] = gathered.rank(j, ranks.size(), recent);
  }
  void attended(const Attended& seen, std::span<float> ranks) {
    const std::size_t length = detail::length_of(seen);
    if (gathered.sums.empty()) prompt = static_cast<index_t>(length) - 1;  // the host chose the first set
    gathered.extend(length);
    gather(seen.log_weights, static_cast<index_t>(length) - 1, ranks, [&](std::size_t s) { return seen.positions[s]; });
    for (std::size_t s = 0; s < ranks.size(); ++s) {
      ranks[s] = gathered.rank(static_cast<std::size_t>(seen.positions[s]), length, recent);
    }
  }
  /// Of the scores of the token at `query`: 1 in the prompt, 2 from the last of `tokens` on.
  float temperature(index_t query) const noexcept {
    const index_t step = std::clamp(query + 1 - prompt, index_t{0}, tokens);
    return 1 + static_cast<float>(step) / static_cast<float>(tokens);
  }
  void reserve(index_t length) { gathered.reserve(length); }
  void truncate(index_t length) noexcept {
    gathered.truncate(length);
    prompt = std::min(prompt, length);
  }
  template <class Io>
  void transfer(Io& io) {
    io(gathered.sums, prompt);
  }
  void validate() const {
    detail::require(recent >= 1, "Keyformer.recent", recent, "at least 1; a quarter of the capacity is usual");
    detail::require(observation_window >= 1, "Keyformer.observation_window", observation_window, "at least 1");
    detail::require(tokens >= 1, "Keyformer.tokens", tokens, "at least 1");
    detail::require(prompt >= 0, "Keyformer.prompt", prompt, "0 or more");
  }

 private:
  /// Adds the scores of one query; `terms` is scratch of the same size.
  template <class PositionOf>
  void gather(std::span<const float> log_weights, index_t query, std::span<float> terms,
              const PositionOf& position_of) {
    const float heat = temperature(query);
    double sum = 0;
    for (std::size_t i = 0; i < terms.size(); ++i) {
      // What is no number has no term, nor has what is out of sight. Logarithms of weights are not above 0.
      const float x = std::min(log_weights[i], 1.0F);
      const bool counts = x >= std::numeric_limits<float>::lowest();
      terms[i] = counts ? std::exp((x + detail::gumbel(seed, query, position_of(i))) / heat) : 0;
      sum += terms[i];
    }
    if (sum <= 0) return;
    const auto share = static_cast<float>(1 / sum);
    for (std::size_t i = 0; i < terms.size(); ++i)
      gathered.add(static_cast<std::size_t>(position_of(i)), share * terms[i]);
  }
};

}  // namespace recycled::inline RECYCLED_ABI
