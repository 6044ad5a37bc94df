// What an attention mask says: which cells of the cache each token sees, and in which order they came.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>
#include <recycled/types/config.hpp>
#include <vector>

namespace plugin {

using recycled::index_t;

/// A set of cells, a bit each.
class CellSet {
 public:
  /// Reads a row of a mask: halfs, 0 where a cell is seen and -infinity where it is not. False if there is anything
  /// else: a bias, which only the host knows how to add.
  bool read(const std::uint16_t* row, index_t cells) {
    words_.assign(static_cast<std::size_t>((cells + 63) / 64), 0);
    bool plain = true;
    for (index_t i = 0; i < cells; ++i) {
      const bool seen = (row[i] & 0x7FFF) == 0;
      plain = plain && (seen || row[i] == 0xFC00);
      words_[static_cast<std::size_t>(i / 64)] |= std::uint64_t{seen} << (i % 64);
    }
    return plain;
  }
  void insert(index_t cell) {
    const auto word = static_cast<std::size_t>(cell / 64);
    if (words_.size() <= word) words_.resize(word + 1, 0);
    words_[word] |= std::uint64_t{1} << (cell % 64);
  }
  /// Calls f(cell) for each, ascending.
  template <class F>
  void for_each(const F& f) const {
    for (std::size_t w = 0; w < words_.size(); ++w) {
      for (std::uint64_t word = words_[w]; word != 0; word &= word - 1) {
        f(static_cast<index_t>(64 * w) + std::countr_zero(word));
      }
    }
  }
  std::uint64_t word(std::size_t w) const { return w < words_.size() ? words_[w] : 0; }
  std::size_t words() const { return words_.size(); }

 private:
  std::vector<std::uint64_t> words_;
};

/// What `after` has that `before` has not, and the other way round: how many, and the last of them.
struct Difference {
  index_t added = 0;
  index_t removed = 0;
  index_t added_cell = -1;
  index_t removed_cell = -1;

  Difference(const CellSet& before, const CellSet& after) {
    for (std::size_t w = 0; w < std::max(before.words(), after.words()); ++w) {
      count(after.word(w) & ~before.word(w), w, added, added_cell);
      count(before.word(w) & ~after.word(w), w, removed, removed_cell);
    }
  }

 private:
  static void count(std::uint64_t bits, std::size_t w, index_t& number, index_t& cell) {
    if (bits == 0) return;
    number += std::popcount(bits);
    cell = static_cast<index_t>(64 * w) + 63 - std::countl_zero(bits);
  }
};

/// Consecutive tokens of a batch that continue one another: causal attention over `cells`, ordered such that token i of
/// the chain sees the first cells.size() - tokens + 1 + i of them or, with a window, the last `window` of those.
struct Chain {
  index_t first = 0;  ///< token of the batch
  index_t tokens = 1;
  index_t window = 0;
  std::vector<std::int32_t> cells;
  CellSet seen;  ///< by the first token
};

/// Cuts the tokens of a mask into chains, as long as possible.
class Chains {
 public:
  /// `mask`: a row of `cells` halfs for each token, `stride` halfs apart. Nothing if the host has to compute this: a
  /// mask that is more than seen and not seen, or tokens that see each other both ways.
  static std::optional<std::vector<Chain>> of(const std::uint16_t* mask, index_t cells, index_t tokens,
                                              index_t stride) {
    std::vector<CellSet> rows(static_cast<std::size_t>(tokens));
    for (index_t t = 0; t < tokens; ++t) {
      if (!rows[static_cast<std::size_t>(t)].read(mask + t * stride, cells)) return std::nullopt;
    }
    std::vector<Chain> chains;
    for (index_t t = 0; t < tokens; t += chains.back().tokens) {
      chains.push_back(start(rows, t));
      Chain& chain = chains.back();
      if (!chain.cells.empty() && !extend(rows, chain)) return std::nullopt;
    }
    return chains;
  }

 private:
  static Chain start(const std::vector<CellSet>& rows, index_t token) {
    Chain chain{.first = token, .cells = {}, .seen = rows[static_cast<std::size_t>(token)]};
    chain.seen.for_each([&](index_t cell) { chain.cells.push_back(static_cast<std::int32_t>(cell)); });
    return chain;
  }

  /// Takes the tokens that follow into `chain`, as far as each sees one cell more than the one before it and no
  /// other: at most one that falls out of a window. False for two tokens that see the same.
  static bool extend(const std::vector<CellSet>& rows, Chain& chain) {
    std::vector<std::int32_t> left;  // by the window, in this order
    std::vector<std::int32_t> came;
    auto token = static_cast<std::size_t>(chain.first);
    for (; token + 1 < rows.size(); ++token) {
      const Difference step(rows[token], rows[token + 1]);
      if (step.added == 0 && step.removed == 0) return false;
      if (step.added != 1 || step.removed > 1 || (step.removed == 0 && !left.empty())) break;
      came.push_back(static_cast<std::int32_t>(step.added_cell));
      if (step.removed == 1) left.push_back(static_cast<std::int32_t>(step.removed_cell));
    }
    if (came.empty()) return true;
    // A window that was not full at first fills up before anything leaves it.
    const std::size_t before = came.size() - left.size();
    order(chain.cells, left);
    const std::size_t seen_first = chain.cells.size();
    chain.cells.insert(chain.cells.end(), came.begin(), came.end());
    if (!std::equal(left.begin(), left.end(), chain.cells.begin())) {
      chain.cells.resize(seen_first);  // what leaves is not what came first: token by token, then
      return true;
    }
    chain.tokens = static_cast<index_t>(came.size()) + 1;
    if (!left.empty()) chain.window = static_cast<index_t>(seen_first + before);
    return true;
  }

  /// Puts those of `left` that are among `cells` first, in their order.
  static void order(std::vector<std::int32_t>& cells, const std::vector<std::int32_t>& left) {
    auto place = cells.begin();
    for (const std::int32_t cell : left) {
      const auto found = std::find(place, cells.end(), cell);
      if (found == cells.end()) return;  // one that came with this chain, and so will be the next ones
      std::rotate(place, found, found + 1);
      ++place;
    }
  }
};

}  // namespace plugin
