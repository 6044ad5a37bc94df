// The host of the parts: runs each of them, twice, and compares what they say.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "part.hpp"

namespace {

struct Part {
  const char* name;
  std::vector<float> (*decode)(const Sequence&);
};

constexpr Part parts[] = {
#define X(part) {#part, part},
    MIXED_LINK_PARTS
#undef X
};

std::vector<float> random_rows(std::size_t row_size, std::mt19937& random) {
  std::vector<float> rows((Sequence::prompt + Sequence::steps) * row_size);
  std::ranges::generate(rows, [&] { return static_cast<float>(random()) / 0x1p31F - 1.0F; });
  return rows;
}

}  // namespace

int main() {
  std::mt19937 random{1};
  const Sequence sequence{.queries = random_rows(Sequence::query_heads * Sequence::head_dim, random),
                          .keys = random_rows(Sequence::kv_heads * Sequence::head_dim, random),
                          .values = random_rows(Sequence::kv_heads * Sequence::head_dim, random)};

  const std::vector<float> expected = parts[0].decode(sequence);
  bool agree = !expected.empty();
  for (const Part& part : parts) {
    const std::vector<float> out = part.decode(sequence);
    float worst = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const float difference = std::abs(out[i] - expected[i]);
      if (!(difference <= worst)) worst = difference;  // a NaN stays
    }
    std::printf("%-18s differs from %s by at most %g\n", part.name, parts[0].name, static_cast<double>(worst));
    agree = agree && out.size() == expected.size() && worst <= 1e-5F;
  }
  std::puts(agree ? "all agree" : "they disagree");
  return agree ? 0 : 1;
}
