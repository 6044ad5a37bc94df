// What policies lose on texts: perplexity, and how far the distribution of the next token is from that of full
// attention, beside what they read and how long a token takes.
//
// usage: quality MODEL PLUGIN NAME=FILE... [--contexts LIST] [--tokens N] [--policies LIST] [--capacity K]
//                [--threads N] [--json FILE]
// A policy is a schedule of the plugin, and may have a capacity of its own behind an @.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <numeric>

#include "../../output_file.hpp"
#include "arguments.hpp"
#include "progress.hpp"
#include "reading.hpp"

namespace {

using namespace host;

struct Line {
  std::string text, policy;
  int context = 0;
  double perplexity = 0, full_perplexity = 0;
  double kl_mean = 0, kl_median = 0, kl_p95 = 0, kl_worst = 0;  // nats; worst: the mean of the worst 5 %
  double kl_quarters[4] = {};                                   // mean of each quarter of the tokens
  double rows = 1, bytes_share = 1;                             // of what full attention reads, in layers that recycle
  double ms = 0, full_ms = 0;                                   // of a token
};

double mean(const double* begin, const double* end) {
  return std::accumulate(begin, end, 0.0) / static_cast<double>(end - begin);
}

/// -log of the probability that logits give to a token.
double surprise(const std::vector<float>& logits, llama_token token) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x - largest));
  return std::log(sum) - static_cast<double>(logits[static_cast<std::size_t>(token)] - largest);
}

/// `text` goes one token further than what was followed from `begin` on.
double perplexity(const Logits& logits, const Tokens& text, int begin) {
  double sum = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    sum += surprise(logits[i], text[static_cast<std::size_t>(begin) + i + 1]);
  }
  return std::exp(sum / static_cast<double>(logits.size()));
}

void compare(const Followed& followed, const Followed& full, Line& line) {
  std::vector<double> kl;
  for (std::size_t i = 0; i < full.logits.size(); ++i) {
    const double one = divergence(followed.logits[i], full.logits[i]);
    kl.push_back(one == one ? std::max(one, 0.0) : std::numeric_limits<double>::infinity());
  }
  const auto at = [&](std::size_t quarter) { return kl.data() + kl.size() * quarter / 4; };
  for (std::size_t q = 0; q < 4; ++q) line.kl_quarters[q] = mean(at(q), at(q + 1));
  line.kl_mean = mean(at(0), at(4));
  std::sort(kl.begin(), kl.end());
  line.kl_median = kl[kl.size() / 2];
  line.kl_p95 = kl[kl.size() * 95 / 100];
  line.kl_worst = mean(kl.data() + kl.size() * 95 / 100, kl.data() + kl.size());
  // Without the first token's, which also chooses a first set and makes a sketch: that belongs to the prompt.
  line.ms = mean(followed.milliseconds.data() + 1, followed.milliseconds.data() + followed.milliseconds.size());
}

void print(const Line& line) {
  std::printf("%-14s %6d %-32s %8.3f %8.4f %8.4f %8.4f %6.1f %% %6.1f %% %7.1f\n", line.text.c_str(), line.context,
              line.policy.c_str(), line.perplexity, line.kl_mean, line.kl_median, line.kl_worst, 100 * line.rows,
              100 * line.bytes_share, line.ms);
  std::fflush(stdout);
}

void write(const examples::OutputFile& file, const std::string& model, const std::vector<Line>& lines) {
  file.write([&](std::ostream& json) {
    const char* separator = "[";
    for (const Line& line : lines) {
      const auto field = [&](const char* name, double x) {
        json << ", \"" << name << "\": " << examples::JsonNumber{x};
      };
      json << separator << "{\"model\": \"" << model << "\", \"text\": \"" << line.text
           << "\", \"context\": " << line.context << ", \"policy\": \"" << line.policy << '"';
      field("perplexity", line.perplexity);
      field("full_perplexity", line.full_perplexity);
      field("kl_mean", line.kl_mean);
      field("kl_median", line.kl_median);
      field("kl_p95", line.kl_p95);
      field("kl_worst", line.kl_worst);
      json << ", \"kl_quarters\": [";
      for (std::size_t q = 0; q < 4; ++q) json << (q == 0 ? "" : ", ") << examples::JsonNumber{line.kl_quarters[q]};
      json << ']';
      field("rows", line.rows);
      field("bytes_share", line.bytes_share);
      field("ms", line.ms);
      field("full_ms", line.full_ms);
      json << '}';
      separator = ",\n ";
    }
    json << "]\n";
  });
}

void run(const Words& words, Options& options) {
  std::vector<int> contexts;
  for (const std::string& context : split(options["--contexts"])) {
    contexts.push_back(number("--contexts", context, last_queries + 1));
  }
  std::sort(contexts.begin(), contexts.end());
  const int count = number("--tokens", options["--tokens"], 4), longest = contexts.back() + count + 1;
  const Words policies = split(options["--policies"]);
  const examples::OutputFile json(options["--json"]);
  const Model model = load_model(words[0]);
  Plugin plugin(words[1]);
  plugin.turn(true);
  plugin.set("from", "0");
  const Settings settings{.positions = static_cast<unsigned>((longest + 255) / 256 * 256),
                          .threads = number("--threads", options["--threads"], 1)};
  const std::string name = std::filesystem::path(words[0]).filename().string();

  std::printf("%s, %d tokens one by one; KL to full attention\n", name.c_str(), count);
  std::printf("%-14s %6s %-32s %8s %8s %8s %8s %8s %8s %7s\n", "text", "behind", "policy", "PPL", "KL mean", "median",
              "worst5%", "rows", "bytes", "ms");
  std::vector<Line> lines;
  Progress progress((words.size() - 2) * contexts.size() * (policies.size() + 1) * static_cast<std::size_t>(count));
  for (auto named = words.begin() + 2; named != words.end(); ++named) {
    const std::size_t equals = named->find('=');
    if (equals == std::string::npos) throw std::runtime_error(*named + ", expected NAME=FILE");
    const Tokens text = tokens_of(model.get(), named->substr(equals + 1), longest);
    const Context context = make_context(model.get(), settings);
    int read = 0;
    for (const int begin : contexts) {
      plugin.set("schedule", "exact");
      rewind(context.get(), read);
      read_prompt(context.get(), text, read, begin);
      read = begin;
      const auto measure = [&](const std::string& policy) {
        read_end(context.get(), plugin, text, begin, policy, options["--capacity"]);
        return follow(context.get(), text, begin, begin + count, [&] { progress.advance(); });
      };
      const Followed full = measure("exact");
      Line exact{.text = named->substr(0, equals), .policy = "full", .context = begin};
      exact.perplexity = exact.full_perplexity = perplexity(full.logits, text, begin);
      compare(full, full, exact);
      exact.full_ms = exact.ms;
      lines.push_back(exact);
      progress.clear();
      print(exact);
      for (const std::string& policy : policies) {
        Line line = exact;
        line.policy = policy;
        const recycled_ggml_statistics before = plugin.statistics();
        const Followed followed = measure(policy);
        const recycled_ggml_statistics after = plugin.statistics();
        compare(followed, full, line);
        line.perplexity = perplexity(followed.logits, text, begin);
        const auto share = [](std::uint64_t part, std::uint64_t of) {
          return of > 0 ? static_cast<double>(part) / static_cast<double>(of) : 1;
        };
        line.rows = share(after.rows_read - before.rows_read, after.rows_full - before.rows_full);
        line.bytes_share = share(after.bytes_read - before.bytes_read, after.bytes_full - before.bytes_full);
        lines.push_back(line);
        progress.clear();
        print(line);
        write(json, name, lines);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  return program(argc, argv,
                 "quality MODEL PLUGIN NAME=FILE... [--contexts LIST] [--tokens N] [--policies LIST] [--capacity K] "
                 "[--threads N] [--json FILE]",
                 3,
                 {{"--contexts", "4096,7168"},
                  {"--tokens", "256"},
                  {"--policies", "fixed-stride:10,query-similarity:10:0.85,self-calibrating"},
                  {"--capacity", "1/8"},
                  {"--threads", "2"},
                  {"--json", ""}},
                 run);
}
