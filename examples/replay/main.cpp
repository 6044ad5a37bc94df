// replay: full attention and each schedule over a trace of real activations, compared in one table.
#include <iostream>

#include "../output_file.hpp"
#include "command_line.hpp"
#include "progress_bar.hpp"
#include "replay.hpp"
#include "report.hpp"

namespace {

using examples::OutputFile;
using replay::CommandLine, replay::Result, replay::Trace;

std::vector<Result> run(const std::string& type, const Trace& trace, const replay::Options& options) {
  replay::ProgressBar bar;
  const auto progress = [&bar](auto done, auto total) { bar(done, total); };
  using recycled::half, recycled::bfloat16, recycled::q8_0;
  if (type == "f32") return replay::run<float>(trace, options, progress);
  if (type == "f16") return replay::run<half>(trace, options, progress);
  if (type == "bf16") return replay::run<bfloat16>(trace, options, progress);
  if (type == "q8_0") return replay::run<q8_0>(trace, options, progress);
  if (type == "f32/f16") return replay::run<float, half>(trace, options, progress);
  if (type == "q8_0/f16") return replay::run<q8_0, half>(trace, options, progress);
  throw std::invalid_argument("--type = " + type + ", expected f32, f16, bf16, q8_0, f32/f16 or q8_0/f16");
}

void replay_trace(const CommandLine& line) {
  const Trace trace = replay::load_trace(line.trace, line.layer);
  const OutputFile json(line.json);
  const OutputFile steps(line.steps);
  const std::vector<Result> results = run(line.type, trace, line.replay);
  std::cout << line.trace << ", layer " << line.layer << ": " << trace.shape.query_heads << " query heads, "
            << trace.shape.kv_heads << " KV heads of " << trace.shape.head_dim << ", " << line.type << "; "
            << line.replay.prompt << " prompt tokens, " << results[0].steps.size() << " decoded, capacity "
            << line.replay.capacity << ", " << line.replay.threads << (line.replay.threads > 1 ? " threads" : " thread")
            << "\n\n";
  replay::print_table(std::cout, results);
  json.write([&](std::ostream& stream) { replay::write_json(stream, results); });
  steps.write([&](std::ostream& stream) { replay::write_steps(stream, results); });
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const CommandLine line = replay::parse({argv + 1, static_cast<std::size_t>(argc - 1)});
    if (line.help) {
      std::cout << replay::usage;
    } else {
      replay_trace(line);
    }
    return 0;
  } catch (const std::bad_alloc&) {
    std::cerr << "replay: not enough memory for this trace, capacity and type\n";
  } catch (const std::exception& error) {
    std::cerr << "replay: " << error.what() << '\n';
  }
  return 1;
}
