// What the data pipeline does to pixels, bit for bit as Pillow does it, several times as fast.
//
// A picture is Pillow's own memory of an RGB image: rows of 4-byte pixels, the fourth byte unused. Sums are whole
// numbers or doubles in Pillow's order, without contraction to fused multiply-adds, so that nothing is rounded elsewhere.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(CROSSVIT_PLAIN)
#define MANY_TARGETS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MANY_TARGETS
#endif
#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr int kBits = 22;  // of the fixed-point weights of a resize
constexpr int kOutOfMemory = 102;

typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef float Floats4 __attribute__((vector_size(16)));
typedef double Doubles4 __attribute__((vector_size(32)));

INLINE uint8_t clipped(int32_t sum) {
  sum >>= kBits;
  return static_cast<uint8_t>(sum < 0 ? 0 : (sum > 255 ? 255 : sum));
}

// Which pixels of a line go into each pixel of the resized line, and how much of each. Keys' cubic with a = -0.5,
// stretched by the scale where pixels become fewer.
struct Taps {
  int most = 0;
  std::vector<int> first, count;
  std::vector<int32_t> weights;

  Taps(int from, int to) : first(to), count(to) {
    const double scale = static_cast<double>(from) / to, stretch = std::max(scale, 1.0), support = 2.0 * stretch;
    most = static_cast<int>(std::ceil(support)) * 2 + 1;
    weights.assign(static_cast<size_t>(to) * most, 0);
    std::vector<double> line(most);
    for (int x = 0; x < to; ++x) {
      const double centre = (x + 0.5) * scale, per_pixel = 1.0 / stretch;
      const int begin = std::max(static_cast<int>(centre - support + 0.5), 0);
      const int end = std::min(static_cast<int>(centre + support + 0.5), from);
      double total = 0.0;
      for (int k = begin; k < end; ++k) total += line[k - begin] = cubic((k - centre + 0.5) * per_pixel);
      for (int k = begin; k < end; ++k) {
        const double share = (total != 0.0 ? line[k - begin] / total : line[k - begin]) * (1 << kBits);
        weights[static_cast<size_t>(x) * most + k - begin] = static_cast<int32_t>(share < 0 ? share - 0.5 : share + 0.5);
      }
      first[x] = begin;
      count[x] = end - begin;
    }
  }

  static double cubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
  }
};

// Resizes kLines lines of pixels to the width of the taps. They are turned first, so that the pixels of all lines that
// have a weight in common stand side by side.
constexpr int kLines = 16, kTogether = 4 * kLines;

MANY_TARGETS void across(const uint8_t* from, int64_t from_step, int lines, int width, const Taps& taps, uint8_t* turned,
                         uint8_t* to, int64_t to_step) {
  for (int line = 0; line < lines; ++line)
    for (int x = 0; x < width; ++x) std::memcpy(turned + x * kTogether + 4 * line, from + line * from_step + 4 * x, 4);
  const int to_width = static_cast<int>(taps.first.size());
  for (int x = 0; x < to_width; ++x) {
    const int32_t* weight = taps.weights.data() + static_cast<size_t>(x) * taps.most;
    const uint8_t* pixels = turned + static_cast<int64_t>(taps.first[x]) * kTogether;
    int32_t sums[kTogether];
    uint8_t done[kTogether];
    for (int i = 0; i < kTogether; ++i) sums[i] = 1 << (kBits - 1);
    for (int k = 0; k < taps.count[x]; ++k, pixels += kTogether)
      for (int i = 0; i < kTogether; ++i) sums[i] += pixels[i] * weight[k];
    for (int i = 0; i < kTogether; ++i) done[i] = clipped(sums[i]);
    for (int line = 0; line < lines; ++line) std::memcpy(to + line * to_step + 4 * x, done + 4 * line, 4);
  }
}

// One resized line of `bytes` bytes from the lines below each other.
MANY_TARGETS void down(const uint8_t* from, int64_t step, const int32_t* weight, int count, int64_t bytes, uint8_t* to) {
  constexpr int kBlock = 64;
  for (int64_t begin = 0; begin < bytes; begin += kBlock) {
    const int64_t size = std::min<int64_t>(kBlock, bytes - begin);
    int32_t sums[kBlock];
    for (int i = 0; i < kBlock; ++i) sums[i] = 1 << (kBits - 1);
    for (int k = 0; k < count; ++k) {
      const uint8_t* line = from + k * step + begin;
      if (size == kBlock)
        for (int i = 0; i < kBlock; ++i) sums[i] += line[i] * weight[k];
      else
        for (int i = 0; i < size; ++i) sums[i] += line[i] * weight[k];
    }
    for (int i = 0; i < size; ++i) to[begin + i] = clipped(sums[i]);
  }
}

// The cubic through four values at -1, 0, 1, 2, at d from 0 to 1.
INLINE Doubles4 between(Doubles4 v1, Doubles4 v2, Doubles4 v3, Doubles4 v4, double d) {
  const Doubles4 p2 = -v1 + v3, p3 = 2.0 * (v1 - v2) + v3 - v4, p4 = -v1 + v2 - v3 + v4;
  return v2 + d * (p2 + d * (p3 + d * p4));
}

INLINE int within(int i, int size) { return i < 0 ? 0 : (i < size ? i : size - 1); }

INLINE int floored(double v) { return v >= 0.0 ? static_cast<int>(v) : static_cast<int>(std::floor(v)); }

struct Source {
  const Floats4* pixels;
  int width, height;
};

// Which four pixels of a line a cubic stands on, and where between the second and the third it is taken.
struct Place {
  int x[4];
  double d;
};

INLINE Doubles4 on_line(const Source& s, int y, const Place& at) {
  const Floats4* line = s.pixels + static_cast<int64_t>(y) * s.width;
  if (at.d == 0.0) return __builtin_convertvector(line[at.x[1]], Doubles4);
  Doubles4 v[4];
  for (int k = 0; k < 4; ++k) v[k] = __builtin_convertvector(line[at.x[k]], Doubles4);
  return between(v[0], v[1], v[2], v[3], at.d);
}

// The four channels at (x_in, y_in), which lies inside, cut to 0 to 255.
INLINE Ints4 sample(const Source& s, double x_in, double y_in) {
  x_in -= 0.5;
  y_in -= 0.5;
  const int x = floored(x_in), y = floored(y_in);
  const double dy = y_in - y;
  Place at{{x - 1, x, x + 1, x + 2}, x_in - x};
  if (x < 1 || x + 2 >= s.width)
    for (int& i : at.x) i = within(i, s.width);
  Doubles4 value;
  if (dy == 0.0) {
    value = on_line(s, y, at);
  } else {
    Doubles4 lines[4];
    lines[0] = on_line(s, within(y - 1, s.height), at);
    for (int k = 1; k < 4; ++k)  // beyond the border the line before stands again
      lines[k] = y + k - 1 >= 0 && y + k - 1 < s.height ? on_line(s, y + k - 1, at) : lines[k - 1];
    value = between(lines[0], lines[1], lines[2], lines[3], dy);
  }
  value = value > 0.0 ? value : Doubles4{};
  value = value < 255.0 ? value : Doubles4{} + 255.0;
  return __builtin_convertvector(value, Ints4);
}

}  // namespace

// Pixels [left, top, left + width, top + height) of a picture of `step` bytes a line, as if they were a picture of their
// own, resized bicubically to [to_height, to_width].
extern "C" int crossvit_resize(const uint8_t* picture, int64_t step, int left, int top, int width, int height,
                               uint8_t* to, int to_width, int to_height) {
  try {
    const Taps columns(width, to_width), rows(height, to_height);
    const int64_t bytes = static_cast<int64_t>(to_width) * 4;
    std::vector<uint8_t> narrow(static_cast<size_t>(bytes) * height);
    std::vector<uint8_t> turned(static_cast<size_t>(width) * kTogether);
    for (int y = 0; y < height; y += kLines)
      across(picture + (top + y) * step + left * 4, step, std::min(kLines, height - y), width, columns, turned.data(),
             narrow.data() + y * bytes, bytes);
    for (int y = 0; y < to_height; ++y)
      down(narrow.data() + rows.first[y] * bytes, bytes, rows.weights.data() + static_cast<size_t>(y) * rows.most,
           rows.count[y], bytes, to + y * bytes);
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return 0;
}

// Pixel (x, y) becomes what stands at (a (x + .5) + b (y + .5) + c, d (x + .5) + e (y + .5) + f) of `picture`,
// bicubically; what lies outside is left as it is.
extern "C" MANY_TARGETS int crossvit_affine(const uint8_t* picture, int width, int height, const double* m, uint8_t* to) {
  const int64_t numbers = static_cast<int64_t>(width) * height * 4;
  auto* pixels = static_cast<float*>(std::aligned_alloc(64, (numbers * sizeof(float) + 63) / 64 * 64));
  if (!pixels) return kOutOfMemory;
  for (int64_t i = 0; i < numbers; ++i) pixels[i] = picture[i];
  const Source source{reinterpret_cast<const Floats4*>(pixels), width, height};
  std::vector<Ints4> line(width);
  for (int y = 0; y < height; ++y) {
    uint8_t* bytes = to + static_cast<int64_t>(y) * width * 4;
    auto* numbers_of_line = reinterpret_cast<int32_t*>(line.data());
    for (int i = 0; i < 4 * width; ++i) numbers_of_line[i] = bytes[i];
    for (int x = 0; x < width; ++x) {
      const double xc = x + 0.5, yc = y + 0.5;
      const double x_in = m[0] * xc + m[1] * yc + m[2], y_in = m[3] * xc + m[4] * yc + m[5];
      if (x_in >= 0.0 && x_in < width && y_in >= 0.0 && y_in < height) line[x] = sample(source, x_in, y_in);
    }
    for (int i = 0; i < 4 * width; ++i) bytes[i] = static_cast<uint8_t>(numbers_of_line[i]);
  }
  std::free(pixels);
  return 0;
}

// Pixels [count] to three planes of numbers, value * scale - shift each.
extern "C" MANY_TARGETS int crossvit_normalise(const uint8_t* picture, int64_t count, const float* scale,
                                                const float* shift, float* to) {
  for (int c = 0; c < 3; ++c) {
    float* plane = to + c * count;
    const float by = scale[c], less = shift[c];
    for (int64_t i = 0; i < count; ++i) plane[i] = static_cast<float>(picture[4 * i + c]) * by - less;
  }
  return 0;
}
