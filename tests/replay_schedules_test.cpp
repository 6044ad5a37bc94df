// What policies the example replay knows by name, and what it says of others.
#include <gtest/gtest.h>

#include "../examples/replay/schedules.hpp"
#include "reference/messages.hpp"

namespace {

using recycled::index_t;

TEST(Schedules, AreReadByName) {
  const auto schedules = replay::parse_schedules("always,never,fixed-stride:7,query-similarity:5:0.5");
  ASSERT_EQ(schedules.size(), 4U);
  EXPECT_EQ(schedules[3].name, "query-similarity:5:0.5");
  EXPECT_EQ(std::get<recycled::FixedStride>(schedules[2].schedule).stride, 7);
  EXPECT_EQ(std::get<recycled::QuerySimilarity>(schedules[3].schedule).stride, 5);
  EXPECT_EQ(std::get<recycled::QuerySimilarity>(schedules[3].schedule).threshold, 0.5F);
}

TEST(Schedules, MayHaveASketchAndACapacityOfTheirOwn) {
  const auto schedules = replay::parse_schedules("self-calibrating:0.25:sketch@256,fixed-stride:3:sketch,never@9");
  ASSERT_EQ(schedules.size(), 3U);
  EXPECT_EQ(schedules[0].name, "self-calibrating:0.25:sketch@256");
  EXPECT_EQ(std::get<recycled::SelfCalibrating>(schedules[0].schedule).late, 0.25F);
  EXPECT_EQ(schedules[0].sketch().coordinates, 32);
  EXPECT_EQ(schedules[0].capacity, 256);
  EXPECT_EQ(std::get<recycled::FixedStride>(schedules[1].schedule).stride, 3);
  EXPECT_EQ(schedules[1].sketch().coordinates, 32);
  EXPECT_EQ(schedules[1].capacity, 0);
  EXPECT_EQ(schedules[2].sketch().coordinates, 0);
  EXPECT_EQ(schedules[2].capacity, 9);
}

TEST(Schedules, MayRefreshByKeys) {
  const auto schedules = replay::parse_schedules("self-calibrating:0.25:keys@256,query-similarity:5:0.5:keys");
  for (const replay::Policy& policy : schedules) {
    EXPECT_TRUE(policy.sketch().keys);
    EXPECT_EQ(policy.sketch().coordinates, 0);
    EXPECT_EQ(policy.selection().pool, 7);
    EXPECT_EQ(policy.prompt_queries(), 1);
  }
  EXPECT_EQ(schedules[0].name, "self-calibrating:0.25:keys@256");
  EXPECT_EQ(std::get<recycled::SelfCalibrating>(schedules[0].schedule).late, 0.25F);
  EXPECT_FALSE(replay::parse_schedules("self-calibrating:0.25:sketch")[0].sketch().keys);
}

TEST(Schedules, MayBeBaselinesThatAreNeverRefreshed) {
  const auto policies =
      replay::parse_schedules("snapkv,snapkv:7,sliding-window,streaming-llm@9,h2o,h2o:5,keyformer,keyformer:3@12");
  ASSERT_EQ(policies.size(), 8U);
  std::vector<index_t> windows;
  for (const replay::Policy& policy : policies) {
    EXPECT_TRUE(std::holds_alternative<recycled::NeverFull>(policy.schedule)) << policy.name;
    EXPECT_EQ(policy.baseline == nullptr, policy.name.starts_with("snapkv")) << policy.name;
    EXPECT_EQ(policy.sketch().coordinates, 0);
    if (policy.baseline) {
      EXPECT_EQ(policy.baseline(10, 20).observation_window, policy.observation_window);
    }
    windows.push_back(policy.observation_window);
  }
  EXPECT_EQ(windows, (std::vector<index_t>{32, 7, 1, 1, 32, 5, 32, 3}));
  EXPECT_EQ(policies[1].selection().observation_window, 7);
  EXPECT_EQ(policies[1].selection().pool, 7);
  EXPECT_EQ(policies[3].capacity, 9);
  EXPECT_EQ(policies[7].capacity, 12);
  const auto made = [&](std::size_t i, index_t capacity) { return policies[i].baseline(capacity, 20).chosen; };
  EXPECT_TRUE(std::holds_alternative<recycled::SlidingWindow>(made(2, 10)));
  EXPECT_EQ(std::get<recycled::StreamingLlm>(made(3, 10)).sinks, 4);
  EXPECT_EQ(std::get<recycled::HeavyHitters>(made(4, 10)).recent, 5);
  EXPECT_EQ(std::get<recycled::HeavyHitters>(made(4, 1)).recent, 1);
  EXPECT_EQ(std::get<recycled::Keyformer>(made(6, 12)).recent, 3);
  EXPECT_EQ(std::get<recycled::Keyformer>(made(6, 1)).recent, 1);
  EXPECT_EQ(std::get<recycled::Keyformer>(made(6, 12)).tokens, 20);
}

TEST(Schedules, SayWhatIsWrongWithABaseline) {
  const auto message = [](const char* text) {
    return message_of<std::exception>([&] { replay::parse_schedules(text); });
  };
  const std::string window = ".observation_window = 0, expected at least 1";
  EXPECT_EQ(message("snapkv:0"), "--schedule = snapkv:0: recycled: TopK" + window);
  EXPECT_EQ(message("h2o:0"), "--schedule = h2o:0: recycled: HeavyHitters" + window);
  EXPECT_EQ(message("keyformer:0"), "--schedule = keyformer:0: recycled: Keyformer" + window);
  EXPECT_EQ(message("h2o:x"), "--schedule = h2o:x: window = x, expected a whole number");
  for (const char* text :
       {"h2o:sketch", "h2o:5:sketch", "h2o:5:6", "sliding-window:4", "streaming-llm:sketch", "H2O"}) {
    EXPECT_TRUE(message(text).starts_with("--schedule = " + std::string(text) + ", expected one of always, ")) << text;
    EXPECT_NE(message(text).find("snapkv:WINDOW, sliding-window, streaming-llm, h2o, "), std::string::npos) << text;
  }
}

TEST(Schedules, ThatCantBeAreRefusedByName) {
  for (const char* text : {"never:sketch",
                           "never:keys",
                           "snapkv:keys",
                           "fixed-stride:3:sketch:keys",
                           "always:sketch",
                           "sketch",
                           "fixed-stride:sketch",
                           "fixed-stride:5@",
                           "fixed-stride:5@0",
                           "fixed-stride:5@256:sketch",
                           "@256",
                           "",
                           "nevr",
                           "never:1",
                           "fixed-stride",
                           "fixed-stride:",
                           "fixed-stride:0",
                           "fixed-stride:-1",
                           "fixed-stride:1.5",
                           "fixed-stride:99999999999999999999",
                           "query-similarity:5",
                           "query-similarity:5:2",
                           "query-similarity:5:nan",
                           "never,",
                           "never, always"}) {
    const std::string message = message_of<std::exception>([&] { replay::parse_schedules(text); });
    EXPECT_TRUE(message.starts_with("--schedule")) << text << ": " << message;
  }
}

}  // namespace
