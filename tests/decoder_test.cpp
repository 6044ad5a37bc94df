// The whole Decoder, token for token, against the model: every schedule, shape, capacity and option.
#include "reference/lockstep.hpp"

namespace {

using namespace recycled;
using reference::Lockstep;

/// Each KV head refreshes when it is 3 + its index steps old.
struct ByAge {
  static constexpr bool per_head = true;
  StepKind decide(const StepInfo& info) const {
    return info.age >= 3 + info.kv_head ? StepKind::full : StepKind::recycled;
  }
};
reference::Schedule by_age() {
  return {[](const reference::Question& q) { return q.age >= 3 + q.kv_head; }, true};
}

struct Case {
  const char* name;
  reference::Options options;
  index_t prompt;
  index_t steps;
};

constexpr Shape gqa{9, 3, 32};

class EverySchedule : public testing::TestWithParam<Case> {
 protected:
  template <class Policy>
  void run(const Policy& policy, const reference::Schedule& schedule) {
    Lockstep<float, Policy> both(GetParam().options, policy, schedule);
    both.prefill(GetParam().prompt);
    both.step(GetParam().steps);
    recycled_steps_ = both.decoder().layer(0).statistics().total().recycled_steps;
    full_steps_ = both.decoder().layer(0).statistics().total().full_steps;
  }
  std::uint64_t recycled_steps_ = 0, full_steps_ = 0;
};

TEST_P(EverySchedule, AlwaysFullIsTheModel) { run(AlwaysFull{}, reference::always_full()); }
TEST_P(EverySchedule, NeverFullIsTheModel) {
  run(NeverFull{}, reference::never_full());
  EXPECT_EQ(full_steps_, 0U);
}
TEST_P(EverySchedule, FixedStrideIsTheModel) { run(FixedStride{5}, reference::fixed_stride(5)); }
TEST_P(EverySchedule, StrideOneIsTheModel) { run(FixedStride{1}, reference::fixed_stride(1)); }
TEST_P(EverySchedule, QuerySimilarityIsTheModel) {
  run(QuerySimilarity{3, 0.8F}, reference::query_similarity(3, 0.8F));
  // The data makes it take both decisions: fewer full steps than checks, and more than none.
  const auto checks = static_cast<std::uint64_t>(GetParam().steps / 3 * GetParam().options.shape.kv_heads);
  EXPECT_GT(full_steps_, 0U);
  EXPECT_LT(full_steps_, checks);
}
TEST_P(EverySchedule, SelfCalibratingIsTheModel) {
  run(SelfCalibrating{.late = 0.3F, .longest = 9}, reference::self_calibrating(0.3F, 9));
  EXPECT_GT(full_steps_, 0U);
  EXPECT_GT(recycled_steps_, 0U);
}
TEST_P(EverySchedule, APerHeadScheduleIsTheModel) { run(ByAge{}, by_age()); }

INSTANTIATE_TEST_SUITE_P(
    Decoder, EverySchedule,
    testing::Values(
        Case{"Gqa9To3", {.shape = gqa, .capacity = 24}, 110, 40},
        Case{"Gqa33To3", {.shape = {33, 3, 16}, .capacity = 20}, 60, 25},
        Case{"Mqa", {.shape = {4, 1, 32}, .capacity = 16}, 70, 30},
        Case{"Mha", {.shape = {3, 3, 32}, .capacity = 16}, 70, 30},
        Case{"HeadDim46", {.shape = {4, 2, 46}, .capacity = 16}, 60, 30},
        Case{"ValueDim20OfHeadDim46", {.shape = {4, 2, 46, 20}, .capacity = 16}, 60, 30},
        Case{"ValueDim72OfHeadDim13", {.shape = {4, 2, 13, 72}, .capacity = 16}, 60, 30},
        Case{"CapacityOne", {.shape = gqa, .capacity = 1}, 40, 30},
        Case{"CapacityOfThePrompt", {.shape = gqa, .capacity = 50}, 50, 30},
        Case{"CapacityAboveThePrompt", {.shape = gqa, .capacity = 64}, 50, 40},
        Case{"CapacityAboveTheLength", {.shape = gqa, .capacity = 500}, 50, 30},
        Case{"PromptOfOneToken", {.shape = gqa, .capacity = 8}, 1, 40},
        Case{"NoPool", {.shape = gqa, .capacity = 12, .pool = 1}, 60, 25},
        Case{"WidePool", {.shape = gqa, .capacity = 30, .pool = 101}, 60, 25},
        Case{"Memory", {.shape = gqa, .capacity = 12, .observation_window = 9, .memory = 0.7F}, 60, 40},
        Case{"MemoryInAWindow",
             {.shape = gqa, .attention = {.window = 40, .sinks = 3}, .capacity = 12, .memory = 0.7F},
             60,
             40},
        Case{"MemoryWithoutAPool", {.shape = gqa, .capacity = 12, .pool = 1, .memory = 0.5F}, 60, 40},
        Case{"ObservationWindow", {.shape = gqa, .capacity = 12, .observation_window = 9}, 60, 25},
        Case{"SoftCapAndScale", {.shape = gqa, .attention = {.scale = 0.4F, .soft_cap = 3}, .capacity = 12}, 60, 25},
        // One token often takes most of the attention.
        Case{"PeakedWeights", {.shape = gqa, .attention = {.scale = 1}, .capacity = 12}, 60, 25},
        Case{"Window", {.shape = gqa, .attention = {.window = 40}, .capacity = 12}, 60, 30},
        Case{"WindowAndSinks", {.shape = gqa, .attention = {.window = 40, .sinks = 3}, .capacity = 12}, 60, 30},
        Case{"WindowThatFits", {.shape = gqa, .attention = {.window = 20, .sinks = 3}, .capacity = 40}, 15, 40},
        Case{"WindowReached", {.shape = gqa, .attention = {.window = 60, .sinks = 4}, .capacity = 16}, 50, 40}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
