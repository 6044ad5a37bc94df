// Any order of operations on a decoder, or on a layer whose rows the host owns: one that is copied, saved and loaded
// between them, over rows in another layout, does the same, bit for bit.
#include <bit>
#include <optional>
#include <sstream>

#include "fuzz/hosted.hpp"
#include "reference/saved.hpp"

namespace {

using namespace recycled;
using fuzz::Bytes;
using fuzz::check;
using reference::saved;

constexpr ModelShape model{2, {4, 2, 8}};
constexpr index_t capacity = 6;

/// What `operation` does to both, an error too; returns the outputs of one.
template <class Host, class F>
void both(Host& one, Host& other, const F& operation) {
  const auto outcome = [&](Host& host) {
    std::vector<float> out(static_cast<std::size_t>(8 * model.layer.query_size()));
    const std::string before = saved(host);
    std::string error;
    try {
      operation(host, out);
    } catch (const std::invalid_argument& refused) {
      error = refused.what();
      check(saved(host) == before, "what is refused changes nothing");
    }
    std::string bits(reinterpret_cast<const char*>(out.data()), out.size() * sizeof(float));
    return error + bits;
  };
  check(outcome(one) == outcome(other), "copies and loaded states go on with the same bits");
}

template <class Host>
concept Layered = requires(Host& host) {
  host.prepare();
};

/// What a host may choose for the step that comes at position `own`: each head's once, and no more than there is room.
bool may_be_chosen(const std::vector<index_t>& positions, index_t own) {
  const index_t heads = model.layer.kv_heads, n = static_cast<index_t>(positions.size()) / heads;
  bool good = static_cast<index_t>(positions.size()) == heads * n;
  for (index_t g = 0; g < heads; ++g) {
    std::vector<index_t> some(positions.begin() + g * n, positions.begin() + (g + 1) * n);
    std::erase(some, -1);
    std::sort(some.begin(), some.end());
    good = good && std::adjacent_find(some.begin(), some.end()) == some.end();
    good = good && (some.empty() || (some.front() >= 0 && some.back() <= own));
    std::erase(some, own);
    good = good && static_cast<index_t>(some.size()) <= capacity;
  }
  return good;
}

/// Mostly neighbours, up to `end` and one too far.
std::vector<index_t> some_positions(Bytes& bytes, index_t end) {
  std::vector<index_t> positions(static_cast<std::size_t>(bytes.between(0, 2 * capacity + 3)));
  index_t next = bytes.between(0, 60);
  for (index_t& position : positions) {
    const auto byte = bytes.raw<std::uint8_t>();
    next += 1 + byte / 128;
    position = byte % 16 == 15 ? bytes.raw<std::int8_t>() : byte % 16 == 14 ? -1 : next % (end + 2);
    if (byte == 255) position = bytes.raw<index_t>();
  }
  return positions;
}

template <class Host>
void choose(Host& host, index_t layer, const std::vector<index_t>& positions, index_t more) {
  bool good = false;
  try {
    if constexpr (Layered<Host>) {
      const index_t end = host.with(more).length;
      good = end > 0 && may_be_chosen(positions, host.length() == 0 ? end - 1 : host.length());
      host.choose_positions(layer, positions, more);
    } else {
      const index_t own = host.view(layer).length;
      good = own > 0 && may_be_chosen(positions, own);
      host.choose_positions(layer, positions);
    }
  } catch (const std::invalid_argument&) {
    check(!good, "a choice that may be is taken");
    throw;
  }
  check(good, "a choice that can't be is refused");
}
/// `some` over and over, or one too many.
template <class Host>
void choose_by_scores(Host& host, index_t layer, const std::vector<float>& some, index_t more, bool too_many) {
  index_t end = 0;
  if constexpr (Layered<Host>) {
    end = host.with(more).length;
  } else {
    end = host.view(layer).length;
  }
  std::vector<float> scores(static_cast<std::size_t>(end * model.layer.kv_heads + (too_many ? 1 : 0)));
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = some[i % some.size()];
  if constexpr (Layered<Host>) {
    host.choose_by_scores(layer, scores, more);
  } else {
    host.choose_by_scores(layer, scores);
  }
  check(end > 0 && !too_many, "scores of which there are too many, or none, are refused");
}

template <class Host>
void operations(Bytes& bytes, const Host& made, const Host& like) {
  Host one = made, other = like;
  while (!bytes.empty()) {
    if (one.length() > 60) both(one, other, [](Host& host, std::vector<float>&) { host.rollback(50); });
    const index_t layer = bytes.between(0, 2), tokens = bytes.between(1, 8);
    const auto what = bytes.between(0, 15);
    const index_t amount = bytes.between(0, 40);
    const index_t given = what == 0 || what == 6 ? tokens : what > 7 ? 1 : 0;
    const auto rows = bytes.numbers(given * model.layer.kv_heads * model.layer.head_dim);
    const auto queries = bytes.numbers(given * model.layer.query_size());
    const auto positions = what == 4 ? some_positions(bytes, one.length()) : std::vector<index_t>{};
    const auto scores = bytes.numbers(what == 5 ? tokens : 0);
    both(one, other, [&](Host& host, std::vector<float>& out) {
      const std::span<float> room(out.data(), queries.size());
      switch (what) {
        case 0:
          return host.prefill(layer, queries, rows, rows, room);
        case 1:
          return host.rollback(amount % 5);
        case 2:
          return host.truncate(amount);
        case 3:
          if (amount == 0) host.clear();
          return;
        case 4:
          return choose(host, layer, positions, amount % 4);
        case 5:
          return choose_by_scores(host, layer, scores, amount % 4, amount > 36);
        case 6:
          if constexpr (Layered<Host>) host.observe(queries, rows, rows, amount % 5 - 1);
          return;
        case 7:
          if constexpr (Layered<Host>) host.prepare();
          return;
        default: {
          const std::size_t query = static_cast<std::size_t>(model.layer.query_size()), row = 16;
          for (index_t i = 0; i < (layer == 2 ? 2 : 1); ++i) {
            const index_t at = layer == 2 ? i : layer;
            host.step(at, std::span(queries).first(query), std::span(rows).first(row), std::span(rows).first(row),
                      room.first(query));
          }
        }
      }
    });
    if (amount % 4 == 0) other = other.fork();
    if (amount % 4 == 1) {
      std::istringstream state(saved(other));
      other = like;
      other.load(state);
    }
  }
  check(saved(one) == saved(other), "copies and loaded states are the same");
}

/// On a decoder, or on a layer over two hosts' rows.
template <Scalar T, class Policy, class Keep = TopK>
void operations(Bytes& bytes, bool hosted, const LayerOptions& options, const Policy& schedule,
                const Keep& selection = {}) {
  if (hosted) {
    using Layer = LayerAttention<T, Policy, Keep>;
    const Layer layer(model.layer, options, schedule, selection);
    const auto layout = fuzz::Layout::of(bytes), another = fuzz::Layout::of(bytes);
    operations(bytes, fuzz::Hosted<Layer, T>(layer, layout, 100), fuzz::Hosted<Layer, T>(layer, another, 100));
  } else {
    const Decoder<T, Policy, Keep> decoder(model, options, schedule, selection);
    operations(bytes, decoder, decoder);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, std::min(size, std::size_t{4096}));
  const index_t kind = bytes.between(0, 5);
  switch (kind % 3) {
    case 0:
      operations<half>(bytes, kind > 2, {.capacity = capacity, .sketch = {.keys = bytes.last(0, 1) == 1}},
                       FixedStride{3});
      break;
    case 1:
      operations<float>(bytes, kind > 2, {.capacity = capacity, .sketch = {.coordinates = 4, .full_every = 3}},
                        SelfCalibrating{.longest = 9}, TopK{.pool = 1});
      break;
    default:
      operations<bfloat16>(bytes, kind > 2, {.capacity = capacity, .attention = {.window = 20, .sinks = 2}},
                           QuerySimilarity{2, 0.5F}, HeavyHitters{.recent = 3, .observation_window = 2});
  }
  return 0;
}
