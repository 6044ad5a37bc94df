// Layers of any shape, type, layout, option and schedule against the oracle, a new one for every case.
#include <map>

#include "stress/life.hpp"

namespace {

using namespace recycled;
using reference::at, reference::index_t, reference::Random, reference::Rows;
using stress::any_of;

using Kinds = std::map<StepKind, long>;

/// A layer, rows that it may read and the steps that it takes.
template <Scalar T, Scalar R>
class Case {
 public:
  explicit Case(Random& random)
      : random_(random),
        shape_(any_shape()),
        attention_(any_attention()),
        prompt_(random.between(1, any_of<index_t>(random, {3, 60, 60, 200}))),
        cache_(Cache::random(shape_, prompt_ + steps, random, any_layout())),
        layer_(reference::make_layer<T, R>(shape_, any_options(), stress::Life<T, R>::any_schedule(random),
                                           TopK{.pool = any_of<index_t>(random, {1, 1, 3, 7})})) {
    for (index_t g = 0; g < shape_.kv_heads; ++g) {
      keys_.push_back(cache_.keys(g));
      values_.push_back(cache_.values(g));
    }
  }

  /// Counts in `compared` the steps of a KV head whose outputs were compared.
  void run(Kinds& compared) {
    if (random_.between(0, 2) > 0) layer_->observe(query(random_.between(1, prompt_)), prompt_);
    for (index_t length = prompt_ + 1; length <= prompt_ + steps && !testing::Test::HasFailure(); ++length)
      step(length, compared);
  }

 private:
  static constexpr index_t steps = 7;
  using Cache = reference::Cache<T>;

  Shape any_shape() {
    const index_t kv_heads = random_.between(1, 4), block = values_per_element<T>;
    const auto dim = [&] {
      const auto any = any_of<index_t>(random_, {random_.between(1, 20), random_.between(1, 80), 46, 64, 80, 96, 128});
      return (any + block - 1) / block * block;
    };
    Shape shape{kv_heads * any_of<index_t>(random_, {1, 1, 2, 3, 4, 5, 8, 11}), kv_heads, dim()};
    shape.value_dim = random_.between(0, 3) == 0 ? dim() : shape.head_dim;
    return shape;
  }
  AttentionOptions any_attention() {
    AttentionOptions options;
    if (random_.between(0, 3) == 0) options.scale = any_of(random_, {0.02F, 0.5F, 1.0F});
    if (random_.between(0, 3) == 0) options.soft_cap = any_of(random_, {1.0F, 30.0F});
    if (random_.between(0, 2) == 0) {
      options.window = random_.between(1, 90);
      options.sinks = random_.between(0, 5);
    }
    return options;
  }
  LayerOptions any_options() {
    LayerOptions options{.capacity = random_.between(1, prompt_ + 4), .attention = attention_};
    if (random_.between(0, 1) == 0)
      options.sketch = {.coordinates = 4 * random_.between(1, 8), .full_every = random_.between(1, 9)};
    if (random_.between(0, 3) == 0) options.sketch = {.keys = true};
    if (random_.between(0, 1) == 0) options.max_length = prompt_ + steps;
    return options;
  }
  reference::Layout any_layout() {
    return {.position_major = random_.between(0, 1) == 0,
            .padding = any_of<index_t>(random_, {0, 0, 1, 7}),
            .offset = any_of<index_t>(random_, {0, 0, 1, 3}),
            .room = random_.between(0, 3),
            .page = any_of<index_t>(random_, {0, 0, 1, 16, 33})};
  }
  std::vector<float> query(index_t tokens) {
    return random_.row(tokens * shape_.query_size(), any_of(random_, {0.1F, 1.0F, 1.0F, 6.0F}));
  }

  void step(index_t length, Kinds& compared) {
    const KvView<T> view = cache_.view(length);
    // What a step chooses ahead of itself, behind a prompt, only prepare() shows: to the layer, or to a copy of it.
    const auto copy = random_.between(0, 1) == 0 ? nullptr : layer_->copy();
    reference::AnyLayer<T>& prepared = copy ? *copy : *layer_;
    prepared.prepare(view, pool_);
    std::vector<std::vector<index_t>> held;
    for (index_t g = 0; g < shape_.kv_heads; ++g) held.push_back(prepared.recycled_positions(g));
    const std::vector<float> asked = query(1);
    std::vector<float> out(at(shape_.query_heads * shape_.value_dim));
    layer_->step(asked, view, out, pool_);
    const std::vector<index_t> visible = reference::seen_by(length - 1, attention_);
    for (index_t g = 0; g < shape_.kv_heads; ++g) {
      const StepKind kind = layer_->last_step(g);
      std::vector<index_t> read = visible;
      if (kind == StepKind::sketched) read = layer_->recycled_positions(g);
      if (kind == StepKind::recycled) {
        read = held[at(g)];
        read.push_back(length - 1);
        std::erase_if(read, [&](index_t p) { return !std::binary_search(visible.begin(), visible.end(), p); });
      }
      // A set from which nothing is missing is read where it came from, unrounded.
      const bool rounded = kind == StepKind::sketched || (kind == StepKind::recycled && read.size() < visible.size());
      compare(g, asked, out, read, rounded);
      ++compared[kind];
    }
  }
  void compare(index_t g, const std::vector<float>& asked, const std::vector<float>& out,
               const std::vector<index_t>& read, bool rounded) {
    Rows keys(keys_[at(g)].size()), values(keys.size());
    for (const index_t p : read) {
      const auto row = [&](const Rows& rows) {
        if constexpr (std::same_as<T, R>) return rows[at(p)];
        return rounded ? reference::rounded<R>(rows[at(p)]) : rows[at(p)];
      };
      keys[at(p)] = row(keys_[at(g)]);
      values[at(p)] = row(values_[at(g)]);
    }
    values[0].resize(at(shape_.value_dim));
    for (index_t h = g * shape_.group(); h < (g + 1) * shape_.group(); ++h) {
      const std::span<const float> one(asked.data() + h * shape_.head_dim, at(shape_.head_dim));
      ASSERT_TRUE(reference::near({out.data() + h * shape_.value_dim, at(shape_.value_dim)},
                                  reference::attend(one, keys, values, read, attention_)))
          << "query head " << h;
    }
  }

  Random& random_;
  Shape shape_;
  AttentionOptions attention_;
  index_t prompt_;
  Cache cache_;
  std::unique_ptr<reference::AnyLayer<T>> layer_;
  ThreadPool pool_{1};
  std::vector<Rows> keys_, values_;  // of each KV head
};

template <Scalar T, Scalar R = T>
void run_cases(const char* types) {
  const long wanted = stress::effort(600);
  Kinds compared;
  const auto all = [&] {
    return compared[StepKind::full] + compared[StepKind::recycled] + compared[StepKind::sketched];
  };
  long layers = 0;
  for (; all() < wanted && !testing::Test::HasFailure(); ++layers) {
    const std::uint64_t seed = stress::seed() * 1000003 + static_cast<std::uint64_t>(layers);
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    Case<T, R>(random).run(compared);
  }
  for (const auto& [kind, count] : compared) EXPECT_GT(count, wanted / 20) << static_cast<int>(kind);
  if (testing::Test::HasFailure()) return;
  stress::report(std::string("differential, ") + types, std::to_string(all()) + " steps of KV heads of " +
                                                            std::to_string(layers) + " layers within the bound");
}

TEST(Differential, Float) { run_cases<float>("f32"); }
TEST(Differential, Half) { run_cases<half>("f16"); }
TEST(Differential, Bfloat16) { run_cases<bfloat16>("bf16"); }
TEST(Differential, Q8) { run_cases<q8_0>("q8_0"); }
TEST(Differential, FloatAsHalf) { run_cases<float, half>("f32 as f16"); }

}  // namespace
