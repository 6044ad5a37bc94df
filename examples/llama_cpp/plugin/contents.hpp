// Noticing that the host rewrote cells of its cache.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include "memory.hpp"
#include "threads.hpp"

namespace plugin {

/// A few bytes of every key of a layer. Copying one sequence over another, loading a state or shifting positions
/// changes rows without a word to whoever holds copies of them, and may leave the mask as it was. All of these rewrite
/// whole rows, in all layers. A key begins with the dimensions that its position turns fastest, or those follow after
/// as many as a value has (latent attention).
class Contents {
 public:
  void clear() { seen_.clear(); }

  /// Keeps those bytes of the cells that came since.
  void note(const Memory& memory, const Cells& cells) {
    for (auto p = static_cast<index_t>(seen_.size()); p < cells.count; ++p) seen_.push_back(some_of(memory, cells, p));
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
      changed |= seen_[static_cast<std::size_t>(p)] ^ some_of(memory, cells, p);
    }
    return changed;
  }
  static std::uint64_t some_of(const Memory& memory, const Cells& cells, index_t position) {
    const std::byte* const key = memory.keys + static_cast<std::size_t>(cells.table[position]) * memory.key_cell;
    const auto eight = [&](std::size_t from) {
      std::uint64_t bytes = 0;
      if (memory.key_bytes - from < sizeof bytes) {
        std::memcpy(&bytes, key + from, memory.key_bytes - from);
      } else {
        std::memcpy(&bytes, key + from, sizeof bytes);
      }
      return bytes;
    };
    if (memory.turned_bytes == 0) return eight(0);
    return eight(0) ^ eight(memory.turned_bytes) * 0x9E3779B97F4A7C15;  // odd, so that no change of either is lost
  }

  std::vector<std::uint64_t> seen_;
  index_t round_ = 0;
};

}  // namespace plugin
