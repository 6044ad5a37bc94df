// What may be called from which thread, as the classes' comments say: results are those of one thread, and under
// ThreadSanitizer (tests/run --tsan) nothing races.
#include <gtest/gtest.h>

#include <functional>
#include <mutex>
#include <sstream>
#include <thread>

#include "reference/feed.hpp"
#include "reference/own_threads.hpp"
#include "reference/saved.hpp"

namespace {

using namespace recycled;
using reference::Bits;
using reference::saved;
using reference::Tokens;

constexpr Shape shape{4, 2, 32};
constexpr int threads = 4;

/// f(0), ..., f(threads - 1), each on a thread of its own, all at the same time.
void at_once(const std::function<void(int)>& f) {
  reference::OwnThreads{}(threads, [&](index_t thread) { f(static_cast<int>(thread)); });
}

/// f(0), ..., f(count - 1) one after the other, each on a new thread.
void in_turn(int count, const std::function<void(int)>& f) {
  for (int i = 0; i < count; ++i) std::thread(f, i).join();
}

TEST(ConstMembers, OfOneDecoderFromSeveralThreads) {
  using Learning = Decoder<bfloat16, SelfCalibrating, HeavyHitters>;
  const LayerOptions options{.capacity = 20, .sketch = {.coordinates = 8}};
  Learning decoder({2, shape}, options, {}, {.recent = 10});
  Tokens tokens(shape, 1);
  const auto more = tokens.next(8);
  reference::prefill(decoder, tokens.next(60));
  reference::decode(decoder, tokens.next(20));

  Learning sole = decoder.fork();
  const Bits expected = reference::decode(sole, more);
  const std::string state = saved(decoder);
  const Learning& one = decoder;
  at_once([&](int thread) {
    for (int round = 0; round < 4; ++round) {
      if ((thread + round) % 2 == 0) {
        Learning fork = one.fork();
        EXPECT_TRUE(reference::decode(fork, more) == expected);
      } else {
        EXPECT_TRUE(saved(one) == state);
        Learning loaded({2, shape}, options, {}, {.recent = 10});
        std::stringstream stream(state);
        loaded.load(stream);
        EXPECT_TRUE(loaded.statistics() == one.statistics());
      }
      EXPECT_EQ(one.length(), 80);
      EXPECT_EQ(one.layer(1).recycled_positions(0).size(), 20U);
      EXPECT_EQ(one.layer(1).last_step(1), sole.layer(1).last_step(1));
      EXPECT_EQ(static_cast<float>(*one.view(1).key(0, 0)), static_cast<float>(*sole.view(1).key(0, 0)));
    }
  });
}

TEST(OneCache, IsReadByLayersOnSeveralThreads) {
  reference::Random random(2);
  const auto cache = reference::Cache<half>::random(shape, 90, random);
  const std::vector<float> queries = random.row(90 * shape.query_size());
  const auto run = [&] {  // beams that have not parted yet
    LayerAttention<half, FixedStride> layer(shape, {.capacity = 12}, {4});
    std::vector<float> out(128);
    Bits all;
    for (index_t length = 61; length <= 90; ++length) {
      layer.step({queries.data() + (length - 1) * shape.query_size(), 128}, cache.view(length), out);
      const Bits one = reference::bits(out);
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  };
  const Bits expected = run();
  at_once([&](int) { EXPECT_TRUE(run() == expected); });
}

TEST(OneBudget, CountsEveryStepOfLayersOnSeveralThreads) {
  const auto budget = std::make_shared<Budget>(0.5F);
  const Decoder<float, Budgeted> first({2, shape}, {.capacity = 10}, {budget});
  std::vector<Decoder<float, Budgeted>> sequences(threads, first);
  at_once([&](int thread) {
    Tokens tokens(shape, static_cast<std::uint64_t>(thread));
    reference::prefill(sequences[static_cast<std::size_t>(thread)], tokens.next(30));
    reference::decode(sequences[static_cast<std::size_t>(thread)], tokens.next(60));
    std::stringstream stream(saved(*budget));  // while others go on
    Budget(0.5F).load(stream);
    EXPECT_GT(budget->allowed_loss(), 0);
  });
  HeadStatistics total;
  for (const auto& sequence : sequences) {
    for (const LayerStatistics& layer : sequence.statistics()) total += layer.total();
  }
  EXPECT_EQ(budget->spent(), static_cast<double>(total.bytes_read) / static_cast<double>(total.bytes_full));
}

/// Several sequences, a token of each in turn, by one pool and in one scratch.
template <class Turns>
std::vector<Bits> by_one_pool(const Turns& turns) {
  ThreadPool pool(3);
  const auto scratch = std::make_shared<Scratch>();
  std::vector<Decoder<half, QuerySimilarity>> sequences(3, {{2, shape}, {.capacity = 300}, {2, 0.8F}});
  std::vector<Tokens> tokens;
  std::vector<Bits> results;
  for (std::uint64_t i = 0; i < sequences.size(); ++i) {
    sequences[i].share(scratch);
    tokens.emplace_back(shape, i);
    results.push_back(reference::prefill(sequences[i], tokens[i].next(400), pool));
  }
  turns([&](int turn) {
    const auto i = static_cast<std::size_t>(turn) % sequences.size();
    const Bits one = reference::decode(sequences[i], tokens[i].next(1), pool);
    results[i].insert(results[i].end(), one.begin(), one.end());
  });
  return results;
}

TEST(OnePool, ServesSeveralDecodersFromAnyThreadOneAtATime) {
  const auto expected = by_one_pool([](const auto& turn) {
    for (int i = 0; i < 36; ++i) turn(i);
  });
  EXPECT_TRUE(by_one_pool([](const auto& turn) { in_turn(36, turn); }) == expected);
  EXPECT_TRUE(by_one_pool([](const auto& turn) {
                std::mutex mutex;  // threads that stay, and take the next turn when they get it
                int next = 0;
                at_once([&](int) {
                  for (int i = 0; i < 36 / threads; ++i) {
                    const std::lock_guard lock(mutex);
                    turn(next++);
                  }
                });
              }) == expected);
}

TEST(Serial, IsForAnyNumberOfThreads) {
  const Serial serial;
  at_once([&](int) {
    index_t sum = 0;
    serial(100, [&](index_t i) { sum += i; });
    EXPECT_EQ(sum, 4950);
  });
}

}  // namespace
