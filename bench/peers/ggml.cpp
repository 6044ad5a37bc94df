// ggml as a peer: the protocol of README.md on stdin and stdout.
#include <chrono>
#include <ctime>
#include <iostream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <thread>

#include "ggml_attention.hpp"

namespace {

using peer::Problem;
using peer::Unsupported;

template <class T>
T read(std::istream& line, const char* what, T least) {
  T value{};
  if (!(line >> value) || value < least) throw Unsupported(std::string("cannot read ") + what);
  return value;
}

ggml_type read_type(std::istream& line) {
  static const std::map<std::string, ggml_type> types = {
      {"f32", GGML_TYPE_F32}, {"f16", GGML_TYPE_F16}, {"bf16", GGML_TYPE_BF16}, {"q8_0", GGML_TYPE_Q8_0}};
  std::string name;
  line >> name;
  const auto found = types.find(name);
  if (found == types.end()) throw Unsupported("type " + name);
  return found->second;
}

/// HEAD_DIM KV_HEADS GROUP LENGTH
Problem read_problem(std::istream& line, ggml_type type) {
  Problem problem{.type = type};
  problem.head_dim = read<std::int64_t>(line, "head_dim", 1);
  problem.kv_heads = read<std::int64_t>(line, "kv_heads", 1);
  problem.group = read<std::int64_t>(line, "group", 1);
  problem.length = read<std::int64_t>(line, "length", 1);
  if (problem.head_dim % ggml_blck_size(type) != 0) throw Unsupported("head_dim is no multiple of a block's values");
  return problem;
}

Problem read_decode(std::istream& line) {
  const ggml_type type = read_type(line);
  std::string layout;
  line >> layout;
  if (layout != "head_major" && layout != "position_major") throw Unsupported("layout " + layout);
  Problem problem = read_problem(line, type);
  problem.head_major = layout == "head_major";
  problem.threads = read<int>(line, "threads", 1);
  problem.layers = std::max<std::int64_t>(2, read<std::int64_t>(line, "bytes", 0) / problem.layer_bytes() + 1);
  return problem;
}

Problem read_prefill(std::istream& line) {
  Problem problem = read_problem(line, read_type(line));
  problem.queries = problem.length;
  problem.threads = read<int>(line, "threads", 1);
  return problem;
}

std::string check(std::istream& line) {
  const Problem asked = read_problem(line, read_type(line));
  std::ostringstream answer;
  for (const bool head_major : {true, false}) {
    for (const std::int64_t queries : {std::int64_t{1}, asked.length}) {
      Problem problem = asked;
      problem.head_major = head_major;
      problem.queries = queries;
      problem.threads = 2;
      const auto [difference, largest] = peer::Attention(problem).difference();
      answer << (answer.tellp() > 0 ? " " : "") << (queries == 1 ? "decode " : "prefill ") << difference << " of "
             << largest;
    }
  }
  return answer.str();
}

/// Threads go on spinning for a while when their work is done: waits until they sleep.
void wait_until_quiet() {
  int quiet = 0;
  for (int pauses = 0; pauses < 500 && quiet < 3; ++pauses) {
    const std::clock_t before = std::clock();
    std::this_thread::sleep_for(std::chrono::milliseconds(4));
    quiet = std::clock() - before < CLOCKS_PER_SEC / 2500 ? quiet + 1 : 0;
  }
}

double run(peer::Attention& attention, int count) {
  attention.step();  // untimed: wakes the threads
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < count; ++i) attention.step();
  const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
  return time.count() / count;
}

std::string answer(const std::string& request, std::optional<peer::Attention>& attention) {
  std::istringstream line(request);
  std::string command;
  line >> command;
  if (command == "run") {
    const int count = read<int>(line, "count", 1);
    if (!attention) throw Unsupported("nothing to run");
    return std::to_string(run(*attention, count));
  }
  attention.reset();
  if (command == "check") return check(line);
  if (command != "decode" && command != "prefill") throw Unsupported("cannot read: " + request);
  attention.emplace(command == "decode" ? read_decode(line) : read_prefill(line));
  return std::string("ready ggml ") + ggml_version();
}

}  // namespace

int main() {
  std::optional<peer::Attention> attention;
  for (std::string request; std::getline(std::cin, request) && request != "quit";) {
    std::string line;
    try {
      line = answer(request, attention);
    } catch (const std::exception& error) {
      attention.reset();
      line = std::string("unsupported ") + error.what();
    }
    if (attention) attention->rest();
    wait_until_quiet();
    std::cout << line << std::endl;
  }
}
