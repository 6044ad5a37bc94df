// What the programs that compare with peers share: options, the peers, the JSON.
#pragma once

#include <fstream>
#include <memory>
#include <regex>

#include "peer.hpp"
#include "table.hpp"

namespace bench {

template <class T>
constexpr const char* type_name = "f32";
template <>
constexpr const char* type_name<recycled::half> = "f16";
template <>
constexpr const char* type_name<recycled::bfloat16> = "bf16";
template <>
constexpr const char* type_name<recycled::q8_0> = "q8_0";

/// What --only is matched against.
template <class T>
std::string id(const Case& c) {
  return std::string(type_name<T>) + "/dim:" + std::to_string(c.shape.head_dim) +
         "/kv_heads:" + std::to_string(c.shape.kv_heads) + "/group:" + std::to_string(c.shape.group()) +
         "/L:" + std::to_string(c.length) + "/K:" + std::to_string(c.capacity) +
         "/threads:" + std::to_string(c.threads) + (c.position_major ? "/position_major" : "/head_major");
}

struct Options {
  std::regex only{""};
  std::string json;   ///< a file, or nothing
  std::string peers;  ///< the folder of their programs, or nothing
};

/// Reads --only REGEX, --json FILE and --peers FOLDER; hands Google Benchmark the rest.
inline Options command_line(int argc, char** argv) {
  Options options;
  std::string interleaved = "--benchmark_enable_random_interleaving=true";
  std::vector<char*> rest{argv[0], interleaved.data()};
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = i + 1 < argc;
    if (argument == "--only" && has_value) {
      options.only = argv[++i];
    } else if (argument == "--json" && has_value) {
      options.json = argv[++i];
    } else if (argument == "--peers" && has_value) {
      options.peers = argv[++i];
    } else {
      rest.push_back(argv[i]);
    }
  }
  int count = static_cast<int>(rest.size());
  benchmark::Initialize(&count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(count, rest.data())) std::exit(2);
  std::printf("%s, %s\n", cpu_name().c_str(), Isa::name);
  return options;
}

inline void save(const Options& options, const std::vector<Row>& rows) {
  if (options.json.empty()) return;
  std::ofstream stream(options.json);
  write_json(stream, rows);
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
        return peer->prepare(request(layout, type)) || (type == "q8_0" && peer->prepare(request(layout, "int8")));
      };
      const bool as_wanted = prepare(position_major);
      if (!as_wanted && !prepare(!position_major)) continue;
      position_major_[peer->name()] = as_wanted == position_major;
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
      result.push_back({peer->name(), like.type, like.setting, like.bytes, like.flops, found->second});
      result.back().setting.position_major = position_major_.at(peer->name());
    }
    return result;
  }

 private:
  std::vector<std::unique_ptr<Peer>> peers_;
  std::map<std::string, bool> position_major_;  // the layout that each ran in last
};

}  // namespace bench
