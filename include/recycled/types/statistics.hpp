// What a layer did, in plain numbers.
#pragma once

#include <cstdint>
#include <vector>

#include "recycled/types/config.hpp"

namespace recycled::inline RECYCLED_ABI {

/// One KV head of one layer since it was made or cleared: its decode steps. Prefill is not counted, nor is the choice
/// of the first set, which reads the prompt once for each query of the observation window.
struct HeadStatistics {
  std::uint64_t full_steps = 0;
  std::uint64_t recycled_steps = 0;
  std::uint64_t sketched_steps = 0;
  /// KV rows attended to: all visible ones at a full step, those held and the new one otherwise.
  std::uint64_t rows_read = 0;
  /// Bytes of those rows, keys and values, and of the sketch where it was read (with SketchOptions.keys, of all keys);
  /// not of the keys that it is made from.
  std::uint64_t bytes_read = 0;
  /// Bytes of all visible rows: what full attention would have read.
  std::uint64_t bytes_full = 0;
  std::uint64_t measured = 0;  ///< refreshes that found an old set, which left something out
  double retained_mass = 0;    ///< sum over `measured` steps of the staleness measure, see Refresh::retained_mass
  std::uint64_t checked = 0;   ///< full steps that asked the sketch, too: what would it have chosen?
  double sketched_mass = 0;  ///< sum over `checked` steps of the attention mass of that, relative to the true choice's

  /// Adds up two heads, layers or sequences.
  HeadStatistics& operator+=(const HeadStatistics& other) {
    full_steps += other.full_steps;
    recycled_steps += other.recycled_steps;
    sketched_steps += other.sketched_steps;
    rows_read += other.rows_read;
    bytes_read += other.bytes_read;
    bytes_full += other.bytes_full;
    measured += other.measured;
    retained_mass += other.retained_mass;
    checked += other.checked;
    sketched_mass += other.sketched_mass;
    return *this;
  }
  friend bool operator==(const HeadStatistics&, const HeadStatistics&) = default;

  template <class Io>
  void transfer(Io& io) {
    io.plain(full_steps, recycled_steps, sketched_steps, rows_read, bytes_read, bytes_full, measured, retained_mass,
             checked, sketched_mass);
  }
};

/// One layer: an entry for each KV head.
struct LayerStatistics {
  std::vector<HeadStatistics> heads;

  HeadStatistics total() const {
    HeadStatistics sum;
    for (const HeadStatistics& head : heads) sum += head;
    return sum;
  }
  friend bool operator==(const LayerStatistics&, const LayerStatistics&) = default;
};

}  // namespace recycled::inline RECYCLED_ABI
