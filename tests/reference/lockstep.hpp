// A Decoder and the model of each of its layers, fed the same random tokens, compared after every call.
#pragma once

#include <gtest/gtest.h>

#include <recycled/recycled.hpp>
#include <string>
#include <vector>

#include "reference/feed.hpp"

namespace reference {

/// The token as a cache of T holds it.
template <recycled::Scalar T>
Token stored(const Token& token) {
  return {token.query, rounded<T>(token.key), rounded<T>(token.value)};
}

inline constexpr Real indistinct = 1e-5L;  // scores that float arithmetic may not tell apart

/// Every KV head of a layer holds the set, did the kind of step and counted what the model did. Sets may differ where
/// two scores are closer than float arithmetic can tell apart; the model then goes on with the library's.
template <class Library>
void expect_same_state(const Library& layer, Layer& model, bool recycles = true) {
  ASSERT_EQ(layer.length(), model.length());
  for (index_t g = 0; g < layer.shape().kv_heads; ++g) {
    SCOPED_TRACE("KV head " + std::to_string(g));
    const Head& head = model.head(g);
    const recycled::HeadStatistics& counts = layer.statistics().heads[at(g)];
    EXPECT_EQ(counts.full_steps, head.counts.full);
    EXPECT_EQ(counts.recycled_steps, head.counts.recycled);
    EXPECT_EQ(counts.rows_read, head.counts.rows);
    if (!recycles) continue;
    EXPECT_EQ(layer.last_step(g) == recycled::StepKind::full, head.last.full);
    EXPECT_EQ(counts.measured, head.counts.measured);
    EXPECT_NEAR(counts.retained_mass, static_cast<double>(head.counts.retained_mass),
                1e-5 * (1 + counts.retained_mass));
    const Positions held = layer.recycled_positions(g);
    if (held.size() == head.held.size() && held != head.held && head.last.gap < indistinct) {
      model.adopt(g, held);
    } else {
      EXPECT_EQ(held, head.held);
    }
  }
}

/// out [rows, value_dim] is within the promised bound of the oracle.
inline void expect_near(const std::vector<float>& out, const std::vector<Attention>& rows) {
  ASSERT_FALSE(rows.empty());
  const std::size_t value_dim = rows.front().output.size();
  ASSERT_EQ(out.size(), rows.size() * value_dim);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    ASSERT_TRUE(near(std::span(out.data() + r * value_dim, value_dim), rows[r])) << "row " << r;
  }
}

/// A decoder of two layers and their models.
template <recycled::Scalar T, recycled::Schedule Policy>
class Lockstep {
 public:
  static constexpr index_t layers = 2;
  using Decoder = recycled::Decoder<T, Policy>;

  Lockstep(const Options& options, const Policy& policy, const Schedule& schedule, std::uint64_t seed = 1)
      : decoder_({layers, options.shape}, {options.capacity, 0, options.attention}, policy,
                 {.memory = static_cast<float>(options.memory),
                  .pool = options.pool,
                  .observation_window = options.observation_window}),
        schedule_(schedule) {
    Options checked = options;
    checked.shape = recycled::detail::checked<T>(options.shape);
    for (index_t i = 0; i < layers; ++i) {
      checked.layer = i;
      models_.emplace_back(checked, schedule);
      tokens_.emplace_back(checked.shape, seed + 1000 * static_cast<std::uint64_t>(i));
    }
  }

  Decoder& decoder() { return decoder_; }
  const Layer& model(index_t layer) const { return models_[at(layer)]; }
  index_t length() const { return decoder_.length(); }
  /// A prompt's choice or a schedule was between numbers that float arithmetic may not tell apart,
  bool is_close() const { return close_; }
  bool stops_where_close = false;  ///< and from then on nothing is compared

  void prefill(index_t count) {
    for (index_t i = 0; i < layers && !testing::Test::HasFailure(); ++i) {
      SCOPED_TRACE(where("prefill", i));
      const std::vector<Token> tokens = tokens_[at(i)].next(count);
      std::vector<float> out(at(count * decoder_.layer(i).shape().output_size()));
      decoder_.prefill(i, packed(tokens, &Token::query), packed(tokens, &Token::key), packed(tokens, &Token::value),
                       out);
      std::vector<Token> rows;
      for (const Token& token : tokens) rows.push_back(stored<T>(token));
      expect_near(out, models_[at(i)].prefill(rows));
    }
  }

  void step(index_t count = 1) {
    for (index_t n = 0; n < count; ++n) {
      for (index_t i = 0; i < layers && !testing::Test::HasFailure(); ++i) {
        SCOPED_TRACE(where("step", i));
        const Token token = tokens_[at(i)].next();
        std::vector<float> out(at(decoder_.layer(i).shape().output_size()));
        decoder_.step(i, token.query, token.key, token.value, out);
        const std::vector<Attention> rows = models_[at(i)].step(stored<T>(token));
        close_ = close_ || models_[at(i)].closest_call() < indistinct;
        if (close_ && stops_where_close) return;
        expect_near(out, rows);
        expect_same_state(decoder_.layer(i), models_[at(i)], recycled::detail::recycles<Policy>);
      }
    }
  }

  void clear() {
    decoder_.clear();
    for (index_t i = 0; i < layers; ++i) models_[at(i)] = Layer(models_[at(i)].options(), schedule_);
  }

  void rollback(index_t count) {
    SCOPED_TRACE(where("rollback of " + std::to_string(count), 0));
    decoder_.rollback(count);
    for (index_t i = 0; i < layers; ++i) {
      models_[at(i)].truncate(models_[at(i)].length() - count);
      for (index_t g = 0; recycled::detail::recycles<Policy> && g < decoder_.layer(i).shape().kv_heads; ++g) {
        EXPECT_EQ(decoder_.layer(i).recycled_positions(g), models_[at(i)].head(g).held);
      }
    }
  }

 private:
  std::string where(const std::string& what, index_t layer) const {
    return what + " at length " + std::to_string(length()) + ", layer " + std::to_string(layer);
  }

  Decoder decoder_;
  Schedule schedule_;
  std::vector<Layer> models_;
  std::vector<Tokens> tokens_;
  bool close_ = false;
};

}  // namespace reference
