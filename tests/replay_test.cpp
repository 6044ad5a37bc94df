// The example replay: its .npy reader against files good and broken, its reports, and its figures on a real trace.
#include "../examples/replay/replay.hpp"

#include <gtest/gtest.h>

#include <sstream>

#include "../examples/replay/report.hpp"
#include "reference/messages.hpp"

namespace {

using recycled::half, recycled::index_t;

std::string dictionary(const std::string& descr, const std::string& order, const std::string& shape) {
  return "{'descr': " + descr + ", 'fortran_order': " + order + ", 'shape': " + shape + ", }";
}

/// The bytes of a .npy file of the format's version `major`.
std::string npy(const std::string& header, const std::string& data, int major = 1) {
  std::string bytes = "\x93NUMPY";
  bytes += {static_cast<char>(major), '\0'};
  for (int i = 0; i < (major == 1 ? 2 : 4); ++i) bytes += static_cast<char>((header.size() >> (8 * i)) & 0xFF);
  return bytes + header + data;
}

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string write(const std::string& bytes) {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  const std::string path = testing::TempDir() + "recycled_" + test->name() + ".npy";
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

const std::vector<float> six{1, -2, 0.5F, 3, -0.25F, 65504};
const std::string good_header = dictionary("'<f4'", "False", "(1, 2, 3)");

TEST(NpyReader, ReadsFloat32OfEveryVersion) {
  for (const int version : {1, 2, 3}) {
    const replay::Tensor tensor = replay::read_npy(write(npy(good_header, raw(six), version)));
    EXPECT_EQ(tensor.shape, (std::array<index_t, 3>{1, 2, 3}));
    EXPECT_EQ(tensor.values, six);
  }
}

TEST(NpyReader, ReadsFloat16) {
  const std::vector<half> halves(six.begin(), six.end());
  const replay::Tensor tensor = replay::read_npy(write(npy(dictionary("'<f2'", "False", "(3, 1, 2)"), raw(halves))));
  EXPECT_EQ(tensor.shape, (std::array<index_t, 3>{3, 1, 2}));
  EXPECT_EQ(tensor.values, six);
}

TEST(NpyReader, RefusesEveryTruncation) {
  const std::string bytes = npy(good_header, raw(six));
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const std::string path = write(bytes.substr(0, size));
    EXPECT_THROW(replay::read_npy(path), std::runtime_error) << size << " of " << bytes.size() << " bytes";
  }
}

TEST(NpyReader, NamesTheFileTheFaultAndTheExpectation) {
  const std::string floats = raw(six);
  const auto with = [&](const std::string& descr, const std::string& order, const std::string& shape) {
    return npy(dictionary(descr, order, shape), floats);
  };
  std::string huge_header = npy(good_header, floats, 2);
  huge_header[11] = '\x7F';
  const std::vector<std::pair<std::string, std::string>> cases{
      {"PK\x03\x04 something else", "magic"},
      {npy(good_header, floats, 4), "version = 4, expected 1, 2 or 3"},
      {huge_header, "header length = "},
      {with("'<f8'", "False", "(1, 2, 3)"), "descr = '<f8', expected '<f2' or '<f4'"},
      {with("'>f4'", "False", "(1, 2, 3)"), "descr = '>f4'"},
      {with("'<i4'", "False", "(1, 2, 3)"), "descr = '<i4'"},
      {with("[('a', '<f4')]", "False", "(1, 2, 3)"), "descr = [('a'"},
      {with("'<f4'", "True", "(1, 2, 3)"), "fortran_order = True, expected False"},
      {with("'<f4'", "False", "(2, 3)"), "shape = (2, 3), expected three dimensions"},
      {with("'<f4'", "False", "(1, 1, 2, 3)"), "shape = (1, 1, 2, 3), expected three dimensions, no more"},
      {with("'<f4'", "False", "()"), "shape = ()"},
      {with("'<f4'", "False", "(1, 2, -3)"), "shape = (1, 2, -3)"},
      {with("'<f4'", "False", "(0, 2, 3)"), "shape = (0, 2, 3)"},
      {with("'<f4'", "False", "(1, 2, x)"), "shape = (1, 2, x)"},
      {with("'<f4'", "False", "(1, 2, 2)"), "bytes of data = 24, expected 16"},
      {with("'<f4'", "False", "(1, 2, 4)"), "shape = (1, 2, 4), expected at most the 6 values"},
      {with("'<f4'", "False", "(4294967296, 4294967296, 4294967296)"), "expected at most the 6 values"},
      {with("'<f4'", "False", "(1, 2, 99999999999999999999)"), "shape = "},
      {npy("{'descr': '<f4', 'fortran_order': False, }", floats), "expected an entry 'shape':"},
      {npy(good_header, floats + "x"), "bytes of data = 25, expected 24"},
  };
  for (const auto& [bytes, expected] : cases) {
    const std::string path = write(bytes);
    const std::string message = message_of<std::exception>([&] { replay::read_npy(path); });
    EXPECT_TRUE(message.starts_with(path + ": ")) << message;
    EXPECT_NE(message.find(expected), std::string::npos) << message;
  }
  EXPECT_NE(message_of<std::exception>([] { replay::read_npy("no/such.npy"); }).find("no/such.npy: can't be opened"),
            std::string::npos);
}

TEST(Report, JsonHasAnObjectAPolicy) {
  const std::vector<replay::Result> results{{"never", 0, 7, 787968, 0.125, 0.25, 0.75, 61.5, {}},
                                            {"fixed-stride:10", 153, 0, 1375947, 0.5, HUGE_VAL, 1, 120, {}}};
  std::ostringstream json;
  replay::write_json(json, results);
  EXPECT_EQ(json.str(),
            "[\n"
            "  {\"policy\": \"never\", \"full_steps\": 0, \"sketched_steps\": 7, \"rows\": 787968, \"bytes_share\": "
            "0.125, \"error\": 0.25, "
            "\"covered\": 0.75, \"microseconds\": 61.5},\n"
            "  {\"policy\": \"fixed-stride:10\", \"full_steps\": 153, \"sketched_steps\": 0, \"rows\": 1375947, "
            "\"bytes_share\": 0.5, "
            "\"error\": null, \"covered\": 1, \"microseconds\": 120}\n"
            "]\n");
}

TEST(Report, StepsAreARowAPolicyAndStep) {
  const std::vector<replay::Result> results{{"full", 0, 0, 0, 1, 0, 1, 2, {{3, 0, 2.5}}},
                                            {"never", 0, 0, 0, 1, 0, 1, 2, {{0, 0.25, 1}, {0, 0.5, 2}}}};
  std::ostringstream csv;
  replay::write_steps(csv, results);
  EXPECT_EQ(csv.str(),
            "policy,step,full_heads,error,microseconds\nfull,1,3,0,2.5\nnever,1,0,0.25,1\nnever,2,0,0.5,2\n");
}

const replay::Trace& moonstone() {
  static const replay::Trace trace = replay::load_trace(RECYCLED_TEST_DATA "/moonstone", 20);
  return trace;
}

replay::Options options(index_t prompt, index_t capacity, index_t tokens) {
  return {prompt, capacity, tokens, 1, 1, replay::parse_schedules("never,fixed-stride:10,query-similarity:5:0.85")};
}

TEST(Trace, MayHoldTheLastQueriesOnly) {
  EXPECT_EQ(moonstone().tokens, 4608);
  EXPECT_EQ(moonstone().first_query, 4032);
  EXPECT_EQ(moonstone().query(4607).data() + moonstone().shape.query_size(), &*moonstone().queries.end());
  const std::string message = message_of<std::exception>([] { replay::run<half>(moonstone(), options(4032, 512, 0)); });
  EXPECT_TRUE(message.starts_with("prompt = 4032, expected 4033 to 4607")) << message;
}

struct Figures {
  const char* policy;
  index_t full_steps, rows;
  double error, covered;
};

// Expected figures: an independent implementation in NumPy, in double precision, that keeps every logit of the trace.
void expect_figures(const replay::Options& options, const std::vector<Figures>& expected) {
  const std::vector<replay::Result> results = replay::run<half>(moonstone(), options);
  ASSERT_EQ(results.size(), 1 + expected.size());
  EXPECT_EQ(results[0].policy, "full");
  EXPECT_EQ(results[0].error, 0);
  EXPECT_EQ(results[0].covered, 1);
  EXPECT_EQ(results[0].bytes_share, 1);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const replay::Result& result = results[i + 1];
    EXPECT_EQ(result.policy, expected[i].policy);
    EXPECT_EQ(result.full_steps, expected[i].full_steps);
    EXPECT_EQ(result.rows, expected[i].rows);
    EXPECT_NEAR(result.error, expected[i].error, 0.01 * expected[i].error);
    EXPECT_NEAR(result.covered, expected[i].covered, 0.01 * expected[i].covered);
    EXPECT_NEAR(result.bytes_share, static_cast<double>(result.rows) / static_cast<double>(results[0].rows), 1e-12);
    EXPECT_GT(result.microseconds, 0);
  }
}

TEST(Replay, AgreesWithAnIndependentImplementation) {
  expect_figures(options(4096, 512, 0), {{"never", 0, 787968, 0.314283, 0.713426},
                                         {"fixed-stride:10", 153, 1375947, 0.292897, 0.746384},
                                         {"query-similarity:5:0.85", 306, 1963161, 0.233284, 0.794175}});
}

TEST(Replay, AgreesFromTheFirstQueryThatTheTraceHas) {
  expect_figures(options(4033, 256, 60), {{"never", 0, 46260, 0.362026, 0.677039},
                                          {"fixed-stride:10", 18, 114858, 0.350807, 0.692703},
                                          {"query-similarity:5:0.85", 36, 183366, 0.284706, 0.740881}});
}

/// Of a layer this hard with half of the rows and the bytes of two thirds: .139 against .293 in 512 tokens.
TEST(Replay, RefreshesByASketchLoseLessThanFullOnesNowAndThen) {
  replay::Options wanted = options(4096, 512, 128);
  wanted.schedules = replay::parse_schedules("fixed-stride:10,self-calibrating:0.5:sketch@256");
  const std::vector<replay::Result> results = replay::run<half>(moonstone(), wanted);
  EXPECT_LT(results[2].error, results[1].error / 1.8);
  EXPECT_LT(results[2].bytes_share, results[1].bytes_share * 0.7);
  EXPECT_GT(results[2].covered, results[1].covered);
  EXPECT_GT(results[2].sketched_steps, 300);
  EXPECT_LT(results[2].full_steps, 12);
  EXPECT_EQ(results[1].sketched_steps, 0);
}

/// What baselines that go by position cover is known beforehand, by full attention alone.
TEST(Replay, OfBaselinesReadsWhatTheyKeep) {
  constexpr index_t prompt = 4096, capacity = 256, tokens = 40;
  replay::Options wanted = options(prompt, capacity, tokens);
  wanted.schedules =
      replay::parse_schedules("sliding-window,streaming-llm,never,snapkv:1,h2o:64,h2o:4096,h2o:1,keyformer,snapkv");
  const std::vector<replay::Result> results = replay::run<half>(moonstone(), wanted);
  for (std::size_t i = 1; i < results.size(); ++i) {
    EXPECT_EQ(results[i].full_steps, 0);
    EXPECT_EQ(results[i].rows, 3 * tokens * (capacity + 1));
    EXPECT_GT(results[i].error, 0.01);
  }
  EXPECT_EQ(results[4].error, results[3].error);  // SnapKV with a window of 1 is what never does
  EXPECT_EQ(results[6].error, results[5].error);  // the trace has no more than 64 of the prompt's queries
  EXPECT_NE(results[7].error, results[5].error);
  EXPECT_NE(results[9].error, results[3].error);
  EXPECT_LT(results[5].error, results[2].error);
  EXPECT_NE(results[8].error, results[5].error);

  const replay::Trace& trace = moonstone();
  recycled::Array<half> keys(static_cast<index_t>(trace.keys.size()));
  recycled::encode(trace.keys.data(), keys.size(), keys.data());
  replay::Truth truth(trace.shape, recycled::KvView<half>::position_major(keys.data(), keys.data(), trace.shape, 4608));
  for (const index_t sinks : {0, 4}) {
    double covered = 0;
    for (index_t own = prompt; own < prompt + tokens; ++own) {
      truth.attend(trace.query(own), own + 1);
      std::vector<index_t> kept;
      for (index_t j = 0; j <= own; ++j) {
        if (j < sinks || j >= own - capacity + sinks) kept.push_back(j);
      }
      for (index_t g = 0; g < 3; ++g) covered += truth.covered(g, kept);
    }
    const double mean = covered / static_cast<double>(tokens * trace.shape.query_heads);
    EXPECT_NEAR(results[sinks == 0 ? 1 : 2].covered, mean, 1e-9);
  }
}

TEST(Replay, OfABudgetIsTheSameEveryTime) {
  replay::Options wanted = options(4096, 256, 60);
  wanted.schedules = replay::parse_schedules("budgeted:0.2");
  const replay::Result first = replay::run<half>(moonstone(), wanted)[1];
  const replay::Result again = replay::run<half>(moonstone(), wanted)[1];
  EXPECT_EQ(first.full_steps, again.full_steps);
  EXPECT_EQ(first.error, again.error);
  EXPECT_GT(first.full_steps, 0);
}

TEST(Replay, RefusesValuesThatTheTypeOfRowsCantHold) {
  replay::Trace trace = moonstone();
  const auto refusal = [&](const auto& run) {
    return message_of<std::exception>([&] { run(trace, options(4096, 64, 2)); });
  };
  const auto as_half = [](auto... given) { replay::run<half>(given...); };
  const auto recycled_as_half = [](auto... given) { replay::run<float, half>(given...); };
  const auto as_q8_0 = [](auto... given) { replay::run<recycled::q8_0>(given...); };
  for (std::vector<float>* const rows : {&trace.keys, &trace.values}) {
    const std::string name = rows == &trace.keys ? "keys" : "values";
    const float before = std::exchange((*rows)[1000], -1e5F);
    const std::string expected = name + ": value 1000 = -100000, expected what f16 holds (bf16 and f32 hold more)";
    EXPECT_EQ(refusal(as_half), expected);
    EXPECT_EQ(refusal(recycled_as_half), expected);
    EXPECT_EQ(refusal([](auto... given) { replay::run<recycled::bfloat16>(given...); }), "");
    EXPECT_EQ(refusal(as_q8_0), "");
    (*rows)[1000] = 1e8F;
    EXPECT_EQ(refusal(as_q8_0), name + ": value 1000 = 1e+08, expected what q8_0 holds (bf16 and f32 hold more)");
    (*rows)[1000] = before;
  }
}

TEST(RelativeError, IsNoNumberIfAnOutputIsNone) {
  const std::vector<float> ones(8, 1), zeros(8, 0);
  std::vector<float> spoilt = ones;
  spoilt[5] = std::nanf("");
  EXPECT_EQ(replay::relative_error(ones, ones, 2), 0);
  EXPECT_EQ(replay::relative_error(zeros, zeros, 2), 0);
  EXPECT_EQ(replay::relative_error(zeros, ones, 2), 1);
  EXPECT_TRUE(std::isnan(replay::relative_error(spoilt, ones, 2)));
  EXPECT_TRUE(std::isnan(replay::relative_error(spoilt, spoilt, 2)));
}

TEST(Replay, WithRoomForEverythingIsExact) {
  replay::Options wanted = options(4096, 5000, 20);
  for (replay::Policy& policy : replay::parse_schedules("snapkv,sliding-window,streaming-llm,h2o,keyformer"))
    wanted.schedules.push_back(std::move(policy));
  for (const replay::Result& result : replay::run<half>(moonstone(), wanted)) {
    EXPECT_EQ(result.error, 0) << result.policy;
    EXPECT_NEAR(result.covered, 1, 1e-12) << result.policy;
    EXPECT_EQ(result.bytes_share, 1) << result.policy;
  }
}

}  // namespace
