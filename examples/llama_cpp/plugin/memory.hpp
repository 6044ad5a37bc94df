// Where the host keeps the rows of a conversation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <recycled/types/config.hpp>

namespace plugin {

using recycled::index_t;

/// Where the rows of a layer lie: the row of a cell and a KV head, distances in bytes.
struct Memory {
  const std::byte* keys;
  const std::byte* values;
  std::size_t key_cell, key_head;
  std::size_t value_cell, value_head;
  std::size_t key_bytes;         ///< of one row
  std::size_t turned_bytes = 0;  ///< into a key, where the dimensions begin that positions turn, if not at its start
};

/// The cells of a sequence in the order of its positions.
struct Cells {
  const std::int32_t* table;
  index_t count;
  bool side_by_side;  ///< each follows the one before it
};

}  // namespace plugin
