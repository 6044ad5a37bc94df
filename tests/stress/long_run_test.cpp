// Ten million tokens later: counters, budgets and statistics beyond 2^32 do what they did at the start.
#include <cstring>
#include <sstream>

#include "reference/feed.hpp"
#include "reference/messages.hpp"
#include "reference/saved.hpp"
#include "stress/effort.hpp"

namespace {

using namespace recycled;
using reference::at;
using reference::saved;

constexpr index_t tokens = 10'000'000;
constexpr index_t far_steps[] = {tokens, index_t{1} << 31, index_t{1} << 32, index_t{1} << 40};

/// Layers that read more while they may lose less; 128 of 4 KiB a position: more than 2^64 bytes in the end.
TEST(LongRun, ABudgetKeepsItsShare) {
  Budget budget(0.2F);
  const auto one_token = [&](index_t length, long double& read, long double& full) {
    const auto bytes = static_cast<std::uint64_t>(length) * 4096 * 128;
    const std::uint64_t some = budget.allowed_loss() < 0.5F ? bytes / 10 * 3 : bytes / 10;
    budget.account({.bytes_read = some, .bytes_full = bytes});
    read += some;
    full += bytes;
  };
  long double all_read = 0, all_full = 0, worst = 0;
  for (index_t length = 1; length <= tokens;) {
    long double read = 0, full = 0;
    for (const index_t end = length + tokens / 100; length < end; ++length) one_token(length, read, full);
    all_read += read;
    all_full += full;
    worst = std::max(worst, std::abs(read / full - 0.2L));
    ASSERT_LT(worst, 0.002L) << "of 100000 tokens up to " << length;
    ASSERT_NEAR(budget.spent(), 0.2, 0.002);
  }
  EXPECT_GT(all_full, 0x1p64L);
  EXPECT_NEAR(static_cast<double>(all_read / all_full), 0.2, 1e-5);
  std::ostringstream figure;
  figure << tokens << " tokens, " << static_cast<double>(all_full) << " bytes: the share is off by "
         << static_cast<double>(std::abs(all_read / all_full - 0.2L)) << ", of any 100000 tokens by "
         << static_cast<double>(worst);
  stress::report("long run, budget", figure.str());
}

TEST(LongRun, ABudgetIsSavedWhateverItHasSpent) {
  Budget budget(0.5F), other(0.5F);
  for (int i = 0; i < 100; ++i)
    budget.account({.bytes_read = std::uint64_t{1} << 58, .bytes_full = std::uint64_t{1} << 59});
  EXPECT_DOUBLE_EQ(budget.spent(), 0.5);
  std::istringstream state(saved(budget));
  other.load(state);
  EXPECT_EQ(other.spent(), budget.spent());
  std::string harmful = saved(budget);
  const std::uint64_t most = ~std::uint64_t{0};
  std::memcpy(harmful.data() + 36, &most, sizeof most);
  std::istringstream hostile(harmful);
  EXPECT_EQ(message_of([&] { other.load(hostile); }),
            says("saved state: bytes of a budget", "18446744073709551615", "less than 2^62"));
}

TEST(LongRun, SchedulesCountOn) {
  long asked = 0;
  const std::vector<float> straight{1, 0}, turned{0, 1};
  const auto ask = [&](auto schedule, index_t step, index_t age, const std::vector<float>& query, index_t layer) {
    ++asked;
    StepInfo info{.step = step, .layer = layer, .age = age, .head_dim = 2, .queries = query, .full_queries = straight};
    return schedule.decide(info);
  };
  for (const index_t far : far_steps) {
    for (const index_t stride : {1, 7, 10, 1000}) {
      const index_t base = far / stride * stride;
      for (index_t step = 1; step <= 25; ++step) {
        for (const index_t layer : {0, 3, 1 << 20}) {
          EXPECT_EQ(ask(FixedStride{stride}, base + step, 1, straight, layer),
                    ask(FixedStride{stride}, step, 1, straight, layer));
          EXPECT_EQ(ask(QuerySimilarity{stride}, base + step, 1, turned, layer),
                    ask(QuerySimilarity{stride}, step, 1, turned, layer));
        }
      }
    }
    const auto budget = std::make_shared<Budget>(0.5F);
    for (const index_t age : {far - 1, far, far + 1}) {
      // Overdue at its age, to the step.
      const StepKind expected = age >= far ? StepKind::full : StepKind::recycled;
      EXPECT_EQ(ask(SelfCalibrating{.longest = far}, age, age, straight, 0), expected);
      EXPECT_EQ(ask(Budgeted{budget, far}, age, age, straight, 0), expected);
      EXPECT_EQ(ask(SelfCalibrating{}, age, age, straight, 0), StepKind::full);
    }
  }
  stress::report("long run, schedules", std::to_string(asked) + " answers at steps up to 2^40 as at the first ones");
}

/// Notes what it is asked.
struct Asked {
  std::vector<StepInfo>* all;
  StepKind decide(const StepInfo& info) const {
    all->push_back(info);
    return StepKind::recycled;
  }
};
/// "Loads" one number for everything that counts.
struct Counted {
  static constexpr bool loads = true;
  index_t number;
  void count(index_t& value, index_t least, index_t most, std::string_view /*name*/) const {
    ASSERT_TRUE(least <= number && number <= most);
    value = number;
  }
  void array(float* values, index_t size) const { std::fill_n(values, size, 1.0F); }
  template <class Policy>
  void learnt(Policy& /*policy*/, std::string_view /*name*/) const {}
};

TEST(LongRun, StepsAndAgesCountOn) {
  const std::vector<float> query(8, 1.0F);
  for (const index_t far : far_steps) {
    std::vector<StepInfo> asked;
    Pace<Asked> pace({&asked}, {2, 1, 4, 4}, 0);
    Counted at_last{far - 5};
    pace.transfer(at_last);
    for (index_t i = 0; i < 12; ++i) {
      pace.decide(query, far + i);
      pace.stepped();
      pace.recycled(0);
    }
    pace.take_back(2);
    pace.decide(query, far);
    for (index_t i = 0; i < 13; ++i) {
      const index_t steps = i < 12 ? i : 10;
      EXPECT_EQ(asked[at(i)].step, far - 5 + steps + 1);
      EXPECT_EQ(asked[at(i)].age, far - 5 + steps + 1);
    }
  }
}

/// A layer whose saved state says that it has come a long way goes on as one that has not.
TEST(LongRun, StatisticsCountOn) {
  const Shape shape{4, 2, 16, 16};
  constexpr index_t stride = 4;
  using Layer = LayerAttention<float, FixedStride>;
  reference::Random random(2);
  const auto rows = reference::Cache<float>::random(shape, 80, random);
  Layer layer(shape, {.capacity = 10}, {stride});
  const std::vector<float> query = random.row(64);
  std::vector<float> out(64), other(64);
  layer.observe(query, 40);
  for (index_t length = 41; length <= 50; ++length) layer.step(query, rows.view(length), out);
  // Behind what has to agree: the length, a flag, ten numbers for each head, and the steps.
  constexpr std::size_t statistics = 24 + 112 + 16, steps = statistics + 2 * 80;
  const std::string state = saved(layer);
  const auto number_at = [](const std::string& bytes, std::size_t place) {
    std::uint64_t number = 0;
    std::memcpy(&number, bytes.data() + place, sizeof number);
    return number;
  };
  ASSERT_EQ(number_at(state, statistics + 8), layer.statistics().heads[0].recycled_steps);
  ASSERT_EQ(number_at(state, steps), 10U);
  for (const std::uint64_t far : {std::uint64_t{1} << 31, std::uint64_t{1} << 32, std::uint64_t{1} << 38}) {
    std::string later = state;
    const auto add = [&](std::size_t place, std::uint64_t more) {
      const std::uint64_t number = number_at(later, place) + more;
      std::memcpy(later.data() + place, &number, sizeof number);
    };
    for (std::size_t g = 0; g < 2; ++g) {
      for (std::size_t i = 0; i < 7; ++i) add(statistics + g * 80 + i * 8, far - 3);
    }
    add(steps, far);
    detail::Checksum sum;
    sum.add(later.data(), later.size() - 8);
    const std::uint64_t value = sum.value();
    std::memcpy(later.data() + later.size() - 8, &value, 8);
    Layer young = layer, old(shape, {.capacity = 10}, {stride});
    std::istringstream stream(later);
    old.load(stream);
    for (index_t length = 51; length <= 80; ++length) {
      young.step(query, rows.view(length), out);
      old.step(query, rows.view(length), other);
      ASSERT_EQ(reference::bits(out), reference::bits(other));
    }
    for (std::size_t g = 0; g < 2; ++g) {
      const HeadStatistics &a = young.statistics().heads[g], &b = old.statistics().heads[g];
      EXPECT_EQ(b.full_steps, a.full_steps + far - 3);
      EXPECT_EQ(b.recycled_steps, a.recycled_steps + far - 3);
      EXPECT_EQ(b.rows_read, a.rows_read + far - 3);
      EXPECT_EQ(b.bytes_read, a.bytes_read + far - 3);
      EXPECT_EQ(b.bytes_full, a.bytes_full + far - 3);
      EXPECT_EQ(b.measured, a.measured + far - 3);
    }
  }
}

}  // namespace
