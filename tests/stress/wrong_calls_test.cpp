// Every parameter of every call of a layer and a decoder, out of its range: the documented error, and the saved state
// is what it was.
#include "reference/feed.hpp"
#include "stress/effort.hpp"
#include "stress/refusals.hpp"

namespace {

using namespace recycled;
using reference::at;
using stress::huge, stress::largest, stress::lowest, stress::Refusals, stress::saved;

using Host = Decoder<float, NeverFull>;
using Layer = Host::Layer;
constexpr Shape shape{4, 2, 8, 6};
constexpr index_t query_size = 32, out_size = 24, capacity = 6;
constexpr index_t too_long = (index_t{1} << 40) + 1;
const auto floats = [](index_t count) { return std::vector<float>(at(count), 0.5F); };
std::vector<float> room(1000);
std::span<float> out_of(index_t count) { return std::span(room).first(at(count)); }

/// A layer that is asked wrongly, over rows that are there.
class Asked {
 public:
  Asked(Refusals& refusals, Layer& layer, const reference::Cache<float>& rows)
      : refusals_(refusals), layer_(layer), rows_(rows), length_(layer.length()), before_(saved(layer)) {}

  template <class Value, class Call>
  void refuse(const std::string& entry_point, const std::string& argument, const std::vector<Value>& values,
              const std::string& expectation, const Call& call) {
    for (const Value& value : values) {
      refusals_.expect(entry_point, argument, value, expectation, [&] { call(value); });
      EXPECT_TRUE(saved(layer_) == before_) << entry_point << ", " << argument << " = " << value;
    }
  }

  /// Sizes that are one off, or nothing at all.
  void sizes() {
    const auto kv = rows_.view(length_ + 1), two = rows_.view(length_ + 2);
    const std::vector<index_t> not_a_query{0, query_size - 1, query_size + 1};
    refuse("step", "query.size()", not_a_query, "32", [&](index_t n) { layer_.step(floats(n), kv, out_of(out_size)); });
    refuse<index_t>("step", "query.size()", {2 * query_size}, "32",
                    [&](index_t n) { layer_.step(floats(n), two, out_of(2 * out_size)); });
    refuse<index_t>("step", "out.size()", {0, out_size - 1, out_size + 1}, "24",
                    [&](index_t n) { layer_.step(floats(query_size), kv, out_of(n)); });
    refuse<index_t>("step", "compared.size()", {1, query_size - 1, query_size + 1}, "32",
                    [&](index_t n) { layer_.step(floats(query_size), kv, out_of(out_size), Serial{}, floats(n)); });
    refuse("prefill", "query.size()", not_a_query, "a positive multiple of",
           [&](index_t n) { layer_.prefill(floats(n), kv, out_of(out_size)); });
    refuse<index_t>("prefill", "out.size()", {0, out_size, 2 * out_size - 1, 2 * out_size + 1}, "48",
                    [&](index_t n) { layer_.prefill(floats(2 * query_size), two, out_of(n)); });
    refuse<index_t>("prefill", "compared.size()", {1, query_size - 1, 2 * query_size}, "32", [&](index_t n) {
      layer_.prefill(floats(2 * query_size), two, out_of(2 * out_size), Serial{}, floats(n));
    });
    refuse("observe", "query.size()", not_a_query, "a positive multiple of",
           [&](index_t n) { layer_.observe(floats(n), length_ + 1); });
    refuse<index_t>("observe", "compared.size()", {1, query_size - 1}, "32",
                    [&](index_t n) { layer_.observe(floats(query_size), length_ + 1, floats(n)); });
    const index_t all = 2 * kv.length;
    refuse<index_t>("choose_by_scores", "scores.size()", {0, all - 1, all + 1}, std::to_string(all),
                    [&](index_t n) { layer_.choose_by_scores(floats(n), kv); });
    refuse<index_t>("choose_positions", "positions.size()", {1, 3}, "a multiple of kv_heads = 2",
                    [&](index_t n) { layer_.choose_positions(std::vector<index_t>(at(n), 1), kv); });
  }

  void lengths() {
    const auto query = floats(query_size);
    refuse<index_t>("observe", "length", {lowest, -1, 0, length_}, "at least " + std::to_string(length_ + 1),
                    [&](index_t n) { layer_.observe(query, n); });
    refuse<index_t>("observe", "length", {too_long, huge, largest}, "at most 2^40",
                    [&](index_t n) { layer_.observe(query, n); });
    const std::vector<index_t> nowhere{lowest, -1, length_ + 1, huge, largest};
    refuse("truncate", "truncate: length", nowhere, "0 to the", [&](index_t n) { layer_.truncate(n); });
    refuse("rollback", "rollback: tokens", nowhere, "0 to the", [&](index_t n) { layer_.rollback(n); });
    const std::vector<index_t> no_head{lowest, -1, 2, largest};
    refuse("last_step", "kv_head", no_head, "0 to 1", [&](index_t n) { static_cast<void>(layer_.last_step(n)); });
    refuse("recycled_positions", "kv_head", no_head, "0 to 1",
           [&](index_t n) { static_cast<void>(layer_.recycled_positions(n)); });
    const auto kv = rows_.view(length_ + 1);
    refuse<index_t>("choose_positions", "positions", {lowest, -2, length_ + 1, huge, largest}, "-1 for none, or 0 to",
                    [&](index_t n) {
                      layer_.choose_positions(std::vector<index_t>{1, n}, kv);
                    });
    refuse<index_t>("choose_positions", "positions", {3}, "each once for KV head 1", [&](index_t n) {
      layer_.choose_positions(std::vector<index_t>{0, 1, n, n}, kv);
    });
    refuse<index_t>("choose_positions", "positions of a KV head", {capacity + 1}, "at most the capacity, 6",
                    [&](index_t n) {
                      std::vector<index_t> many(at(2 * n), -1);
                      std::iota(many.begin(), many.begin() + n, index_t{0});
                      layer_.choose_positions(many, kv);
                    });
    refuse<std::string>("share", "scratch", {"nullptr"}, "a scratch", [&](const auto&) { layer_.share(nullptr); });
    refuse<std::string>("save", "save: stream", {"failed"}, "one that takes", [&](const auto&) {
      std::ostringstream stream;
      stream.setstate(std::ios::badbit);
      layer_.save(stream);
    });
    refuse<int>("load", "saved state: bytes", {0, 7}, "more: it is cut short", [&](int n) {
      std::istringstream stream(before_.substr(0, static_cast<std::size_t>(n)));
      layer_.load(stream);
    });
  }

  /// A view with something wrong, to everything that takes one.
  void views() {
    const auto query = floats(query_size);
    const std::string next = std::to_string(length_ + 1);
    const auto refuse_view = [&](const std::string& argument, const auto& values, const std::string& expectation,
                                 const auto& set, bool prompt = true) {
      const auto with = [&](auto value) {
        KvView<float> kv = rows_.view(length_ + 1);
        set(kv, value);
        return kv;
      };
      refuse("step", argument, values, expectation,
             [&](auto value) { layer_.step(query, with(value), out_of(out_size)); });
      refuse("prefill", argument, values, expectation,
             [&](auto value) { layer_.prefill(query, with(value), out_of(out_size)); });
      refuse("choose_positions", argument, values, expectation, [&](auto value) {
        layer_.choose_positions(std::vector<index_t>{0, 1}, with(value));
      });
      refuse("choose_by_scores", argument, values, expectation,
             [&](auto value) { layer_.choose_by_scores(floats(2 * length_ + 2), with(value)); });
      if (waits_ && prompt)
        refuse("prepare", argument, values, expectation, [&](auto value) { layer_.prepare(with(value)); });
    };
    using Counts = std::vector<index_t>;
    const auto length = [](KvView<float>& kv, index_t value) { kv.length = value; };
    refuse_view("KvView.length", Counts{lowest, -1, 0}, "at least 1", length);
    refuse_view("KvView.length", Counts{too_long, huge, largest}, "at most 2^40", length);
    refuse_view("KvView.length", Counts{length_ - 1, length_ + 2, 40}, next, length, false);
    if (waits_) {
      refuse("prepare", "KvView.length", Counts{1, length_ - 1}, "at least the prompt's " + std::to_string(length_),
             [&](index_t value) { layer_.prepare(rows_.view(value)); });
    }
    const std::vector<std::string> null{"null"};
    refuse_view("KvView.keys", null, "a pointer", [](KvView<float>& kv, const auto&) { kv.keys = nullptr; });
    refuse_view("KvView.values", null, "a pointer", [](KvView<float>& kv, const auto&) { kv.values = nullptr; });
    const auto strides = [&](const std::string& name, Strides KvView<float>::*which, index_t row) {
      const Counts wrong{lowest, -1, 0, row - 1, largest / 8, huge, largest};
      refuse_view("KvView." + name + ".position", wrong, "at least one row of",
                  [&](KvView<float>& kv, index_t value) { (kv.*which).position = value; });
      refuse_view("KvView." + name + ".head", wrong, "at least one row of",
                  [&](KvView<float>& kv, index_t value) { (kv.*which).head = value; });
      refuse_view("KvView." + name + " (position, head)", std::vector<Strides>{{row, row}, {2 * row - 1, row}},
                  "rows that don't overlap", [&](KvView<float>& kv, const Strides& value) { kv.*which = value; });
    };
    strides("key_strides", &KvView<float>::key_strides, 8);
    strides("value_strides", &KvView<float>::value_strides, 6);
    static std::int32_t table[64];
    std::iota(std::begin(table), std::end(table), 0);
    refuse_view("KvView.pages.size", Counts{lowest, -1, 0, (1 << 20) + 1, huge}, "1 to 2^20 rows",
                [&](KvView<float>& kv, index_t value) {
                  kv.pages = {table, value};
                });
    for (const index_t page : {index_t{0}, length_ / 2, length_}) {
      refuse_view("KvView.pages.table", Counts{-1, std::numeric_limits<std::int32_t>::min()}, "a page, 0 or more",
                  [&](KvView<float>& kv, index_t value) {
                    std::iota(std::begin(table), std::end(table), 0);
                    table[page] = static_cast<std::int32_t>(value);
                    kv.pages = {table, 1};
                  });
    }
  }
  void waits_for_its_prompts_choice() { waits_ = true; }

 private:
  Refusals& refusals_;
  Layer& layer_;
  const reference::Cache<float>& rows_;
  index_t length_;
  std::string before_;
  bool waits_ = false;
};

TEST(WrongCall, OfALayerIsNamedAndChangesNothing) {
  Refusals refusals;
  reference::Random random(4);
  const auto rows = reference::Cache<float>::random(shape, 40, random);
  Layer layer(shape, {.capacity = capacity, .sketch = {.coordinates = 4}}, {}, {.observation_window = 3});
  layer.observe(random.row(5 * query_size), 20);
  Asked prompted(refusals, layer, rows);
  prompted.waits_for_its_prompts_choice();
  prompted.sizes();
  prompted.lengths();
  prompted.views();
  Layer twin = layer;
  for (index_t length = 21; length <= 25; ++length) {
    const auto query = random.row(query_size);
    layer.step(query, rows.view(length), out_of(out_size));
    const auto out = std::vector<float>(room.begin(), room.begin() + out_size);
    twin.step(query, rows.view(length), out_of(out_size));
    EXPECT_EQ(out, std::vector<float>(room.begin(), room.begin() + out_size)) << "it goes on as ever";
  }
  Asked stepping(refusals, layer, rows);
  stepping.sizes();
  stepping.lengths();
  stepping.views();
  EXPECT_TRUE(saved(layer) == saved(twin));
  // A prompt of so many tokens that its output's size is no number.
  Layer narrow({2, 1, 1, 1 << 10}, {.capacity = capacity});
  const std::span<const float> endless(room.data(), std::size_t{1} << 60);
  refusals.expect("prefill", "out.size()", "576460752303423488 * 2048", "a product below 2^63",
                  [&] { narrow.prefill(endless, {}, out_of(out_size)); });
  stress::report("wrong arguments, layer", refusals.figure() + ", state unchanged");
}

TEST(WrongCall, OfADecoderIsNamedAndChangesNothing) {
  Refusals refusals;
  Host host({2, shape}, {.capacity = capacity});
  reference::Tokens tokens(shape, 2);
  reference::prefill(host, tokens.next(20));
  reference::decode(host, tokens.next(4));
  const std::string before = saved(host);
  const auto refuse = [&](const std::string& entry_point, const std::string& argument, const auto& values,
                          const std::string& expectation, const auto& call) {
    for (const auto& value : values) {
      refusals.expect(entry_point, argument, value, expectation, [&] { call(value); });
      EXPECT_TRUE(saved(host) == before) << entry_point << ", " << argument << " = " << value;
    }
  };
  using Counts = std::vector<index_t>;
  const auto query = floats(query_size), key = floats(16), value = floats(12), scores = floats(48);
  const std::vector<index_t> chosen{0, 1};
  const auto out = out_of(out_size);
  const Counts no_layer{lowest, -1, 2, huge, largest};
  refuse("step", "layer", no_layer, "0 to 1", [&](index_t n) { host.step(n, query, key, value, out); });
  refuse("prefill", "layer", no_layer, "0 to 1", [&](index_t n) { host.prefill(n, query, key, value, out); });
  refuse("choose_positions", "layer", no_layer, "0 to 1", [&](index_t n) { host.choose_positions(n, chosen); });
  refuse("choose_by_scores", "layer", no_layer, "0 to 1", [&](index_t n) { host.choose_by_scores(n, scores); });
  refuse("layer", "layer", no_layer, "0 to 1", [&](index_t n) { static_cast<void>(host.layer(n)); });
  refuse("view", "layer", no_layer, "0 to 1", [&](index_t n) { static_cast<void>(host.view(n)); });
  const auto sizes = [&](const std::string& name, const auto& call) {
    refuse(name, "query.size()", Counts{0, query_size - 1}, "32",
           [&](index_t n) { call(floats(n), key, value, out, 0); });
    refuse(name, "query.size()", Counts{query_size + 1}, "32", [&](index_t n) { call(floats(n), key, value, out, 0); });
    refuse(name, "query.size()", Counts{2 * query_size - 1}, "32",  // what else is given is right for two tokens
           [&](index_t n) { call(floats(n), floats(32), floats(24), out_of(2 * out_size), 0); });
    refuse(name, "key.size()", Counts{0, 15, 17}, "16 = tokens * kv_heads * 8",
           [&](index_t n) { call(query, floats(n), value, out, 0); });
    refuse(name, "value.size()", Counts{0, 11, 13}, "12 = tokens * kv_heads * 6",
           [&](index_t n) { call(query, key, floats(n), out, 0); });
    refuse(name, "out.size()", Counts{0, 23, 25}, "24", [&](index_t n) { call(query, key, value, out_of(n), 0); });
    refuse(name, "compared.size()", Counts{1, 31, 33}, "32", [&](index_t n) { call(query, key, value, out, n); });
  };
  sizes("step", [&](const auto& q, const auto& k, const auto& v, auto o, index_t compared) {
    host.step(1, q, k, v, o, Serial{}, floats(compared));
  });
  refuse("step", "query.size()", Counts{2 * query_size}, "32 = query_heads * head_dim",
         [&](index_t n) { host.step(1, floats(n), key, value, out); });
  sizes("prefill", [&](const auto& q, const auto& k, const auto& v, auto o, index_t compared) {
    host.prefill(0, q, k, v, o, Serial{}, floats(compared));
  });
  refuse("choose_by_scores", "scores.size()", Counts{0, 47, 49}, "48",
         [&](index_t n) { host.choose_by_scores(0, floats(n)); });
  refuse("choose_positions", "positions", Counts{lowest, -2, 25, largest}, "-1 for none, or 0 to", [&](index_t n) {
    host.choose_positions(0, std::vector<index_t>{0, n});
  });
  const Counts nowhere{lowest, -1, 25, huge, largest};
  refuse("truncate", "truncate: length", nowhere, "0 to the 24", [&](index_t n) { host.truncate(n); });
  refuse("rollback", "rollback: tokens", nowhere, "0 to the 24", [&](index_t n) { host.rollback(n); });
  refuse("share", "scratch", std::vector<std::string>{"nullptr"}, "a scratch", [&](auto) { host.share(nullptr); });
  refuse("load", "saved state: bytes", Counts{0, 7}, "more: it is cut short", [&](index_t n) {
    std::istringstream stream(before.substr(0, at(n)));
    host.load(stream);
  });
  Host empty({1, shape}, {.capacity = capacity});
  refusals.expect("choose_positions", "the layer's length", 0, "at least 1",
                  [&] { empty.choose_positions(0, chosen); });
  refusals.expect("choose_by_scores", "the layer's length", 0, "at least 1", [&] { empty.choose_by_scores(0, {}); });
  stress::report("wrong arguments, decoder", refusals.figure() + ", state unchanged");
}

}  // namespace
