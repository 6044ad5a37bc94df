// The options of the program replay.
#pragma once

#include <functional>
#include <map>
#include <span>

#include "results.hpp"

namespace replay {

inline constexpr const char* usage =
    R"(replay: what recycled attention reads, loses and gains on a trace of real activations

usage: replay --trace DIR --layer N --prompt P --capacity K [option...]     (defaults in brackets)

  --trace DIR       folder of layerNN_queries.npy, layerNN_keys.npy and layerNN_values.npy, float16 or float32,
                    each [token, head, dim]; queries may be those of the last tokens only
  --layer N         which layer, 0 to 99
  --prompt P        tokens in the cache before decoding begins; the last one chooses the first recycle cache
  --capacity K      positions that the recycle cache keeps for each KV head
  --schedule LIST   policies, separated by commas: always, never, fixed-stride:STRIDE,
                    query-similarity:STRIDE:THRESHOLD, self-calibrating, self-calibrating:LATE,
                    budgeted:SHARE; with :sketch behind any of the last five refreshes read a sketch of the
                    keys, with :keys the keys and of the values only those that they choose; with @K behind
                    that the policy has a capacity of its own, as self-calibrating:0.5:sketch@256. Baselines, never refreshed: snapkv, sliding-window,
                    streaming-llm, h2o, keyformer; :WINDOW behind snapkv, h2o and keyformer: so many of the
                    prompt's last queries choose (32), as far as the trace has them; h2o:4096 of a prompt of
                    4096 tokens is what H2O does
                    (never,fixed-stride:10,query-similarity:5:0.85)
  --type TYPE       KV type: f32, f16, bf16 or q8_0, or f32/f16 or q8_0/f16, where rows are recycled as f16 (f16)
  --tokens N        decode steps (all that follow the prompt)
  --threads N       threads (1)
  --json FILE       write the table as JSON, an object a policy
  --steps FILE      write every step as CSV: policy,step,full_heads,error,microseconds
  --help            this text
)";

struct CommandLine {
  std::string trace;
  index_t layer = -1;
  std::string type = "f16";
  std::string json;
  std::string steps;
  bool help = false;
  Options replay;
};

/// Throws std::invalid_argument that names the option, its value and what was expected.
inline CommandLine parse(std::span<const char* const> arguments) {
  CommandLine line;
  std::string schedules = "never,fixed-stride:10,query-similarity:5:0.85";
  const auto text = [](std::string& target) {
    return [&target](const std::string& /*name*/, const std::string& value) { target = value; };
  };
  const auto number = [](auto& target, index_t least, index_t most) {
    return [&target, least, most](const std::string& name, const std::string& value) {
      const auto given = parse_number<index_t>(name, value);
      if (given < least || given > most) {
        throw std::invalid_argument(name + " = " + value + ", expected " + std::to_string(least) + " to " +
                                    std::to_string(most));
      }
      target = static_cast<std::remove_reference_t<decltype(target)>>(given);
    };
  };
  constexpr index_t most = index_t{1} << 40;
  const std::map<std::string, std::function<void(const std::string&, const std::string&)>> options{
      {"--trace", text(line.trace)},
      {"--layer", number(line.layer, 0, 99)},
      {"--prompt", number(line.replay.prompt, 1, most)},
      {"--capacity", number(line.replay.capacity, 1, most)},
      {"--schedule", text(schedules)},
      {"--type", text(line.type)},
      {"--tokens", number(line.replay.tokens, 1, most)},
      {"--threads", number(line.replay.threads, 1, 1024)},
      {"--json", text(line.json)},
      {"--steps", text(line.steps)},
  };
  for (std::size_t i = 0; i < arguments.size(); i += 2) {
    const std::string name = arguments[i];
    if (name == "--help" || name == "-h") {
      line.help = true;
      return line;
    }
    const auto option = options.find(name);
    if (option == options.end()) throw std::invalid_argument("unknown option " + name + "; --help lists them");
    if (i + 1 == arguments.size()) throw std::invalid_argument(name + " needs a value");
    option->second(name, arguments[i + 1]);
  }
  const auto need = [](bool given, const char* name) {
    if (!given) throw std::invalid_argument(std::string(name) + " is missing; --help says what it is");
  };
  need(!line.trace.empty(), "--trace");
  need(line.layer >= 0, "--layer");
  need(line.replay.prompt > 0, "--prompt");
  need(line.replay.capacity > 0, "--capacity");
  line.replay.schedules = parse_schedules(schedules);
  return line;
}

}  // namespace replay
