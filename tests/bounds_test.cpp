// Parameters of policies at the ends of their ranges are taken; what is beyond is refused (stress/wrong_making_test).
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <recycled/recycled.hpp>

#include "reference/messages.hpp"

namespace {

using namespace recycled;

constexpr index_t largest = std::numeric_limits<index_t>::max();

template <class Policy>
std::string refusal(const Policy& policy) {
  return message_of([&] { detail::validate(policy); });
}

TEST(ParametersAtTheEndsOfTheirRange, OfSchedulesAreTaken) {
  for (const index_t count : {index_t{1}, largest}) {
    EXPECT_EQ(refusal(FixedStride{count}), "");
    EXPECT_EQ(refusal(QuerySimilarity{count}), "");
    EXPECT_EQ(refusal(SelfCalibrating{.longest = count}), "");
    EXPECT_EQ(refusal(Budgeted{std::make_shared<Budget>(1.0F), count}), "");
  }
  EXPECT_EQ(refusal(QuerySimilarity{1, -1.0F}), "");
  EXPECT_EQ(refusal(QuerySimilarity{1, 1.0F}), "");
  EXPECT_EQ(refusal(SelfCalibrating{.late = 1e-6F}), "");
  EXPECT_EQ(refusal(SelfCalibrating{.late = 0.999999F}), "");
  for (const float share : {0.0F, 1.0F}) {
    EXPECT_EQ(refusal(SelfCalibrating{.stale = share}), "");
    EXPECT_EQ(refusal(Budgeted{std::make_shared<Budget>(1e-6F), 1, {{.loss = share, .turn = 0}}}), "");
  }
  EXPECT_EQ(refusal(SelfCalibrating{.thresholds = {0.0F, 1.01F}}), "");
  EXPECT_EQ(refusal(Budgeted{std::make_shared<Budget>(0.5F), 1, {{.loss = 0.5F, .turn = 2}}}), "");
}

TEST(ParametersAtTheEndsOfTheirRange, OfSelectionsAreTaken) {
  for (const index_t count : {index_t{1}, largest}) {
    EXPECT_EQ(refusal(TopK{.pool = count, .observation_window = count}), "") << "both are odd";
    EXPECT_EQ(refusal(HeavyHitters{.recent = count, .observation_window = count}), "");
    EXPECT_EQ(refusal(Keyformer{.recent = count, .observation_window = count, .tokens = count, .prompt = count}), "");
  }
  EXPECT_EQ(refusal(TopK{.memory = 0}), "");
  EXPECT_EQ(refusal(TopK{.memory = 0.999999F}), "");
  EXPECT_EQ(refusal(Keyformer{.recent = 1, .prompt = 0}), "");
  EXPECT_EQ(refusal(StreamingLlm{.sinks = 0}), "");
  EXPECT_EQ(refusal(StreamingLlm{.sinks = largest}), "");
}

}  // namespace
