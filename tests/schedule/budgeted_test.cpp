// What Budgeted decides and learns, and whether what it reads is what it may.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <recycled/recycled.hpp>
#include <sstream>
#include <thread>

#include "reference/feed.hpp"
#include "reference/messages.hpp"

namespace {

using namespace recycled;
using reference::at;

const std::vector<float> straight{1, 0};
std::vector<float> turned(float cosine) { return {cosine, std::sqrt(1 - cosine * cosine)}; }

StepKind ask(Budgeted& schedule, const std::vector<float>& query, index_t age, index_t kv_head = 0) {
  return schedule.decide({.step = age,
                          .age = age,
                          .kv_head = kv_head,
                          .kv_heads = 2,
                          .head_dim = 2,
                          .queries = query,
                          .full_queries = straight});
}
Budgeted that_may_lose(float wanted) {
  Budgeted schedule{std::make_shared<Budget>(0.5F)};
  // Too much or too little of what it may, until the loss is there.
  const auto now = [&] { return schedule.budget->allowed_loss(); };
  for (int i = 0; i < 10000 && std::abs(now() / wanted - 1) > 0.01F; ++i)
    schedule.spent({.bytes_read = now() < wanted ? 52U : 48U, .bytes_full = 100});
  EXPECT_NEAR(now(), wanted, 0.01F * wanted);
  return schedule;
}

TEST(Budgeted, RefreshesOnceItExpectsToHaveLostTooMuch) {
  Budgeted schedule = that_may_lose(0.25F);  // a new head loses half of what its queries turn
  EXPECT_EQ(ask(schedule, turned(0.6F), 1), StepKind::recycled) << ".2 of the mass";
  EXPECT_EQ(ask(schedule, turned(0.4F), 2), StepKind::full) << ".3";
  EXPECT_EQ(ask(schedule, turned(0.6F), 30), StepKind::recycled) << "however long ago";
  Budgeted generous = that_may_lose(0.09F);
  EXPECT_EQ(ask(generous, turned(0.8F), 1), StepKind::full);
}

TEST(Budgeted, LearnsWhatATurnCosts) {
  Budgeted schedule = that_may_lose(0.5F);
  for (int i = 0; i < 100; ++i) {
    ask(schedule, turned(0.9F), 1, 1);
    schedule.observe({.kv_head = 1, .kv_heads = 2, .retained_mass = 0.4F});
  }
  EXPECT_EQ(ask(schedule, turned(0.92F), 1, 1), StepKind::recycled) << ".48 of the mass";
  EXPECT_EQ(ask(schedule, turned(0.91F), 1, 1), StepKind::full) << ".54";
  EXPECT_EQ(ask(schedule, turned(0.2F), 1, 0), StepKind::recycled) << "another head";
}

TEST(Budgeted, NumbersThatAreNoneAreSafeAndTeachNothing) {
  Budgeted schedule = that_may_lose(1.4F);
  const float nan = std::nanf("");
  EXPECT_EQ(ask(schedule, {nan, 0}, 1), StepKind::full);
  EXPECT_EQ(ask(schedule, {0, 0}, 1), StepKind::full);
  schedule.observe({.kv_head = 0, .kv_heads = 2, .retained_mass = 0});
  ask(schedule, turned(0.5F), 1);
  schedule.observe({.kv_head = 0, .kv_heads = 2, .retained_mass = nan});
  EXPECT_EQ(schedule.heads[0].loss, 0.5F);
  EXPECT_EQ(schedule.heads[0].turn, 1);
}

TEST(Budgeted, QueriesThatStandStillRefreshAfterTheLongestTime) {
  Budgeted schedule = that_may_lose(0.5F);
  schedule.longest = 8;
  for (int refresh = 0; refresh < 300; ++refresh) {
    for (index_t age = 1; age < 8; ++age) ASSERT_EQ(ask(schedule, straight, age), StepKind::recycled);
    ASSERT_EQ(ask(schedule, straight, 8), StepKind::full);
    schedule.observe({.kv_head = 0, .kv_heads = 2, .retained_mass = 0.9F});
  }
}

TEST(Budget, WeighsStepsByTheirBytes) {
  // Short contexts that can read nothing less than all of theirs, beside a long one that reads what is left.
  Budget budget(0.2F);
  double long_share = 0;
  for (int i = 0; i < 4000; ++i) {
    budget.account({.bytes_read = 1000, .bytes_full = 1000});
    long_share = budget.allowed_loss() < 0.5F ? 0.3 : 0.1;
    budget.account({.bytes_read = static_cast<std::uint64_t>(100000 * long_share), .bytes_full = 100000});
  }
  EXPECT_NEAR(budget.spent(), 0.2, 0.004);
  EXPECT_NEAR(budget.allowed_loss(), 0.5, 0.2);
}

TEST(Budget, CountsWhatIsSpent) {
  Budget budget(0.25F);
  EXPECT_EQ(budget.share(), 0.25F);
  EXPECT_EQ(budget.spent(), 0);
  const float first = budget.allowed_loss();
  budget.account({});  // a step that sees nothing, before there is anything to compare with
  EXPECT_EQ(budget.allowed_loss(), first);
  budget.account({.bytes_read = 30, .bytes_full = 40});
  budget.account({.layer = 3, .bytes_read = 10, .bytes_full = 60});
  EXPECT_DOUBLE_EQ(budget.spent(), 0.4);
  const float before = budget.allowed_loss();
  budget.account({});
  EXPECT_EQ(budget.allowed_loss(), before);
}

TEST(Budget, MovesByALayersShareOfAToken) {
  Budget budget(0.2F);
  const float first = budget.allowed_loss();
  budget.account({.layer = 7, .bytes_read = 1000, .bytes_full = 1000});  // four times its share too many
  EXPECT_FLOAT_EQ(budget.allowed_loss(), first * std::exp(0.3F / 8 * 4));
  budget.account({.layer = 2, .bytes_read = 200, .bytes_full = 1000});
  EXPECT_FLOAT_EQ(budget.allowed_loss(), first * std::exp(0.3F / 8 * 4));
  budget.account({.layer = 2, .bytes_read = 0, .bytes_full = 1000});
  EXPECT_FLOAT_EQ(budget.allowed_loss(), first * std::exp(0.3F / 8 * 3));
}

TEST(Budget, ThreadsLoseNothing) {
  Budget budget(0.5F);
  std::array<std::thread, 3> threads;
  for (std::size_t t = 0; t < threads.size(); ++t) {
    threads[t] = std::thread([&budget, t] {
      for (int i = 0; i < 20000; ++i)
        budget.account({.layer = static_cast<index_t>(t), .bytes_read = t + 1, .bytes_full = 4});
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_DOUBLE_EQ(budget.spent(), 0.5);
  EXPECT_TRUE(std::isfinite(budget.allowed_loss()));
}

TEST(Budget, GoesOnAfterMoreBytesThanASumCanHold) {
  constexpr std::uint64_t much = std::uint64_t{1} << 59;
  Budget budget(0.5F);
  for (int i = 0; i < 50; ++i) budget.account({.bytes_read = much / 4, .bytes_full = much});
  EXPECT_NEAR(budget.spent(), 0.25, 1e-12);
  for (int i = 0; i < 50; ++i) budget.account({.bytes_read = much, .bytes_full = much});
  EXPECT_GT(budget.spent(), 0.99) << "what is long ago counts less";
}

TEST(Budget, GoesOnAfterMoreBytesReadThanASumCanHold) {
  constexpr std::uint64_t much = (std::uint64_t{1} << 61) - 1;
  Budget budget(0.5F);
  double share = 0;
  for (int i = 0; i < 20; ++i) {
    budget.account({.bytes_read = much, .bytes_full = 1});
    EXPECT_GT(budget.spent(), share / 4) << "no sum wraps";
    share = budget.spent();
    std::stringstream state;
    budget.save(state);
    Budget loaded(0.5F);
    loaded.load(state);
  }
  EXPECT_TRUE(std::isfinite(budget.allowed_loss()));
}

TEST(Budget, OfTheLastLayerThatThereMayBeIsSavedAndLoaded) {
  const auto budget = std::make_shared<Budget>(0.5F);
  LayerAttention<float, Budgeted> layer({1, 1, 8}, {.capacity = 4, .layer = 1 << 20}, {budget});
  const std::vector<float> rows(8), query(8);
  std::vector<float> out(8);
  layer.step(query, KvView<float>::position_major(rows.data(), rows.data(), {1, 1, 8}, 1), out);
  std::stringstream state;
  Budget loaded(0.5F);
  budget->save(state);
  loaded.load(state);
  EXPECT_EQ(loaded.spent(), 1);
}

TEST(Budget, IsCheckedAndNamed) {
  const auto message = [](float share) { return message_of([&] { Budget budget(share); }); };
  EXPECT_EQ(message(0), "recycled: Budget share = 0, expected more than 0, up to 1");
  EXPECT_EQ(message(1.5F), "recycled: Budget share = 1.5, expected more than 0, up to 1");
  EXPECT_EQ(message(std::nanf("")), "recycled: Budget share = nan, expected more than 0, up to 1");
  EXPECT_EQ(message_of([] {
              LayerAttention<half, Budgeted> layer({1, 1, 8}, {.capacity = 4}, Budgeted{});
            }),
            "recycled: Budgeted.budget = nullptr, expected a budget: std::make_shared<Budget>(share)");
  const Budgeted hasty{std::make_shared<Budget>(0.5F), 0};
  EXPECT_EQ(message_of([&] {
              LayerAttention<half, Budgeted> layer({1, 1, 8}, {.capacity = 4}, hasty);
            }),
            "recycled: Budgeted.longest = 0, expected at least 1");
}

TEST(Budgeted, HeadsThatAreNoNumbersAreRefused) {
  const auto budget = std::make_shared<Budget>(0.5F);
  const auto message = [&](const Budgeted::Head& head) {
    return message_of([&] { detail::validate(Budgeted{budget, 64, {{}, head}}); });
  };
  EXPECT_EQ(message({.loss = std::nanf("")}), "recycled: Budgeted.heads.loss = nan, expected 0 to 1");
  EXPECT_EQ(message({.turn = -1}), "recycled: Budgeted.heads.turn = -1, expected 0 to 2");
  EXPECT_EQ(message({.loss = 1, .turn = 2, .last_turn = std::nanf("")}), "") << "the last query may have been none";
}

/// Layers whose queries turn at different speeds, under one budget.
class Competing : public testing::Test {
 protected:
  static constexpr Shape shape{4, 2, 16};
  static constexpr index_t prompt = 400;

  /// What each layer read, as a share of what full attention would have.
  std::array<double, 3> run(const std::shared_ptr<Budget>& budget, index_t coordinates = 0) {
    Decoder<half, Budgeted> decoder({3, shape}, {.capacity = 20, .sketch = {.coordinates = coordinates}}, {budget});
    reference::Random random(3);
    const std::array<float, 3> drift{0.02F, 0.2F, 1};
    std::array<std::vector<float>, 3> query;
    std::vector<float> out(prompt * 64);
    for (index_t i = 0; i < 3; ++i) {
      query[at(i)] = random.row(64);
      std::vector<float> queries;
      for (index_t t = 0; t < prompt; ++t) queries.insert(queries.end(), query[at(i)].begin(), query[at(i)].end());
      decoder.prefill(i, queries, random.row(prompt * 32), random.row(prompt * 32), out);
    }
    out.resize(64);
    for (int step = 0; step < 600; ++step) {
      for (index_t i = 0; i < 3; ++i) {
        const float d = drift[at(i)];
        for (float& x : query[at(i)]) x = std::sqrt(1 - d * d) * x + d * random.normal();
        decoder.step(i, query[at(i)], random.row(32), random.row(32), out);
      }
    }
    std::array<double, 3> shares{};
    for (index_t i = 0; i < 3; ++i) {
      const HeadStatistics total = decoder.statistics()[at(i)].total();
      shares[at(i)] = static_cast<double>(total.bytes_read) / static_cast<double>(total.bytes_full);
    }
    return shares;
  }
};

TEST_F(Competing, ReadTheShareOnAverage) {
  for (const float share : {0.1F, 0.2F, 0.4F}) {
    const auto budget = std::make_shared<Budget>(share);
    const auto shares = run(budget);
    EXPECT_NEAR(budget->spent(), static_cast<double>(share), 0.05 * static_cast<double>(share));
    EXPECT_LT(shares[0], shares[1]) << "whose queries turn slowly needs less";
  }
  const auto sketched = std::make_shared<Budget>(0.1F);
  run(sketched, 16);
  EXPECT_NEAR(sketched->spent(), 0.1, 0.005);
}

TEST_F(Competing, ABudgetForAllIsFullAttention) {
  const auto all = std::make_shared<Budget>(1.0F);
  run(all);
  EXPECT_GT(all->spent(), 0.9);
}

TEST_F(Competing, CopiesShareTheBudget) {
  const auto budget = std::make_shared<Budget>(0.3F);
  Decoder<half, Budgeted> decoder({1, shape}, {.capacity = 20}, {budget});
  reference::Tokens tokens(shape, 5);
  reference::prefill(decoder, tokens.next(50));
  Decoder<half, Budgeted> fork = decoder.fork();
  const std::vector<reference::Token> next = tokens.next(3);
  reference::decode(decoder, next);
  const double alone = budget->spent();
  reference::decode(fork, next);
  EXPECT_NE(alone, 0);
  EXPECT_EQ(decoder.layer(0).schedule().budget, fork.layer(0).schedule().budget);
  EXPECT_EQ(budget.use_count(), 5) << "this one, and a schedule and the one to begin anew with in each";
}

}  // namespace
