// How far logits are from those of stock llama.cpp, over a text that is given to the model token by token.
//
// usage: agreement MODEL PLUGIN TEXT --context N --tokens N [--schedules LIST] [--capacity K] [--json FILE]
// A schedule of the list may have a capacity of its own behind an @.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <numeric>

#include "../../output_file.hpp"
#include "arguments.hpp"
#include "reading.hpp"

namespace {

using namespace host;

struct Line {
  std::string name;
  double nmse = 0, worst_nmse = 0, kl = 0, same_choice = 0;
  double milliseconds = 0, p99 = 0;  // of a token
  double bytes = 1;                  // of rows and sketches, of those that exact attention reads
};

Line compare(const std::string& name, Followed followed, const Logits& expected, double bytes = 1) {
  const Logits& actual = followed.logits;
  std::vector<double>& times = followed.milliseconds;
  Line line{name};
  line.bytes = bytes;
  std::sort(times.begin(), times.end());
  line.milliseconds = std::accumulate(times.begin(), times.end(), 0.0) / static_cast<double>(times.size());
  line.p99 = times[times.size() * 99 / 100];
  const auto count = static_cast<double>(actual.size());
  const auto choice = [](const std::vector<float>& row) {
    return std::max_element(row.begin(), row.end()) - row.begin();
  };
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double error = nmse(actual[i], expected[i]);
    line.nmse += error / count;
    line.worst_nmse = std::max(line.worst_nmse, error);
    line.kl += divergence(actual[i], expected[i]) / count;
    line.same_choice += (choice(actual[i]) == choice(expected[i]) ? 1 : 0) / count;
  }
  std::printf("%-28s %9.2e %9.2e %9.2e %6.1f %% %6.1f %% %8.1f %8.2f\n", name.c_str(), line.nmse, line.worst_nmse,
              line.kl, 100 * line.same_choice, 100 * line.bytes, line.milliseconds, line.p99 / line.milliseconds);
  std::fflush(stdout);
  return line;
}

void run(const Words& words, Options& options) {
  const int context = number("--context", options["--context"], 1), count = number("--tokens", options["--tokens"], 1);
  const examples::OutputFile json(options["--json"]);
  const Model model = load_model(words[0]);
  Plugin plugin(words[1]);
  const Tokens text = tokens_of(model.get(), words[2], context + count);
  Settings settings{.positions = static_cast<unsigned>((context + count + 255) / 256 * 256)};
  const auto stock = [&](bool flash_attention) {
    settings.flash_attention = flash_attention;
    const Context made = make_context(model.get(), settings);
    read_prompt(made.get(), text, 0, context);
    return follow(made.get(), text, context, context + count, [] {});
  };
  std::printf("%d tokens behind %d; of logits against stock without flash attention:\n", count, context);
  std::printf("%-28s %9s %9s %9s %8s %8s %8s %8s\n", "", "NMSE", "worst", "KL", "same", "bytes", "ms", "p99/mean");
  const Logits expected = stock(false).logits;
  std::vector<Line> lines{compare("stock, flash attention", stock(true), expected)};

  plugin.turn(true);
  settings.flash_attention = true;
  const Context ours = make_context(model.get(), settings);
  read_prompt(ours.get(), text, 0, context);
  for (const std::string& schedule : split(options["--schedules"])) {
    rewind(ours.get(), context);
    set_policy(plugin, schedule, options["--capacity"]);
    const recycled_ggml_statistics before = plugin.statistics();
    Followed followed = follow(ours.get(), text, context, context + count, [] {});
    const recycled_ggml_statistics after = plugin.statistics();
    const auto full = static_cast<double>(after.bytes_full - before.bytes_full);
    const double bytes = full > 0 ? static_cast<double>(after.bytes_read - before.bytes_read) / full : 1;
    lines.push_back(compare(schedule, std::move(followed), expected, bytes));
  }

  json.write([&](std::ostream& stream) {
    for (std::size_t i = 0; i < lines.size(); ++i) {
      const Line& line = lines[i];
      stream << (i == 0 ? "[" : ",\n ") << "{\"model\": \"" << std::filesystem::path(words[0]).filename().string()
             << "\", \"name\": \"" << line.name << "\", \"context\": " << context << ", \"tokens\": " << count
             << ", \"nmse\": " << line.nmse << ", \"worst_nmse\": " << line.worst_nmse << ", \"kl\": " << line.kl
             << ", \"same_choice\": " << line.same_choice << ", \"bytes\": " << line.bytes
             << ", \"ms\": " << line.milliseconds << ", \"p99_ms\": " << line.p99 << "}";
    }
    stream << "]\n";
  });
}

}  // namespace

int main(int argc, char** argv) {
  return program(
      argc, argv,
      "agreement MODEL PLUGIN TEXT [--context N] [--tokens N] [--schedules LIST] [--capacity K] [--json FILE]", 3,
      {{"--context", "1024"},
       {"--tokens", "64"},
       {"--schedules",
        "exact,fixed-stride:10,query-similarity:5:0.85,self-calibrating,self-calibrating:0.5:sketch@1/16"},
       {"--capacity", "1/8"},
       {"--json", ""}},
      run);
}
