// What Google Benchmark measures, as rows: medians over interleaved repetitions, ratios to what was measured beside
// them, a printed table and JSON.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdio>
#include <functional>
#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "host.hpp"

namespace bench {

/// Microseconds of every repetition, ascending, by the name of what was measured.
using Times = std::map<std::string, std::vector<double>>;
inline double median(const std::vector<double>& sorted) { return sorted.empty() ? 0 : sorted[sorted.size() / 2]; }

/// One line of the table.
struct Row {
  std::string name;  ///< full, recycled, ..., or a peer's
  std::string type;
  Case setting;
  std::string layout;                        ///< head_major or position_major; empty: the engine's own
  double bytes = 0;                          ///< of KV memory a step reads; 0: unknown
  double flops = 0;                          ///< of a step
  std::vector<double> us;                    ///< of each repetition, ascending
  double of_read = 0;                        ///< bytes a second over those that the same threads can read
  double of_fma = 0;                         ///< operations a second over those that the same threads can do
  double of_product = 0;                     ///< ... over those of Eigen's matrix product
  std::map<std::string, double> times = {};  ///< how many times faster than each peer

  double median() const { return bench::median(us); }
  /// Half of what lies between the quartiles, as a share of the median.
  double spread() const { return us.empty() ? 0 : (us[us.size() * 3 / 4] - us[us.size() / 4]) / 2 / median(); }
  double gbps() const { return bytes / median() * 1e-3; }
  /// How many times faster than `peer`; 0 if that is not known.
  double faster_than(const std::string& peer) const {
    const auto found = times.find(peer);
    return found == times.end() ? 0 : found->second;
  }
};

/// Benchmarks whose repetitions take turns, so that all see the same machine.
class Group {
 public:
  static constexpr int repetitions = 7;

  /// Measures `step`, which is called as often as it takes.
  void add(const std::string& name, std::function<void()> step) {
    benchmark::RegisterBenchmark(name.c_str(),
                                 [step = std::move(step)](benchmark::State& state) {
                                   for (auto _ : state) step();
                                 })
        ->UseRealTime()
        ->MinTime(0.06)
        ->Repetitions(repetitions)
        ->Unit(benchmark::kMicrosecond);
  }
  /// Takes the word of `measure`: microseconds; 0 if it failed, which counts as not measured.
  void add_timed(const std::string& name, std::function<double()> measure) {
    benchmark::RegisterBenchmark(name.c_str(),
                                 [measure = std::move(measure)](benchmark::State& state) {
                                   for (auto _ : state) state.SetIterationTime(measure() * 1e-6);
                                 })
        ->UseManualTime()
        ->Iterations(1)
        ->Repetitions(repetitions)
        ->Unit(benchmark::kMicrosecond);
  }
  Times run() {
    Collector collector;
    benchmark::RunSpecifiedBenchmarks(&collector);
    benchmark::ClearRegisteredBenchmarks();
    for (auto& [name, times] : collector.us) std::sort(times.begin(), times.end());
    return collector.us;
  }

 private:
  struct Collector : benchmark::BenchmarkReporter {
    Times us;
    bool ReportContext(const Context& /*context*/) override { return true; }
    void ReportRuns(const std::vector<Run>& runs) override {
      for (const Run& run : runs) {
        const double time = run.GetAdjustedRealTime();
        if (run.run_type == Run::RT_Iteration && time > 0) us[run.run_name.function_name].push_back(time);
      }
    }
  };
};

/// The best rate of a run so far, by the number of threads: what the machine does worse for a while, it does worse for
/// everybody.
class Best {
 public:
  double operator()(int threads, double rate = 0) {
    double& best = rates_[threads];
    return best = std::max(best, rate);
  }

 private:
  std::map<int, double> rates_;
};

inline std::string layout(bool position_major) { return position_major ? "position_major" : "head_major"; }

/// A number as the table prints it: what is 0 is not known.
inline std::string known(const char* format, double x) {
  char text[32] = "-";
  if (x > 0) std::snprintf(text, sizeof text, format, x);
  return text;
}
inline std::string ratio(const Row& row, const std::string& peer) { return known("%.2f", row.faster_than(peer)); }

inline void print_header() {
  std::printf("%-13s %-5s %4s %3s %3s %7s %6s %2s %-4s %10s %6s %6s %6s %6s %7s %7s %7s\n", "name", "type", "dim", "kv",
              "grp", "L", "K", "t", "rows", "us", "+-", "GB/s", "read", "FMA", "x ggml", "x ORT", "x OV");
}

inline void print(const Row& row) {
  const Case& c = row.setting;
  std::printf("%-13s %-5s %4ld %3ld %3ld %7ld %6ld %2d %-4s %10.1f %5.1f%% %6s %6s %6s %7s %7s %7s\n", row.name.c_str(),
              row.type.c_str(), static_cast<long>(c.shape.head_dim), static_cast<long>(c.shape.kv_heads),
              static_cast<long>(c.shape.group()), static_cast<long>(c.length), static_cast<long>(c.capacity), c.threads,
              row.layout == "position_major" ? "phd" : "hpd", row.median(), 100 * row.spread(),
              known("%.1f", row.gbps()).c_str(), known("%.0f%%", 100 * row.of_read).c_str(),
              known("%.0f%%", 100 * row.of_fma).c_str(), ratio(row, "ggml").c_str(), ratio(row, "onnxruntime").c_str(),
              ratio(row, "openvino").c_str());
  std::fflush(stdout);
}

/// An array with an object a row; what wasn't measured is null.
inline void write_json(std::ostream& stream, const std::vector<Row>& rows) {
  const auto number = [](double x) { return x > 0 ? std::to_string(x) : std::string("null"); };
  stream << "[";
  const char* separator = "\n";
  for (const Row& row : rows) {
    const Case& c = row.setting;
    stream << separator << R"( {"name": ")" << row.name << R"(", "type": ")" << row.type << R"(", "head_dim": )"
           << c.shape.head_dim << R"(, "kv_heads": )" << c.shape.kv_heads << R"(, "group": )" << c.shape.group()
           << R"(, "length": )" << c.length << R"(, "capacity": )" << c.capacity << R"(, "threads": )" << c.threads
           << R"(, "layout": )" << (row.layout.empty() ? "null" : '"' + row.layout + '"') << R"(, "us": )"
           << number(row.median()) << R"(, "us_spread": )" << number(row.spread() * row.median()) << R"(, "gbps": )"
           << number(row.gbps()) << R"(, "of_read_bandwidth": )" << number(row.of_read) << R"(, "of_fma_peak": )"
           << number(row.of_fma) << R"(, "of_product": )" << number(row.of_product) << R"(, "x_ggml": )"
           << number(row.faster_than("ggml")) << R"(, "x_ort": )" << number(row.faster_than("onnxruntime"))
           << R"(, "x_openvino": )" << number(row.faster_than("openvino")) << R"(, "isa": ")" << Isa::name
           << R"(", "cpu": ")" << cpu_name() << "\"}";
    separator = ",\n";
  }
  stream << "\n]\n";
}

}  // namespace bench
