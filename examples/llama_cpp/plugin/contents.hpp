// Noticing that the host rewrote cells of its cache.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include "attention.hpp"

namespace plugin {

/// The first bytes of every key of a layer. Copying one sequence over another, loading a state or shifting positions
/// changes rows without a word to whoever holds copies of them, and may leave the mask as it was. All of these rewrite
/// whole rows, in all layers; a key begins with the dimensions that its position turns fastest.
class Contents {
 public:
  void clear() { seen_.clear(); }

  /// Keeps the first bytes of the cells that came since.
  void note(const Memory& memory, const Cells& cells) {
    for (auto p = static_cast<index_t>(seen_.size()); p < cells.count; ++p) seen_.push_back(first(memory, cells, p));
  }

  /// Whether the keys that were noted are what they were: all of them or, not `thorough`, a sample that has been
  /// everywhere after `rounds` calls.
  bool unchanged(const Memory& memory, const Cells& cells, bool thorough, Threads& threads) {
    const auto noted = static_cast<index_t>(seen_.size());
    if (!thorough) {
      round_ = (round_ + 1) % rounds;
      return differences(memory, cells, round_, noted, rounds) == 0;
    }
    std::atomic<std::uint64_t> all{0};
    threads((noted + piece - 1) / piece, [&](index_t i) {
      all.fetch_or(differences(memory, cells, i * piece, std::min((i + 1) * piece, noted), 1));
    });
    return all == 0;
  }

 private:
  static constexpr index_t rounds = 64;
  static constexpr index_t piece = 2048;

  std::uint64_t differences(const Memory& memory, const Cells& cells, index_t begin, index_t end,
                            index_t stride) const {
    std::uint64_t changed = 0;
    for (index_t p = begin; p < end; p += stride) {
      changed |= seen_[static_cast<std::size_t>(p)] ^ first(memory, cells, p);
    }
    return changed;
  }
  static std::uint64_t first(const Memory& memory, const Cells& cells, index_t position) {
    std::uint64_t bytes = 0;
    const std::byte* const key = memory.keys + static_cast<std::size_t>(cells.table[position]) * memory.key_cell;
    if (memory.key_bytes < sizeof bytes) {
      std::memcpy(&bytes, key, memory.key_bytes);
    } else {
      std::memcpy(&bytes, key, sizeof bytes);
    }
    return bytes;
  }

  std::vector<std::uint64_t> seen_;
  index_t round_ = 0;
};

}  // namespace plugin
