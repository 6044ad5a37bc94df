// Rows and pages beyond 2^31 and 2^32: offsets in 64 bits, without the memory.
#include <sys/mman.h>

#include "compiled/layers.hpp"
#include "reference/feed.hpp"
#include "stress/effort.hpp"

namespace {

using namespace recycled;
using reference::at, reference::Bits, reference::Random;

/// Room for so many elements of which few are touched; zeros. Null where the system has none.
template <class T>
class Vast {
 public:
  explicit Vast(index_t elements) : bytes_(at(elements) * sizeof(T)) {
    void* const memory =
        ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory != MAP_FAILED) first_ = static_cast<T*>(memory);
  }
  ~Vast() {
    if (first_ != nullptr) ::munmap(first_, bytes_);
  }
  Vast(const Vast&) = delete;
  Vast& operator=(const Vast&) = delete;
  T* data() const { return first_; }

 private:
  std::size_t bytes_;
  T* first_ = nullptr;
};

constexpr Shape shape{6, 2, 32, 32};
constexpr index_t length = 1200, prompt = 1180, capacity = 40;

/// Full, recycled and sketched steps behind a prompt over the rows of `view`.
template <Scalar T>
Bits lived(const KvView<T>& rows) {
  ThreadPool pool(1);
  Random random(5);
  Bits all;
  const auto view = [&](index_t positions) {
    KvView<T> some = rows;
    some.length = positions;
    return some;
  };
  for (const index_t coordinates : {0, 8}) {
    const auto layer = reference::make_layer<T>(shape, {.capacity = capacity, .sketch = {.coordinates = coordinates}},
                                                {FixedStride{3}}, {.pool = 1});
    std::vector<float> out(at(40 * shape.query_size()));
    layer->observe(random.row(64 * shape.query_size()), prompt - 40);
    layer->prefill(random.row(40 * shape.query_size()), view(prompt), out, pool);
    const Bits first = reference::bits(out);
    all.insert(all.end(), first.begin(), first.end());
    out.resize(at(shape.query_size()));
    for (index_t end = prompt + 1; end <= length; ++end) {
      layer->step(random.row(shape.query_size()), view(end), out, pool);
      const Bits one = reference::bits(out);
      all.insert(all.end(), one.begin(), one.end());
    }
    EXPECT_EQ(layer->statistics().heads[0].sketched_steps > 0, coordinates > 0);
  }
  return all;
}

/// The same rows side by side, and where `far` says (keys and values alike): the same bits. Skips the test, which then
/// has nothing more to say, where there is no room.
template <Scalar T>
void expect_same_bits(const char* what, const Strides& far, const Pages& pages, index_t rows) {
  SCOPED_TRACE(what);
  Random random(3);
  const auto near = reference::Cache<T>::random(shape, length, random);
  const index_t elements = (rows - 1) * far.position + (shape.kv_heads - 1) * far.head + 32;
  ASSERT_GT(elements, index_t{1} << 32) << "what is tested is far";
  const Vast<T> keys(elements), values(elements);
  if (keys.data() == nullptr || values.data() == nullptr) GTEST_SKIP() << "no room for addresses";
  const KvView<T> view{keys.data(), values.data(), far, far, length, pages};
  for (index_t p = 0; p < length; ++p) {
    for (index_t g = 0; g < shape.kv_heads; ++g) {
      const auto size = static_cast<std::size_t>(pages.size), position = at(p);
      const std::size_t row =
          pages.table == nullptr ? position : at(pages.table[position / size]) * size + position % size;
      const std::size_t offset = row * at(far.position) + at(g) * at(far.head);
      std::copy_n(near.view().key(p, g), 32 / values_per_element<T>, keys.data() + offset);
      std::copy_n(near.view().value(p, g), 32 / values_per_element<T>, values.data() + offset);
    }
  }
  EXPECT_TRUE(lived(view) == lived(near.view()));
}

TEST(FarRows, OfWideStridesAreWhereTheyAre) {
  const index_t wide = (index_t{1} << 22) + 32;  // times 1200 positions: 2^32.2 elements
  expect_same_bits<half>("positions far apart", {wide, 64}, {}, length);
  expect_same_bits<float>("heads far apart", {64, (index_t{1} << 33) + 64}, {}, length);
  expect_same_bits<q8_0>("blocks far apart", {wide, 1}, {}, length);
  if (IsSkipped()) return;
  stress::report("long run, strides", "offsets up to 2^33 elements, 0 bits changed");
}

TEST(FarRows, OfHighPagesAreWhereTheyAre) {
  std::vector<std::int32_t> cells(at(length)), pages(at(length / 16));
  for (index_t p = 0; p < length; ++p)
    cells[at(p)] = static_cast<std::int32_t>(std::numeric_limits<std::int32_t>::max() - 7 * p);
  for (index_t p = 0; p < length / 16; ++p) pages[at(p)] = static_cast<std::int32_t>((1 << 28) + 100 - p * 3 % 79);
  expect_same_bits<half>("cells up to 2^31", {64, 32}, {cells.data(), 1}, index_t{1} << 31);
  expect_same_bits<q8_0>("rows up to 2^32", {2, 1}, {pages.data(), 16}, (index_t{1} << 32) + 2000);
  if (IsSkipped()) return;
  stress::report("long run, pages", "rows up to 2^32, 0 bits changed");
}

TEST(FarRows, OfALongCacheStayApart) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer's own memory would be touched";
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
  GTEST_SKIP() << "the sanitizer's own memory would be touched";
#endif
#endif
  const Shape wide{3, 3, 64, 1};
  constexpr index_t room = 12'000'000, last = 4;  // keys: 2^31.1 elements
  const auto test = [&] {
    KvCache<float> cache(wide, room);  // floats are not touched before they are written
    Random random(1);
    cache.commit(room - last);
    reference::Rows keys;
    for (index_t i = 0; i < last; ++i) {
      keys.push_back(random.row(3 * 64));
      (void)cache.stage(keys.back().data(), random.row(3).data(), 1);
      cache.commit(1);
    }
    for (index_t i = 0; i < last; ++i) {
      for (index_t g = 0; g < 3; ++g) {
        const float* const row = cache.view().key(room - last + i, g);
        EXPECT_TRUE(std::equal(row, row + 64, keys[at(i)].begin() + g * 64)) << i << ", KV head " << g;
      }
    }
  };
#if defined(__cpp_exceptions)
  try {
    test();
  } catch (const std::bad_alloc&) {
    GTEST_SKIP() << "no memory";
  }
#else
  test();
#endif
}

}  // namespace
