// Conversations, recognised by what their tokens see: the host names none of them to a backend.
#pragma once

#include <algorithm>
#include <memory>
#include <unordered_map>
#include <vector>

#include "attention.hpp"
#include "contents.hpp"
#include "mask.hpp"

namespace plugin {

/// The last queries of a prompt: they choose what is recycled first, and say what a sketch is for.
class LastQueries {
 public:
  /// Those of the tokens up to position `length`, of which `most` matter; `epoch` is the sequence's.
  void add(std::span<const float> queries, index_t tokens, index_t most, index_t length, index_t epoch) {
    if (epoch_ != epoch || end_ != length - tokens) rows_.clear();
    epoch_ = -1;  // where memory runs out these are nobody's
    const std::size_t room = static_cast<std::size_t>(most) * (queries.size() / static_cast<std::size_t>(tokens));
    if (queries.size() > room) queries = queries.last(room);
    // Tokens may come one by one: the oldest leave many at a time.
    if (rows_.size() + queries.size() > 2 * room)
      rows_.erase(rows_.begin(), rows_.end() - static_cast<std::ptrdiff_t>(room - queries.size()));
    rows_.insert(rows_.end(), queries.begin(), queries.end());
    room_ = room;
    end_ = length;
    epoch_ = epoch;
  }
  /// [token, query head, dim] of the tokens before position `end`; none if they are not known.
  std::span<const float> before(index_t end, index_t epoch) const {
    if (epoch_ != epoch || end_ != end) return {};
    return {rows_.end() - static_cast<std::ptrdiff_t>(std::min(room_, rows_.size())), rows_.end()};
  }
  void clear() { *this = {}; }

 private:
  std::vector<float> rows_;
  std::size_t room_ = 0;  // floats of `most` tokens
  index_t end_ = 0;       // positions of the sequence behind the last of them
  index_t epoch_ = -1;
};

/// What one layer remembers of one sequence.
struct RememberedLayer {
  std::unique_ptr<Attention> attention;
  LastQueries prompt;
  Contents contents;
  index_t epoch = 0;
  index_t room = 0;   ///< length that the recycle cache was made for
  index_t index = 0;  ///< which one it is
};

/// One sequence in one cache: its cells in the order of its positions, and what each layer remembers.
struct Sequence {
  CellSet seen;
  std::vector<std::int32_t> cells;
  bool side_by_side = true;
  index_t epoch = 0;          ///< grows when what layers remember has become wrong
  std::uint64_t version = 0;  ///< grows with every change of the cells
  std::uint64_t last_plan = 0;
  std::unordered_map<const void*, RememberedLayer> layers;  ///< by their caches

  void append(std::int32_t cell) {
    seen.insert(cell);  // first: where the other one fails for want of memory, nothing continues this any more
    side_by_side = side_by_side && (cells.empty() || cell == cells.back() + 1);
    cells.push_back(cell);
    ++version;
  }
  void assign(const std::vector<std::int32_t>& all) {
    ++epoch;
    seen = {};
    cells.clear();
    side_by_side = true;
    for (const std::int32_t cell : all) append(cell);
  }
};

/// The sequences of one cache.
class Sequences {
 public:
  struct Followed {
    std::shared_ptr<Sequence> sequence;  ///< null: there is no room to remember another
    bool continues;                      ///< its first token saw what the sequence saw before, and one cell more
  };

  /// The sequence that `chain` belongs to, with the chain's cells appended. One that does not continue any is a new
  /// one, or an old one starts again: nothing that layers remember of it counts then. `plan` numbers the masks.
  Followed follow(const Chain& chain, index_t most, std::uint64_t plan) {
    plan_ = plan;
    for (const auto& sequence : all_) {
      const Difference step(sequence->seen, chain.seen);
      if (step.added != 1 || step.removed != 0) continue;
      sequence->append(static_cast<std::int32_t>(step.added_cell));
      for (auto cell = chain.cells.end() - chain.tokens + 1; cell != chain.cells.end(); ++cell) sequence->append(*cell);
      return {used(sequence), true};
    }
    const std::shared_ptr<Sequence> sequence = vacant(chain.seen, static_cast<std::size_t>(most));
    if (sequence == nullptr) return {nullptr, false};
    sequence->assign(chain.cells_as_in(sequence->cells));
    return {used(sequence), false};
  }

 private:
  const std::shared_ptr<Sequence>& used(const std::shared_ptr<Sequence>& sequence) {
    sequence->last_plan = plan_;
    return sequence;
  }
  /// A sequence that may start again: one that sees no less than `seen` has been rolled back; or else a new one, or the
  /// one that was used least recently. Null if all are in use, also where each has its masks to itself and they take
  /// turns: more sequences than there is room for would drive one another out at every token.
  std::shared_ptr<Sequence> vacant(const CellSet& seen, std::size_t most) {
    for (const auto& sequence : all_) {
      if (sequence->last_plan != plan_ && Difference(sequence->seen, seen).added == 0) return sequence;
    }
    if (all_.size() < most) return all_.emplace_back(std::make_shared<Sequence>());
    const auto oldest = std::min_element(all_.begin(), all_.end(),
                                         [](const auto& a, const auto& b) { return a->last_plan < b->last_plan; });
    return (*oldest)->last_plan + 2 * most < plan_ ? *oldest : nullptr;
  }

  std::vector<std::shared_ptr<Sequence>> all_;
  std::uint64_t plan_ = 0;
};

}  // namespace plugin
