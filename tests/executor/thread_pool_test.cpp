#include <gtest/gtest.h>

#include <atomic>
#include <ctime>
#include <recycled/executor/thread_pool.hpp>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace {

using namespace recycled;

static_assert(Executor<Serial> && Executor<ThreadPool>);

/// How often each index was called.
template <class E>
std::vector<int> calls(E& executor, index_t n) {
  std::vector<std::atomic<int>> counts(static_cast<std::size_t>(n));
  executor(n, [&](index_t i) { ++counts.at(static_cast<std::size_t>(i)); });
  return {counts.begin(), counts.end()};
}

TEST(Serial, CallsEachIndexOnceInOrder) {
  std::vector<index_t> seen;
  Serial{}(4, [&](index_t i) { seen.push_back(i); });
  EXPECT_EQ(seen, (std::vector<index_t>{0, 1, 2, 3}));
  Serial{}(0, [&](index_t) { ADD_FAILURE(); });
}

TEST(ThreadPool, CallsEachIndexExactlyOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const index_t n : {0, 1, 2, 3, 7, 8, 9, 100, 10000}) {
      EXPECT_EQ(calls(pool, n), std::vector<int>(static_cast<std::size_t>(n), 1)) << threads << " threads";
    }
  }
}

TEST(ThreadPool, RunsManyRegionsInARow) {
  ThreadPool pool(4);
  std::atomic<index_t> sum{0};
  for (index_t region = 0; region < 4000; ++region) {
    const index_t n = region % 9;
    index_t plain[9] = {};  // results are there when the call returns
    pool(n, [&](index_t i) {
      plain[i] = i + 1;
      sum.fetch_add(1, std::memory_order_relaxed);
    });
    for (index_t i = 0; i < n; ++i) ASSERT_EQ(plain[i], i + 1) << "region " << region;
  }
  index_t expected = 0;
  for (index_t region = 0; region < 4000; ++region) expected += region % 9;
  EXPECT_EQ(sum, expected);
}

TEST(ThreadPool, UsesSeveralThreads) {
  ThreadPool pool(3);
  std::atomic<int> arrived{0};
  std::vector<std::thread::id> ids(3);
  pool(3, [&](index_t i) {
    ids[static_cast<std::size_t>(i)] = std::this_thread::get_id();
    ++arrived;
    while (arrived < 3) std::this_thread::yield();  // returns only if all three run at the same time
  });
  EXPECT_EQ(std::set<std::thread::id>(ids.begin(), ids.end()).size(), 3U);
}

TEST(ThreadPool, OfOneStaysOnTheCallingThread) {
  ThreadPool pool(1);
  pool(5, [](index_t) {});
  const std::thread::id self = std::this_thread::get_id();
  pool(5, [self](index_t) { EXPECT_EQ(std::this_thread::get_id(), self); });
}

/// CPU time of all threads of this process, in milliseconds.
double cpu_time() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return 1e3 * static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_nsec);
}

TEST(ThreadPool, TakesNoTimeWhenIdle) {
  ThreadPool pool(8);
  calls(pool, 100);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the spin after a region is short
  const double before = cpu_time();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(cpu_time() - before, 20);  // one spinning thread would take 200
}

TEST(ThreadPool, WaitsForASlowPieceWithoutSpinningForever) {
  ThreadPool pool(4);
  const double before = cpu_time();
  pool(4, [](index_t i) { std::this_thread::sleep_for(std::chrono::milliseconds(i == 3 ? 200 : 1)); });
  EXPECT_LT(cpu_time() - before, 50);
}

TEST(ThreadPool, ComesAndGoesManyTimes) {
  for (int i = 0; i < 300; ++i) {
    ThreadPool pool(1 + i % 5);
    if (i % 3 > 0) {
      EXPECT_EQ(calls(pool, 10), std::vector<int>(10, 1));
    }
  }
}

TEST(ThreadPool, WorksBesideAnother) {
  std::vector<std::thread> users;
  for (int u = 0; u < 3; ++u) {
    users.emplace_back([] {
      ThreadPool pool(3);
      for (int i = 0; i < 500; ++i) EXPECT_EQ(calls(pool, 20), std::vector<int>(20, 1));
    });
  }
  for (std::thread& user : users) user.join();
}

TEST(ThreadPool, RefusesCountsThatCanNotBe) {
  EXPECT_THROW(ThreadPool(0), std::invalid_argument);
  EXPECT_THROW(ThreadPool(-3), std::invalid_argument);
  EXPECT_THROW(ThreadPool(1025), std::invalid_argument);
}

}  // namespace
