// How even the times of tokens are: a token through all layers of a model, again and again. What counts for a reader is
// the slow ones.
//
//   together   all layers take their full steps at the same token, as in the paper
//   turns      they take turns, as a Decoder's layers do
//
// All kinds take each token one after the other, so that all see the same machine.
#include <chrono>
#include <numeric>
#include <variant>

#include "command_line.hpp"

namespace {

using namespace bench;

struct Setting {
  const char* name;
  std::variant<recycled::AlwaysFull, recycled::FixedStride, recycled::QuerySimilarity> schedule;
  bool turns = false;
};

/// Attention layers of a model, each at its own memory, and what each token took.
class Model {
 public:
  virtual ~Model() = default;
  virtual void token(index_t number, recycled::ThreadPool& pool) = 0;
};

template <class Policy>
class ModelOf final : public Model {
 public:
  using Layer = recycled::LayerAttention<recycled::half, Policy>;

  ModelOf(const Case& c, const Memories<recycled::half>& memories, const TurningQuery& query, index_t layers,
          const Policy& policy, bool turns, recycled::ThreadPool& pool)
      : case_(c), memories_(memories), query_(query), out_(static_cast<std::size_t>(c.shape.output_size())) {
    const auto scratch = std::make_shared<recycled::Scratch>();
    for (index_t i = 0; i < layers; ++i) {
      layers_.emplace_back(
          c.shape,
          recycled::LayerOptions{.capacity = c.capacity, .max_length = memories.room(), .layer = turns ? i : 0},
          policy);
      layers_.back().share(scratch);
      layers_.back().observe(query(0), c.length);
      layers_.back().prepare(memories.view(i, c.length), pool);
    }
  }
  void token(index_t number, recycled::ThreadPool& pool) override {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      layers_[i].step(query_(number), memories_.view(static_cast<index_t>(i), case_.length + number), out_, pool);
      benchmark::DoNotOptimize(out_.data());
    }
  }

 private:
  Case case_;
  const Memories<recycled::half>& memories_;
  const TurningQuery& query_;
  std::vector<float> out_;
  std::vector<Layer> layers_;
};

/// Milliseconds of a token.
struct Line {
  std::string name;
  double mean = 0, median = 0, p99 = 0;
};

std::vector<Line> measure(const Case& c, index_t layers, const std::vector<Setting>& settings, index_t tokens) {
  recycled::ThreadPool pool(c.threads);
  const Memories<recycled::half> memories(c, layers);
  const TurningQuery query(c.shape);
  std::vector<std::unique_ptr<Model>> models;
  for (const Setting& setting : settings) {
    models.push_back(std::visit(
        [&](const auto& schedule) -> std::unique_ptr<Model> {
          using Made = ModelOf<std::decay_t<decltype(schedule)>>;
          return std::make_unique<Made>(c, memories, query, layers, schedule, setting.turns, pool);
        },
        setting.schedule));
  }
  std::vector<std::vector<double>> times(settings.size());
  for (index_t t = 1; t <= tokens; ++t) {
    for (std::size_t m = 0; m < models.size(); ++m) {
      const auto start = std::chrono::steady_clock::now();
      models[m]->token(t, pool);
      const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
      times[m].push_back(time.count());
    }
  }
  std::printf("%ld layers, %ld KV heads of %ld, group %ld, %ld positions, K %ld, %d threads, %ld tokens\n",
              static_cast<long>(layers), static_cast<long>(c.shape.kv_heads), static_cast<long>(c.shape.head_dim),
              static_cast<long>(c.shape.group()), static_cast<long>(c.length), static_cast<long>(c.capacity), c.threads,
              static_cast<long>(tokens));
  std::printf("%-34s %10s %10s %10s %10s\n", "", "mean ms", "median", "p99", "p99/mean");
  std::vector<Line> lines;
  for (std::size_t m = 0; m < models.size(); ++m) {
    auto& all = times[m];
    std::sort(all.begin(), all.end());
    const double mean = std::accumulate(all.begin(), all.end(), 0.0) / static_cast<double>(all.size());
    lines.push_back({settings[m].name, mean, median(all), all[all.size() * 99 / 100]});
    std::printf("%-34s %10.2f %10.2f %10.2f %10.2f\n", settings[m].name, mean, lines.back().median, lines.back().p99,
                lines.back().p99 / mean);
  }
  return lines;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = command_line(argc, argv);
  const recycled::FixedStride stride{10};
  const recycled::QuerySimilarity similarity{5, 0.85F};
  const std::vector<Line> lines = measure({{32, 8, 128, 128}, 8192, 1024, 2}, 32,
                                          {{"full", recycled::AlwaysFull{}},
                                           {"FixedStride{10}, together", stride, false},
                                           {"FixedStride{10}, turns", stride, true},
                                           {"QuerySimilarity{5, .85}, together", similarity, false},
                                           {"QuerySimilarity{5, .85}, turns", similarity, true}},
                                          400);
  options.json.write([&](std::ostream& json) {
    const char* separator = "[\n";
    for (const Line& line : lines) {
      json << separator << R"( {"name": ")" << line.name << R"(", "mean_ms": )" << line.mean << R"(, "median_ms": )"
           << line.median << R"(, "p99_ms": )" << line.p99 << R"(, "isa": ")" << Isa::name << R"(", "cpu": ")"
           << cpu_name() << "\"}";
      separator = ",\n";
    }
    json << "\n]\n";
  });
}
