// The same bits for any number of threads, wherever arguments lie in memory, and every time.
#include "stress/life.hpp"

namespace {

using namespace recycled;
using reference::Random;
using stress::Life, stress::Outcome;

/// How often each kind of step was compared, and prompts.
struct Compared {
  long full = 0, recycled = 0, sketched = 0, prompts = 0;

  Compared& operator+=(const Compared& other) {
    full += other.full;
    recycled += other.recycled;
    sketched += other.sketched;
    prompts += other.prompts;
    return *this;
  }
  void count(const Outcome& outcome, bool prompt) {
    for (const StepKind kind : outcome.kinds)
      ++(kind == StepKind::full ? full : kind == StepKind::recycled ? recycled : sketched);
    prompts += prompt ? 1 : 0;
  }
};

void report(const char* what, const Compared& compared) {
  for (const long steps : {compared.full, compared.recycled, compared.sketched, compared.prompts}) EXPECT_GT(steps, 50);
  stress::report(std::string("determinism, ") + what,
                 std::to_string(compared.full) + " full, " + std::to_string(compared.recycled) + " recycled, " +
                     std::to_string(compared.sketched) + " sketched steps of KV heads, " +
                     std::to_string(compared.prompts) + " prompts, bit-identical");
}

/// Every other life begins with a prompt that the layer reads.
template <Scalar T, Scalar R>
Life<T, R> some_life(Random& random, index_t positions) {
  Life<T, R> life(random, positions);
  life.start = random.between(0, 1) == 0 ? Life<T, R>::Start::prefill : Life<T, R>::Start::observe;
  return life;
}

template <Scalar T, Scalar R = T>
Compared run_threads() {
  Compared compared;
  ThreadPool one(1), two(2), three(3), eight(8);
  stress::cases(stress::effort(10), [&](Random& random) {
    // Long enough that a single KV head is cut in several pieces.
    const auto life = some_life<T, R>(random, 600);
    const auto rows = life.cache(random, Life<T, R>::any_layout(random));
    const Outcome expected = life.live(rows, one);
    for (ThreadPool* pool : {&one, &two, &three, &eight}) {
      EXPECT_TRUE(life.live(rows, *pool) == expected) << pool->threads() << " threads";
      compared.count(expected, life.start == Life<T, R>::Start::prefill);
    }
  });
  return compared;
}

TEST(Determinism, OneTwoThreeOrEightThreadsGiveTheSameBits) {
  Compared all = run_threads<float>();
  all += run_threads<half>();
  all += run_threads<bfloat16>();
  all += run_threads<q8_0>();
  all += run_threads<float, half>();
  report("threads 1, 2, 3, 8", all);
}

template <Scalar T, Scalar R = T>
Compared run_offsets() {
  Compared compared;
  ThreadPool one(1);
  stress::cases(stress::effort(10), [&](Random& random) {
    const auto life = some_life<T, R>(random, 120);
    reference::Layout layout{.position_major = random.between(0, 1) == 0};
    const auto rows = life.cache(random, layout);
    const Outcome expected = life.live(rows, one);
    for (index_t offset = 0; offset < 16; ++offset) {
      // Keys, values, queries and outputs lie differently.
      layout.offset = offset;
      layout.value_offset = 5 * offset % 16;
      EXPECT_TRUE(life.live(rows.arranged(layout), one, 3 * offset % 16) == expected) << offset << " elements";
      compared.count(expected, life.start == Life<T, R>::Start::prefill);
    }
  });
  return compared;
}

TEST(Determinism, NoPointerNeedsToBeAligned) {
  Compared all = run_offsets<float>();
  all += run_offsets<half>();
  all += run_offsets<bfloat16>();
  all += run_offsets<q8_0>();
  all += run_offsets<float, half>();
  report("16 offsets of every pointer", all);
}

template <Scalar T, Scalar R = T>
Compared run_again() {
  Compared compared;
  ThreadPool three(3);
  stress::cases(stress::effort(4), [&](Random& random) {
    const auto life = some_life<T, R>(random, 70);
    const auto rows = life.cache(random, Life<T, R>::any_layout(random));
    const Outcome expected = life.live(rows, three);
    for (int repeat = 0; repeat < 100; ++repeat) {
      ASSERT_TRUE(life.live(rows, three) == expected) << "repeat " << repeat;
      compared.count(expected, life.start == Life<T, R>::Start::prefill);
    }
  });
  return compared;
}

TEST(Determinism, AHundredRepeatsGiveTheSameBits) {
  Compared all = run_again<float>();
  all += run_again<half>();
  all += run_again<bfloat16>();
  all += run_again<q8_0>();
  all += run_again<float, half>();
  report("100 repeats, 3 threads", all);
}

}  // namespace
