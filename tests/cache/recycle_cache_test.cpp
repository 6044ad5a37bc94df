// The recycle cache against a std::map, under random operations: positions, ranks, and the rows of every slot.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <recycled/cache/recycle_cache.hpp>

#include "reference/random.hpp"

namespace {

using namespace recycled;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
constexpr index_t most = 400;
constexpr Shape shape{2, 2, 32, 64};

/// Ranks as a cache asks for them.
auto by(std::vector<float> ranks) {
  return [ranks = std::move(ranks)](index_t p) { return ranks[at(p)]; };
}

/// What one KV head should hold: rank by position.
struct Model {
  std::map<index_t, float> entries;
  index_t last_evictor = -1;

  std::vector<index_t> held() const {
    std::vector<index_t> result;
    for (const auto& [position, rank] : entries) result.push_back(position);
    return result;
  }
  void settle(index_t capacity, index_t newest) {
    if (static_cast<index_t>(entries.size()) <= capacity) return;
    const auto by_rank = [](const auto& a, const auto& b) { return a.second < b.second; };
    entries.erase(std::min_element(entries.begin(), entries.end(), by_rank));  // the first of equals
    last_evictor = newest;
  }
};

template <class T>
class RecycleCacheOf : public testing::Test {
 protected:
  RecycleCacheOf() : random(11), host(reference::Cache<T>::random(shape, most, random)), marks(most / 64 + 1, 0) {}

  /// Slots are what attention reads: each holds the host's row of its position.
  void expect_slots(RecycleCache<T>& cache, index_t head, const Model& model) {
    const std::span<const index_t> positions = cache.positions(head);
    ASSERT_EQ(positions.size(), model.entries.size());
    for (std::size_t s = 0; s < positions.size(); ++s) {
      const index_t p = positions[s];
      ASSERT_TRUE(model.entries.count(p)) << "position " << p;
      EXPECT_EQ(cache.ranks(head)[s], model.entries.at(p));
      const auto bytes = [](const T* row, index_t values) {
        const auto* first = reinterpret_cast<const unsigned char*>(row);
        return std::vector<unsigned char>(first, first + at(values / values_per_element<T>) * sizeof(T));
      };
      const auto slot = static_cast<index_t>(s);
      EXPECT_EQ(bytes(cache.keys(head)[slot], 32), bytes(host.view().key(p, head), 32));
      EXPECT_EQ(bytes(cache.values(head)[slot], 64), bytes(host.view().value(p, head), 64));
    }
  }

  /// A set of positions to choose.
  kernels::PositionBits bits(const std::vector<index_t>& chosen) {
    const kernels::PositionBits all{marks.data(), most};
    for (const index_t p : chosen) all.insert(p);
    return all;
  }

  void insert_and_settle(RecycleCache<T>& cache, index_t head, Model& model, index_t position) {
    cache.insert(head, position, host.view(position + 1));
    model.entries[position] = newcomer_rank;
    expect_slots(cache, head, model);
    cache.settle(head, position);
    model.settle(cache.capacity(), position);
  }

  void rebuild(RecycleCache<T>& cache, index_t head, Model& model, index_t length) {
    // Few different ranks: many ties.
    std::vector<float> ranks(at(length));
    for (float& rank : ranks) rank = static_cast<float>(random.between(-3, 3));
    std::vector<index_t> chosen;
    const index_t count = random.between(0, std::min(cache.capacity(), length));
    while (static_cast<index_t>(chosen.size()) < count) {
      const index_t p = random.between(0, length - 1);
      if (std::find(chosen.begin(), chosen.end(), p) == chosen.end()) chosen.push_back(p);
    }
    std::sort(chosen.begin(), chosen.end());
    cache.rebuild(head, bits(chosen), count, by(ranks), host.view(length), length - 1);
    EXPECT_TRUE(std::all_of(marks.begin(), marks.end(), [](std::uint64_t mark) { return mark == 0; }));
    model.entries.clear();
    for (const index_t p : chosen) model.entries[p] = ranks[at(p)];
    model.last_evictor = length - 1;
    expect_slots(cache, head, model);
  }

  reference::Random random;
  reference::Cache<T> host;
  std::vector<std::uint64_t> marks;
};
using Types = testing::Types<float, half, bfloat16, q8_0>;
TYPED_TEST_SUITE(RecycleCacheOf, Types);

TYPED_TEST(RecycleCacheOf, IsTheModelUnderRandomOperations) {
  for (const index_t capacity : {1, 2, 7, 30}) {
    RecycleCache<TypeParam> cache(shape, capacity);
    Model models[2];
    index_t lengths[2] = {0, 0};
    for (int operation = 0; operation < 600; ++operation) {
      const index_t g = this->random.between(0, 1);
      Model& model = models[g];
      index_t& length = lengths[g];
      switch (this->random.between(0, 9)) {
        case 0:
          if (length > 0) this->rebuild(cache, g, model, length);
          break;
        case 1: {
          length -= this->random.between(0, std::min(length, index_t{5}));
          cache.truncate(g, length);
          std::erase_if(model.entries, [length](const auto& entry) { return entry.first >= length; });
          break;
        }
        case 2: {
          const index_t gone = this->random.between(0, std::max(length - 1, index_t{0}));
          if (model.entries.erase(gone) > 0) model.last_evictor = length;
          cache.remove(g, gone, length);
          break;
        }
        default:
          if (length < most) this->insert_and_settle(cache, g, model, length++);
      }
      ASSERT_EQ(cache.held(0), models[0].held()) << "operation " << operation << ", capacity " << capacity;
      ASSERT_EQ(cache.held(1), models[1].held()) << "operation " << operation << ", capacity " << capacity;
      ASSERT_EQ(cache.size(g), static_cast<index_t>(model.entries.size()));
      ASSERT_EQ(cache.last_evictor(g), model.last_evictor);
    }
    cache.clear();
    EXPECT_TRUE(cache.held(0).empty());
    EXPECT_EQ(cache.last_evictor(1), -1);
  }
}

TYPED_TEST(RecycleCacheOf, AnEntryKeepsItsSlotUntilItLeaves) {
  RecycleCache<TypeParam> cache(shape, 10);
  Model model;
  for (index_t p = 0; p < 60; ++p) {
    if (p == 20) this->rebuild(cache, 0, model, p);
    const std::vector<index_t> before(cache.positions(0).begin(), cache.positions(0).end());
    const std::vector<index_t> held = cache.held(0);
    this->insert_and_settle(cache, 0, model, p);
    const std::span<const index_t> after = cache.positions(0);
    if (before.size() < 10 || p == 20) continue;
    for (std::size_t s = 0; s < before.size(); ++s) {
      if (std::binary_search(held.begin(), held.end(), before[s])) {
        EXPECT_EQ(after[s], before[s]);
      }
    }
  }
}

TYPED_TEST(RecycleCacheOf, AnyPositionMayStayWhereASetBecomesSmaller) {
  for (index_t stays = 0; stays < 4; ++stays) {
    RecycleCache<TypeParam> cache(shape, 4);
    std::vector<index_t> others{0, 1, 2, 3};
    others.erase(others.begin() + stays);
    const std::vector<float> ranks(4, 1.0F);
    cache.rebuild(0, this->bits(others), 3, by(ranks), this->host.view(4), 3);
    cache.rebuild(0, this->bits({0, 1, 2, 3}), 4, by(ranks), this->host.view(4), 3);
    cache.rebuild(0, this->bits({stays}), 1, by(ranks), this->host.view(4), 3);
    this->expect_slots(cache, 0, Model{{{stays, 1.0F}}});
  }
}

TYPED_TEST(RecycleCacheOf, ARankThatIsNoNumberLeavesFirst) {
  RecycleCache<TypeParam> cache(shape, 3);
  const std::vector<float> ranks{1, 2, std::numeric_limits<float>::quiet_NaN(), 4};
  cache.rebuild(0, this->bits({1, 2, 3}), 3, by(ranks), this->host.view(4), 3);
  cache.insert(0, 4, this->host.view(5));
  cache.settle(0, 4);
  EXPECT_EQ(cache.held(0), (std::vector<index_t>{1, 3, 4}));
}

TYPED_TEST(RecycleCacheOf, ARowThatStaysMayGetARankThatIsNoNumber) {
  RecycleCache<TypeParam> cache(shape, 3);
  const std::vector<index_t> chosen{1, 2, 3};
  std::vector<float> ranks{0, 3, 2, 1, 0};
  cache.rebuild(0, this->bits(chosen), 3, by(ranks), this->host.view(5), 4);
  ranks[2] = std::nanf("");
  cache.rebuild(0, this->bits(chosen), 3, by(ranks), this->host.view(5), 4);
  cache.insert(0, 5, this->host.view(6));
  cache.settle(0, 5);
  EXPECT_EQ(cache.held(0), (std::vector<index_t>{1, 3, 5}));
}

TYPED_TEST(RecycleCacheOf, AnInfiniteRankOutranksNewcomers) {
  RecycleCache<TypeParam> cache(shape, 2);
  constexpr float pinned = std::numeric_limits<float>::infinity();
  cache.rebuild(0, this->bits({0, 1}), 2, by({pinned, 5}), this->host.view(2), 1);
  for (index_t p = 2; p < 9; ++p) {
    cache.insert(0, p, this->host.view(p + 1));
    cache.settle(0, p);
    EXPECT_EQ(cache.held(0), (std::vector<index_t>{0, p}));
  }
}

}  // namespace
