// A conversation's usual life, with the plugin and without: exact attention gives stock llama.cpp's logits at every
// token, and after anything that changes what a recycling layer remembers its next step is a full one.
//
// Stock without flash attention, that is, which sums up in float. With it stock adds values in half, and its logits
// differ more from its own than the plugin's do. Weights should be floats, too: where the host rounds activations to
// 8 bits, a last bit makes a difference of 1e-4.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <random>

#include "host.hpp"

namespace {

using namespace host;

llama_model* model = nullptr;
Plugin* plugin = nullptr;

/// Runs one life of a context, and writes down all logits.
class Chat {
 public:
  /// `schedule`: what is recycled by; empty if nothing is.
  Chat(const Settings& settings, std::string schedule)
      : schedule_(std::move(schedule)), context_(make_context(model, settings)) {}

  const std::vector<std::vector<float>>& logits() const { return logits_; }
  llama_memory_t memory() const { return llama_get_memory(context_.get()); }
  llama_context* context() const { return context_.get(); }
  llama_pos end(llama_seq_id sequence = 0) const { return llama_memory_seq_pos_max(memory(), sequence) + 1; }

  void prompt(llama_pos tokens, llama_seq_id sequence = 0) { several(tokens, sequence, 1); }
  /// Tokens in one batch, such as drafts: all their logits count.
  void batch(llama_pos tokens, llama_seq_id sequence = 0) {
    several(tokens, sequence, static_cast<std::size_t>(tokens));
  }
  /// Tokens one by one.
  void generate(int tokens, llama_seq_id sequence = 0) {
    for (int i = 0; i < tokens; ++i) step({next(sequence)});
  }
  /// A token of each sequence, in one batch.
  void generate_all(int tokens, const std::vector<llama_seq_id>& sequences) {
    for (int i = 0; i < tokens; ++i) mixed(sequences);
  }
  /// Tokens of these sequences, in one batch.
  void mixed(const std::vector<llama_seq_id>& sequences) {
    std::vector<Token> all;
    for (const llama_seq_id sequence : sequences) {
      Token token = next(sequence);
      for (const Token& before : all) token.position += before.sequence == sequence ? 1 : 0;
      all.push_back(token);
    }
    record(decode(context_.get(), all, all.size()));
  }
  /// From here on the layers' memory is out of date: the next token's steps must be full, and give the logits of exact
  /// attention over what the cache now holds.
  void expect_full() { expect_full_ = !schedule_.empty(); }

 private:
  Token next(llama_seq_id sequence) { return {random(), end(sequence), sequence}; }
  llama_token random() {
    return std::uniform_int_distribution<llama_token>(0,
                                                      llama_vocab_n_tokens(llama_model_get_vocab(model)) - 1)(engine_);
  }
  void several(llama_pos tokens, llama_seq_id sequence, std::size_t wanted) {
    std::vector<Token> all;
    for (llama_pos i = 0; i < tokens; ++i) all.push_back({random(), end(sequence) + i, sequence});
    record(decode(context_.get(), all, wanted));
  }
  void record(const std::vector<std::vector<float>>& logits) {
    logits_.insert(logits_.end(), logits.begin(), logits.end());
  }

  void step(const std::vector<Token>& token) {
    if (!expect_full_) return record(decode(context_.get(), token, 1));
    expect_full_ = false;
    const recycled_ggml_statistics before = plugin->statistics();
    const std::vector<float> given = decode(context_.get(), token, 1).front();
    const recycled_ggml_statistics after = plugin->statistics();
    EXPECT_EQ(after.recycled_steps, before.recycled_steps) << "a step recycled what is out of date";
    EXPECT_EQ(after.rows_read - before.rows_read, after.rows_full - before.rows_full) << "a KV head did";
    plugin->set("schedule", "exact");
    llama_memory_seq_rm(memory(), token.front().sequence, token.front().position, -1);
    record(decode(context_.get(), token, 1));
    plugin->set("schedule", schedule_);
    EXPECT_LE(nmse(given, logits_.back()), 1e-9);
  }

  std::string schedule_;
  Context context_;
  std::mt19937 engine_{1};
  bool expect_full_ = false;
  std::vector<std::vector<float>> logits_;
};

using Life = std::function<void(Chat&)>;

Chat run(const Life& life, const Settings& settings, bool with_plugin, const char* schedule = "exact") {
  plugin->turn(with_plugin);
  plugin->set("schedule", schedule);
  Chat chat(settings, with_plugin && std::string(schedule) != "exact" ? schedule : "");
  life(chat);
  plugin->turn(false);
  return chat;
}

void expect_near(const Chat& actual, const Chat& expected, double bound) {
  ASSERT_EQ(actual.logits().size(), expected.logits().size());
  double worst = 0;
  for (std::size_t i = 0; i < actual.logits().size(); ++i) {
    const double error = nmse(actual.logits()[i], expected.logits()[i]);
    ASSERT_LE(error, bound) << "logits " << i;
    worst = std::max(worst, error);
  }
  std::printf("             worst NMSE of logits %.1e\n", worst);
}

/// Stock's logits. A quantised cache it reads with flash attention only.
void expect_stock(const Chat& ours, const Life& life, Settings settings, double bound) {
  settings.flash_attention = ggml_is_quantized(settings.cache);
  expect_near(ours, run(life, settings, false), bound);
}
/// Exact: stock's logits, and all attention was the plugin's.
void expect_exact(const Life& life, const Settings& settings = {}, double bound = 1e-5) {
  const recycled_ggml_statistics before = plugin->statistics();
  const Chat ours = run(life, settings, true);
  const recycled_ggml_statistics after = plugin->statistics();
  EXPECT_GT(after.exact_steps, before.exact_steps);
  EXPECT_GT(after.prefill_tokens, before.prefill_tokens);
  EXPECT_EQ(after.handed_back, before.handed_back);
  EXPECT_EQ(after.recycled_steps, before.recycled_steps);
  expect_stock(ours, life, settings, bound);
}
/// Recycled: Chat::expect_full checks what there is to check; and something was recycled.
recycled_ggml_statistics expect_recycled(const Life& life, const Settings& settings = {},
                                         const char* schedule = "fixed-stride:1000000") {
  const recycled_ggml_statistics before = plugin->statistics();
  run(life, settings, true, schedule);
  recycled_ggml_statistics after = plugin->statistics();
  after.recycled_steps -= before.recycled_steps;
  after.rewritten -= before.rewritten;
  EXPECT_GT(after.recycled_steps, 0U);
  return after;
}

// ---- Lives

void generation(Chat& chat) {
  chat.prompt(400);
  chat.generate(20);
}

void rollback(Chat& chat) {
  generation(chat);
  for (const int tokens : {1, 3, 1, 1, 10}) {
    llama_memory_seq_rm(chat.memory(), 0, chat.end() - tokens, -1);
    chat.expect_full();
    chat.generate(4);
  }
}

void drafts(Chat& chat) {
  generation(chat);
  for (const int rejected : {0, 2, 4, 1}) {
    chat.batch(5);
    llama_memory_seq_rm(chat.memory(), 0, chat.end() - rejected, -1);
    if (rejected > 0) chat.expect_full();
    chat.generate(3);
  }
}

void context_shift(Chat& chat) {
  generation(chat);
  for (const int discarded : {100, 50}) {
    llama_memory_seq_rm(chat.memory(), 0, 10, 10 + discarded);
    llama_memory_seq_add(chat.memory(), 0, 10 + discarded, -1, -discarded);
    chat.expect_full();
    chat.generate(6);
  }
}

/// Positions move and no cell is removed: the mask shows one cell more, as if nothing had happened.
void shift_alone(Chat& chat) {
  generation(chat);
  for (const int by : {9, -5}) {
    llama_memory_seq_add(chat.memory(), 0, 200, -1, by);
    chat.expect_full();
    chat.generate(4);
  }
}

void copy(Chat& chat) {
  generation(chat);
  llama_memory_seq_cp(chat.memory(), 0, 1, -1, -1);
  chat.generate(4, 1);
  chat.generate(4, 0);
  chat.generate_all(4, {0, 1});
  llama_memory_seq_rm(chat.memory(), 0, -1, -1);
  chat.generate(4, 1);
}

/// The copy's target is as long as its source: its next token sees one cell more than its last one did.
void copy_over(Chat& chat) {
  for (const llama_seq_id sequence : {0, 1}) {
    chat.prompt(400, sequence);
    chat.generate(8, sequence);
  }
  llama_memory_seq_rm(chat.memory(), 1, -1, -1);
  llama_memory_seq_cp(chat.memory(), 0, 1, -1, -1);
  chat.expect_full();
  chat.generate(4, 1);
}

void save_and_load(Chat& chat) {
  generation(chat);
  std::vector<std::uint8_t> state(llama_state_get_size(chat.context()));
  llama_state_get_data(chat.context(), state.data(), state.size());
  chat.generate(5);
  llama_state_set_data(chat.context(), state.data(), state.size());
  chat.expect_full();
  chat.generate(5);
}

/// Another sequence of the same length takes the place of the one that was there.
void load_another(Chat& chat) {
  generation(chat);
  std::vector<std::uint8_t> state(llama_state_seq_get_size(chat.context(), 0));
  llama_state_seq_get_data(chat.context(), state.data(), state.size(), 0);
  llama_memory_clear(chat.memory(), true);
  generation(chat);
  llama_state_seq_set_data(chat.context(), state.data(), state.size(), 0);
  chat.expect_full();
  chat.generate(5);
}

void slots(Chat& chat) {
  for (const llama_seq_id sequence : {0, 1, 2}) chat.prompt(200 + 50 * sequence, sequence);
  chat.generate_all(10, {0, 1, 2});
  llama_memory_seq_rm(chat.memory(), 1, -1, -1);
  chat.generate_all(5, {0, 2});
  chat.prompt(300, 1);  // into the cells that became free, and others
  chat.generate_all(10, {2, 0, 1});
  chat.generate(5, 1);
}

/// A token of one slot in a batch with the other's prompt; then tokens that take turns in one batch.
void turns(Chat& chat) {
  chat.prompt(200, 0);
  chat.generate(5, 0);
  chat.mixed({0, 1, 1, 1, 1, 1, 1, 1, 1});
  chat.prompt(150, 1);
  for (int i = 0; i < 3; ++i) {
    chat.generate_all(4, {0, 1});
    chat.mixed({0, 1, 0, 1});
    chat.mixed({1, 0, 0, 1, 1, 1});
  }
}

constexpr Settings two_unified{.sequences = 2, .unified = true};
constexpr Settings two_streams{.sequences = 2, .unified = false};

TEST(Exact, GeneratesWithStockLogits) { expect_exact(generation); }
TEST(Exact, GeneratesWithStockLogitsInSmallChunks) { expect_exact(generation, {.chunk = 64}); }
TEST(Exact, ReadsQ8Caches) { expect_exact(generation, {.cache = GGML_TYPE_Q8_0}, 1e-3); }
TEST(Exact, ReadsBf16Caches) { expect_exact(generation, {.cache = GGML_TYPE_BF16}, 1e-3); }
TEST(Exact, ReadsF32Caches) { expect_exact(generation, {.cache = GGML_TYPE_F32}); }
TEST(Exact, ComputesWithOneThread) { expect_exact(generation, {.threads = 1}); }
TEST(Exact, Rollback) { expect_exact(rollback); }
TEST(Exact, Drafts) { expect_exact(drafts); }
TEST(Exact, ContextShift) { expect_exact(context_shift); }
TEST(Exact, ShiftAlone) { expect_exact(shift_alone); }
TEST(Exact, CopiesInOneCache) { expect_exact(copy, two_unified); }
TEST(Exact, CopiesBetweenStreams) { expect_exact(copy, two_streams); }
TEST(Exact, CopiesOver) { expect_exact(copy_over, two_streams); }
TEST(Exact, SavesAndLoads) { expect_exact(save_and_load); }
TEST(Exact, LoadsAnother) { expect_exact(load_another); }
TEST(Exact, SlotsInOneCache) { expect_exact(slots, {.sequences = 3, .unified = true}); }
TEST(Exact, TurnsInOneCache) { expect_exact(turns, two_unified); }
TEST(Exact, SlotsInStreams) { expect_exact(slots, {.positions = 3072, .sequences = 3, .unified = false}); }

TEST(Recycled, Rollback) { expect_recycled(rollback); }
TEST(Recycled, Drafts) { expect_recycled(drafts); }
TEST(Recycled, ContextShift) { expect_recycled(context_shift); }
TEST(Recycled, ShiftAlone) { EXPECT_GT(expect_recycled(shift_alone).rewritten, 0U); }
TEST(Recycled, CopiesInOneCache) { expect_recycled(copy, two_unified); }
TEST(Recycled, CopiesBetweenStreams) { expect_recycled(copy, two_streams); }
TEST(Recycled, CopiesOver) { EXPECT_GT(expect_recycled(copy_over, two_streams).rewritten, 0U); }
TEST(Recycled, SavesAndLoads) { expect_recycled(save_and_load); }
TEST(Recycled, LoadsAnother) { EXPECT_GT(expect_recycled(load_another).rewritten, 0U); }

TEST(SelfCalibrating, Rollback) { expect_recycled(rollback, {}, "self-calibrating"); }
TEST(SelfCalibrating, ContextShift) { expect_recycled(context_shift, {}, "self-calibrating"); }
TEST(SelfCalibrating, LoadsAnother) { expect_recycled(load_another, {}, "self-calibrating"); }

/// With room for all positions recycling loses nothing: a mistake about whose cells are which would show.
void expect_lossless(const Life& life, const Settings& settings, const char* schedule = "fixed-stride:7") {
  plugin->set("capacity", "4096");
  const recycled_ggml_statistics before = plugin->statistics();
  const Chat ours = run(life, settings, true, schedule);
  EXPECT_GT(plugin->statistics().recycled_steps, before.recycled_steps);
  plugin->set("capacity", "64");
  expect_stock(ours, life, settings, 1e-5);
}
constexpr Settings three_unified{.sequences = 3, .unified = true};
constexpr Settings three_streams{.positions = 3072, .sequences = 3, .unified = false};
TEST(Recycled, SlotsInOneCacheKeepTheirCells) { expect_lossless(slots, three_unified); }
TEST(Recycled, SlotsInStreamsKeepTheirCells) { expect_lossless(slots, three_streams); }
TEST(Recycled, TurnsInOneCacheKeepTheirCells) { expect_lossless(turns, two_unified); }

/// Rows that are recycled are the same whether a conversation's cells lie side by side or among those of others.
TEST(Recycled, SlotsInOneCacheRecycleTheRowsOfSlotsInStreams) {
  const Chat scattered = run(slots, three_unified, true, "fixed-stride:7");
  expect_near(scattered, run(slots, three_streams, true, "fixed-stride:7"), 1e-5);
}

/// More conversations than are remembered: they must not take one another's memory while it is in use.
TEST(Recycled, MoreSlotsThanAreRemembered) {
  plugin->set("sequences", "1");
  expect_lossless(turns, two_unified);
  expect_lossless(slots, three_unified);
  plugin->set("sequences", "8");
}

/// However the prompt is cut, its last queries choose what is recycled first, and no step need be full.
TEST(Windows, OfAPromptChooseTheFirstSet) {
  const recycled_ggml_statistics before = plugin->statistics();
  const Chat whole = run(generation, {}, true, "snapkv:32"), cut = run(generation, {.chunk = 24}, true, "snapkv:32");
  EXPECT_EQ(plugin->statistics().full_steps, before.full_steps);
  EXPECT_GT(plugin->statistics().recycled_steps, before.recycled_steps);
  expect_near(cut, whole, 1e-5);
  const Chat last = run(generation, {}, true, "snapkv:1");
  EXPECT_GT(nmse(last.logits().back(), whole.logits().back()), 1e-5) << "a window of another length chooses the same";
}
TEST(Windows, OfConversationsAreTheirOwn) {
  for (const char* schedule : {"snapkv:32", "h2o:32"}) {
    const Chat scattered = run(slots, three_unified, true, schedule);
    expect_near(scattered, run(slots, three_streams, true, schedule), 1e-5);
    expect_lossless(turns, two_unified, schedule);
    expect_lossless(rollback, {}, schedule);
  }
}

TEST(Settings, AreCheckedByName) {
  const auto set = plugin->procedure<recycled_ggml_set_t>("recycled_ggml_set");
  EXPECT_STREQ(set("schedule", "fixed-stride:0"),
               "schedule = fixed-stride:0: recycled: FixedStride.stride = 0, expected at least 1");
  EXPECT_STREQ(set("capacity", "1/0"), "capacity = 1/0, expected 1 to 2^40");
  EXPECT_STREQ(set("capacity", "many"), "capacity = many, expected a whole number");
  EXPECT_STREQ(set("strategy", "1"), "strategy: expected schedule, capacity, from or sequences");
  EXPECT_STREQ(set("capacity", "64"), nullptr);
}

/// What loading a plugin writes to standard error, in a process of its own; it must be turned away.
void expect_refusal(const std::string& path, const std::string& message) {
  EXPECT_EXIT(std::exit(ggml_backend_load(path.c_str()) == nullptr ? 0 : 1), testing::ExitedWithCode(0), message);
}
TEST(LoadingDeathTest, RefusesAnotherVersionOfTheHost) {
  expect_refusal(
      PLUGIN_FOR_ANOTHER,
      "recycled: not loaded: built for ggml 0.0.1 .another., and this program has ggml " + std::string(ggml_version()));
}
TEST(LoadingDeathTest, RefusesSettingsThatMakeNoSense) {
  const std::string copy = testing::TempDir() + "plugin_with_settings.so";  // the one that is loaded has read its own
  std::filesystem::copy_file(plugin->path(), copy, std::filesystem::copy_options::overwrite_existing);
  setenv("RECYCLED_SCHEDULE", "fixed-strid:10", 1);
  expect_refusal(copy,
                 "recycled: not loaded: RECYCLED_SCHEDULE = fixed-strid:10, expected one of always, never, fixed-");
  unsetenv("RECYCLED_SCHEDULE");
  std::filesystem::remove(copy);
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc != 3) {
    std::fprintf(stderr, "usage: conversation_test MODEL PLUGIN\n");
    return 2;
  }
  const Model loaded = load_model(argv[1]);
  Plugin only(argv[2]);
  model = loaded.get();
  plugin = &only;
  plugin->set("from", "64");
  plugin->set("capacity", "64");
  return RUN_ALL_TESTS();
}
