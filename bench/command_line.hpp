// What the programs that compare with peers share: options, the peers, the JSON.
#pragma once

#include <memory>
#include <regex>

#include "../examples/output_file.hpp"
#include "peer.hpp"
#include "table.hpp"

namespace bench {

template <class T>
const std::string type_name{recycled::type_name<T>};

/// What --only is matched against.
template <class T>
std::string id(const Case& c) {
  return type_name<T> + "/dim:" + std::to_string(c.shape.head_dim) + "/kv_heads:" + std::to_string(c.shape.kv_heads) +
         "/group:" + std::to_string(c.shape.group()) + "/L:" + std::to_string(c.length) +
         "/K:" + std::to_string(c.capacity) + "/threads:" + std::to_string(c.threads) +
         (c.position_major ? "/position_major" : "/head_major");
}

struct Options {
  std::regex only{""};
  examples::OutputFile json;
  std::string peers;  ///< the folder of their programs, or nothing
};

/// Reads --only REGEX, --json FILE and --peers FOLDER; hands Google Benchmark the rest.
inline Options command_line(int argc, char** argv) {
  Options options;
  std::string json;
  std::string interleaved = "--benchmark_enable_random_interleaving=true";
  std::vector<char*> rest{argv[0], interleaved.data()};
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = i + 1 < argc;
    if (argument == "--only" && has_value) {
      options.only = argv[++i];
    } else if (argument == "--json" && has_value) {
      json = argv[++i];
    } else if (argument == "--peers" && has_value) {
      options.peers = argv[++i];
    } else {
      rest.push_back(argv[i]);
    }
  }
  int count = static_cast<int>(rest.size());
  benchmark::Initialize(&count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(count, rest.data())) std::exit(2);
  try {
    options.json = examples::OutputFile(json);
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::exit(2);
  }
  std::printf("%s, %s\n", cpu_name().c_str(), Isa::name);
  return options;
}

/// The peers that are there.
class Peers {
 public:
  explicit Peers(const std::string& folder) {
    for (const char* name : {"ggml", "onnxruntime", "openvino"}) {
      auto peer = std::make_unique<Peer>(name, folder + "/" + name);
      if (peer->running()) {
        peers_.push_back(std::move(peer));
      } else {
        std::printf("peer %s is not there: its column stays empty\n", name);
      }
    }
  }

  /// Adds to `group` every peer that can do one of request(position_major, type): in the layout wanted, else in the
  /// one that it has; q8_0 in the peer's own 8 bits if it has no blocks.
  template <class Request>
  void add(Group& group, const Request& request, const std::string& type, bool position_major) {
    for (const auto& peer : peers_) {
      const auto prepare = [&](bool layout) {
        for (const std::string& one : type == "q8_0" ? std::vector{type, std::string("int8")} : std::vector{type}) {
          if (!peer->prepare(request(layout, one))) continue;
          ran_[peer->name()] = {one, layout};
          return true;
        }
        return false;
      };
      if (!prepare(position_major) && !prepare(!position_major)) continue;
      peer->microseconds(1);
      const double once = peer->microseconds(1);
      if (once <= 0) continue;
      const long count = std::clamp(static_cast<long>(60e3 / once), 1L, 10000L);
      group.add_timed(peer->name(), [&peer, count] { return peer->microseconds(count); });
    }
  }
  /// Notes how many times faster `row` is than each peer.
  void compare(const Times& times, Row& row) const {
    for (const auto& peer : peers_) {
      const auto found = times.find(peer->name());
      if (found != times.end()) row.times[peer->name()] = median(found->second) / row.median();
    }
  }
  /// Rows of their own.
  std::vector<Row> rows(const Times& times, const Row& like) const {
    std::vector<Row> result;
    for (const auto& peer : peers_) {
      const auto found = times.find(peer->name());
      if (found == times.end()) continue;
      const Ran& ran = ran_.at(peer->name());
      const bool same = ran.type == like.type;  // other types have rows of other sizes
      result.push_back({peer->name(), ran.type, like.setting, like.layout.empty() ? "" : layout(ran.position_major),
                        same ? like.bytes : 0, like.flops, found->second});
    }
    return result;
  }

 private:
  std::vector<std::unique_ptr<Peer>> peers_;
  struct Ran {
    std::string type;
    bool position_major = false;
  };
  std::map<std::string, Ran> ran_;  // how each ran last
};

/// What the rows of a program have in common.
struct Run {
  Run(int argc, char** argv) : options(command_line(argc, argv)), peers(options.peers) {}
  /// Shares are those of the best of the whole run, while the printed ones were those of the best until then.
  void save() {
    for (Row& row : rows) {
      const int threads = row.setting.threads;
      if (row.of_read > 0) row.of_read = row.bytes / row.median() / read(threads);
      if (row.of_fma > 0) row.of_fma = row.flops / row.median() / fma(threads);
      if (row.of_product > 0) row.of_product = row.flops / row.median() / product(threads);
    }
    options.json.write([&](std::ostream& stream) { write_json(stream, rows); });
  }

  Options options;
  Peers peers;
  std::vector<Row> rows;
  Best read, fma, product;  ///< of the machine
};

}  // namespace bench
