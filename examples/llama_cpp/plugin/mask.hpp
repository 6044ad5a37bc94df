// What an attention mask says: which cells of the cache each token sees, and in which order they came.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <optional>
#include <recycled/types/config.hpp>
#include <span>
#include <vector>

namespace plugin {

using recycled::index_t;

static_assert(std::endian::native == std::endian::little, "masks are read four halfs at a time");

/// A set of cells, a bit each.
class CellSet {
 public:
  /// Reads a row of a mask: halfs, 0 where a cell is seen and -infinity where it is not. False if there is anything
  /// else: a bias, which only the host knows how to add.
  bool read(const std::uint16_t* row, index_t cells) {
    words_.resize(static_cast<std::size_t>((cells + 63) / 64));
    std::uint64_t others = 0;
    for (std::size_t w = 0; w < words_.size(); ++w) words_[w] = word_of(row, cells, w, others);
    return others == 0;
  }
  /// Whether reading that row would make this set.
  bool says(const std::uint16_t* row, index_t cells) const {
    std::uint64_t others = 0;
    if (words_.size() != static_cast<std::size_t>((cells + 63) / 64)) return false;
    for (std::size_t w = 0; w < words_.size(); ++w) others |= words_[w] ^ word_of(row, cells, w, others);
    return others == 0;
  }
  void insert(index_t cell) {
    const auto word = static_cast<std::size_t>(cell / 64);
    if (words_.size() <= word) words_.resize(word + 1, 0);
    words_[word] |= std::uint64_t{1} << (cell % 64);
  }
  bool contains(index_t cell) const { return (word(static_cast<std::size_t>(cell / 64)) >> (cell % 64) & 1) != 0; }
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
  std::size_t size() const {
    std::size_t count = 0;
    for (const std::uint64_t word : words_) count += static_cast<std::size_t>(std::popcount(word));
    return count;
  }

 private:
  /// Bits of the cells from 64 * w on. `others` gets bits for whatever is neither 0 nor -infinity.
  static std::uint64_t word_of(const std::uint16_t* row, index_t cells, std::size_t w, std::uint64_t& others) {
    const index_t begin = static_cast<index_t>(64 * w), count = std::min(cells - begin, index_t{64});
    std::uint64_t word = 0;
    index_t i = 0;
    for (; i + 4 <= count; i += 4) {
      std::uint64_t halfs;
      std::memcpy(&halfs, row + begin + i, sizeof halfs);
      word |= four(halfs, others) << i;
    }
    for (; i < count; ++i) word |= (four(row[begin + i], others) & 1) << i;
    return word;
  }
  /// Four halfs of a mask in one word: a bit for each that is 0. The product moves their bits side by side.
  static std::uint64_t four(std::uint64_t halfs, std::uint64_t& others) {
    constexpr std::uint64_t ones = 0x0001000100010001;
    const std::uint64_t hidden = (halfs >> 10) & ones;
    others |= halfs ^ hidden * 0xFC00;
    return ~((hidden * 0x0001000200040008) >> 48) & 0xF;
  }

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

  /// Its cells, those that the first token sees in the order that `known` has, if it has all of them: which came first
  /// a mask of one token does not say, and cells that had become free are filled again from the lowest on.
  std::vector<std::int32_t> cells_as_in(const std::vector<std::int32_t>& known) const {
    std::vector<std::int32_t> result;
    std::copy_if(known.begin(), known.end(), std::back_inserter(result),
                 [&](auto cell) { return seen.contains(cell); });
    if (static_cast<index_t>(result.size()) != static_cast<index_t>(cells.size()) - tokens + 1) return cells;
    result.insert(result.end(), cells.end() - tokens + 1, cells.end());
    return result;
  }
};

/// Cuts the tokens of a mask into chains, as long as possible.
class Chains {
 public:
  /// `rows`: what each token sees. Nothing if the host has to compute this: tokens that see each other both ways.
  static std::optional<std::vector<Chain>> of(std::span<const CellSet> rows) {
    std::vector<Chain> chains;
    for (index_t t = 0; t < static_cast<index_t>(rows.size()); t += chains.back().tokens) {
      chains.push_back(start(rows, t));
      Chain& chain = chains.back();
      if (!chain.cells.empty() && !extend(rows, chain)) return std::nullopt;
    }
    return chains;
  }

 private:
  static Chain start(std::span<const CellSet> rows, index_t token) {
    Chain chain{.first = token, .cells = {}, .seen = rows[static_cast<std::size_t>(token)]};
    chain.cells.reserve(chain.seen.size() + 1);
    chain.seen.for_each([&](index_t cell) { chain.cells.push_back(static_cast<std::int32_t>(cell)); });
    return chain;
  }

  /// Takes the tokens that follow into `chain`, as far as each sees one cell more than the one before it and no
  /// other: at most one that falls out of a window. False for two tokens that see the same.
  static bool extend(std::span<const CellSet> rows, Chain& chain) {
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
    // Two tokens that share all but one cell each: of two sequences, or in a window. Token by token it is the same.
    if (came.size() == 1 && !left.empty()) return true;
    // A window that was not full at first fills up before anything leaves it.
    const std::size_t before = came.size() - left.size();
    order(chain.cells, left);
    const std::size_t seen_first = chain.cells.size();
    chain.cells.insert(chain.cells.end(), came.begin(), came.end());
    if (!std::equal(left.begin(), left.end(), chain.cells.begin())) {
      // What leaves is not what came first: token by token, then, and in no order that would be known.
      chain.cells.resize(seen_first);
      std::sort(chain.cells.begin(), chain.cells.end());
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
