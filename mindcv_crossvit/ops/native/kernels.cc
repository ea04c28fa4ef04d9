// Kernels of the `native` operators, called by MindSpore through ops.Custom("file.so:name", func_type="aot").
//
// T tokens, C width, O/I out and in width, B pictures, N tokens of a picture, H heads, D = C/H. All tensors are float32
// and row-major. Matrix products are oneDNN's, from the library MindSpore has loaded (crossvit_bind). Work is cut into
// pieces whose intermediate values stay in the cache; each thread sums gradients of weights by itself, and the sums are
// added in the threads' order, so that a number of threads always gives the same bits.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

// Loops over numbers are compiled for several instruction sets; the loader picks what the processor has. By features:
// an "arch=" is met by that very processor only, and a Cascade Lake, say, would get the default.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(CROSSVIT_PLAIN)
#define MANY_TARGETS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MANY_TARGETS
#endif
#define INLINE static inline __attribute__((always_inline))
#define KERNEL(name) \
  extern "C" int name(int count, void** data, int* ranks, int64_t** shapes, const char** types, void* stream, void* extra)

namespace {

using Index = int64_t;
using Gemm = int (*)(char, char, Index, Index, Index, float, const float*, Index, const float*, Index, float, float*,
                     Index);
Gemm gemm = nullptr;
constexpr int kNotBound = 101, kOutOfMemory = 102;

// exp(x) to 1 ulp for x <= 88; 0 below -87. The polynomial is Cephes's.
INLINE float exp_of(float x) {
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  float n = std::floor(x * 1.44269504088896341f + 0.5f);
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  float y = p * r * r + r + 1.0f;
  int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return y * scale;
}

// The normal distribution's Phi(x) by Abramowitz and Stegun 26.2.17's kin for erf, 7.1.26 (error 7.5e-8), and its
// density phi(x), which the formula needs anyway.
INLINE void normal_of(float x, float* share, float* density) {
  float a = std::fabs(x) * 0.70710678118654752f;
  float t = 1.0f / (1.0f + 0.3275911f * a);
  float e = exp_of(-a * a);
  float poly = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  float tail = 0.5f * poly * e;
  *share = x < 0.0f ? tail : 1.0f - tail;
  *density = 0.39894228040143268f * e;
}

MANY_TARGETS void add_row(float* x, const float* row, Index width) {
#pragma omp simd
  for (Index c = 0; c < width; ++c) x[c] += row[c];
}

MANY_TARGETS void normalise(const float* x, Index width, float eps, const float* weight, const float* bias, float* hat,
                            float* y, float* inverse_std) {
  float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (Index c = 0; c < width; ++c) sum += x[c];
  float mean = sum / static_cast<float>(width);
#pragma omp simd reduction(+ : squares)
  for (Index c = 0; c < width; ++c) squares += (x[c] - mean) * (x[c] - mean);
  float inverse = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
#pragma omp simd
  for (Index c = 0; c < width; ++c) {
    float h = (x[c] - mean) * inverse;
    if (hat) hat[c] = h;
    y[c] = h * weight[c] + bias[c];
  }
  *inverse_std = inverse;
}

// The gradient of a row's norm from d, the gradient of its output; sums those of the norm's weight and bias.
MANY_TARGETS void normalise_gradient(const float* d, const float* hat, const float* weight, float inverse, Index width,
                                     float* dx, float* d_weight, float* d_bias) {
  float first = 0.0f, second = 0.0f;
#pragma omp simd reduction(+ : first, second)
  for (Index c = 0; c < width; ++c) {
    float a = d[c] * weight[c];
    first += a;
    second += a * hat[c];
    d_weight[c] += d[c] * hat[c];
    d_bias[c] += d[c];
  }
  first /= static_cast<float>(width);
  second /= static_cast<float>(width);
#pragma omp simd
  for (Index c = 0; c < width; ++c) dx[c] = inverse * (d[c] * weight[c] - first - hat[c] * second);
}

// before [n] += bias [n]; after = GELU(before)
MANY_TARGETS void bias_gelu(float* before, const float* bias, float* after, Index width) {
#pragma omp simd
  for (Index c = 0; c < width; ++c) {
    float v = before[c] + bias[c], share, density;
    normal_of(v, &share, &density);
    before[c] = v;
    after[c] = v * share;
  }
}

// after = GELU(before), d becomes the gradient of `before`, whose sum goes to d_bias
MANY_TARGETS void gelu_gradient(const float* before, float* after, float* d, float* d_bias, Index width) {
#pragma omp simd
  for (Index c = 0; c < width; ++c) {
    float v = before[c], share, density;
    normal_of(v, &share, &density);
    after[c] = v * share;
    d[c] *= share + v * density;
    d_bias[c] += d[c];
  }
}

// scores -> probabilities in place; returns log(sum exp)
MANY_TARGETS float softmax(float* x, Index count) {
  float top = x[0], sum = 0.0f;
#pragma omp simd reduction(max : top)
  for (Index c = 0; c < count; ++c) top = x[c] > top ? x[c] : top;
#pragma omp simd reduction(+ : sum)
  for (Index c = 0; c < count; ++c) {
    x[c] = exp_of(x[c] - top);
    sum += x[c];
  }
  float scale = 1.0f / sum;
#pragma omp simd
  for (Index c = 0; c < count; ++c) x[c] *= scale;
  return top + std::log(sum);
}

MANY_TARGETS void probabilities(float* x, float log_sum, Index count) {
#pragma omp simd
  for (Index c = 0; c < count; ++c) x[c] = exp_of(x[c] - log_sum);
}

MANY_TARGETS float dot(const float* a, const float* b, Index count) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (Index c = 0; c < count; ++c) sum += a[c] * b[c];
  return sum;
}

MANY_TARGETS void score_gradient(float* d, const float* probability, float shift, float scale, Index count) {
#pragma omp simd
  for (Index c = 0; c < count; ++c) d[c] = probability[c] * (d[c] - shift) * scale;
}

MANY_TARGETS void scale_to(float* y, const float* x, float factor, Index count) {
#pragma omp simd
  for (Index c = 0; c < count; ++c) y[c] = x[c] * factor;
}

// Memory of one thread for one call; grows and is kept.
float* scratch(Index count) {
  struct Owned {
    float* memory = nullptr;
    Index size = 0;
    ~Owned() { std::free(memory); }
  };
  static thread_local Owned own;
  if (own.size < count) {
    std::free(own.memory);
    own.size = 0;
    own.memory = static_cast<float*>(std::aligned_alloc(64, (count * 4 + 63) / 64 * 64));
    if (!own.memory) throw std::bad_alloc();
    own.size = count;
  }
  return own.memory;
}

// Rows cut into pieces that fill the threads evenly and keep their intermediate values in the cache.
struct Pieces {
  Index rows, count;
  Index total;
  explicit Pieces(Index total_rows) : total(total_rows) {
    Index threads = omp_get_max_threads(), wanted = (total_rows + 255) / 256;
    count = std::max<Index>(1, (wanted + threads - 1) / threads * threads);
    rows = std::max<Index>(1, (total_rows + count - 1) / count);
    count = (total_rows + rows - 1) / rows;
  }
  Index first(Index piece) const { return piece * rows; }
  Index size(Index piece) const { return std::min(rows, total - piece * rows); }
};

// One thread's sums of several gradients, side by side in one block.
struct Sums {
  Index threads, size;
  std::vector<float> values;
  explicit Sums(Index numbers) : threads(omp_get_max_threads()), size(numbers), values(threads * numbers) {}
  float* mine() { return values.data() + omp_get_thread_num() * size; }
  void into(float* target, Index offset, Index count) const {
#pragma omp parallel for schedule(static)
    for (Index i = 0; i < count; ++i) {
      float sum = 0.0f;
      for (Index t = 0; t < threads; ++t) sum += values[t * size + offset + i];
      target[i] = sum;
    }
  }
};

template <class Work>
int guarded(Work work) {
  if (!gemm) return kNotBound;
  try {
    work();
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return 0;
}

// Calls body(piece) in parallel; an exception in it is reported by the return value of the kernel.
template <class Body>
void parallel(Index count, Body body) {
  bool failed = false;
#pragma omp parallel for schedule(static)
  for (Index i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      failed = true;
    }
  }
  if (failed) throw std::bad_alloc();
}

const float* in(void** data, int k) { return static_cast<const float*>(data[k]); }
float* out(void** data, int k) { return static_cast<float*>(data[k]); }

}  // namespace

// Gives the kernels oneDNN's dnnl_sgemm.
extern "C" void crossvit_bind(void* sgemm) { gemm = reinterpret_cast<Gemm>(sgemm); }

// x [T, I], weight [O, I], bias [O] -> [T, O]
KERNEL(linear) {
  const float *x = in(data, 0), *weight = in(data, 1), *bias = in(data, 2);
  const Index tokens = shapes[0][0], inner = shapes[0][1], outer = shapes[1][0];
  float* y = out(data, 3);
  return guarded([&] {
    Pieces pieces(tokens);
    parallel(pieces.count, [&](Index p) {
      const Index first = pieces.first(p), rows = pieces.size(p);
      float* block = y + first * outer;
      gemm('N', 'T', rows, outer, inner, 1.0f, x + first * inner, inner, weight, inner, 0.0f, block, outer);
      for (Index r = 0; r < rows; ++r) add_row(block + r * outer, bias, outer);
    });
  });
}

// x [T, I], weight [O, I], dy [T, O] -> dx [T, I], d_weight [O, I], d_bias [O]
KERNEL(linear_gradient) {
  const float *x = in(data, 0), *weight = in(data, 1), *dy = in(data, 2);
  const Index tokens = shapes[0][0], inner = shapes[0][1], outer = shapes[1][0];
  float* dx = out(data, 3);
  return guarded([&] {
    Pieces pieces(tokens);
    Sums sums(outer * inner + outer);
    parallel(pieces.count, [&](Index p) {
      const Index first = pieces.first(p), rows = pieces.size(p);
      const float* d = dy + first * outer;
      float *d_weight = sums.mine(), *d_bias = d_weight + outer * inner;
      gemm('T', 'N', outer, inner, rows, 1.0f, d, outer, x + first * inner, inner, 1.0f, d_weight, inner);
      gemm('N', 'N', rows, inner, outer, 1.0f, d, outer, weight, inner, 0.0f, dx + first * inner, inner);
      for (Index r = 0; r < rows; ++r) add_row(d_bias, d + r * outer, outer);
    });
    sums.into(out(data, 4), 0, outer * inner);
    sums.into(out(data, 5), outer * inner, outer);
  });
}

// x [T, C], norm's weight and bias [C], eps [1], weight [O, C], bias [O] -> [T, O]
KERNEL(norm_linear) {
  const float *x = in(data, 0), *g = in(data, 1), *b = in(data, 2), *weight = in(data, 4), *bias = in(data, 5);
  const Index tokens = shapes[0][0], width = shapes[0][1], outer = shapes[4][0];
  const float eps = in(data, 3)[0];
  float* y = out(data, 6);
  return guarded([&] {
    Pieces pieces(tokens);
    parallel(pieces.count, [&](Index p) {
      const Index first = pieces.first(p), rows = pieces.size(p);
      float *normed = scratch(rows * width), *block = y + first * outer, inverse;
      for (Index r = 0; r < rows; ++r)
        normalise(x + (first + r) * width, width, eps, g, b, nullptr, normed + r * width, &inverse);
      gemm('N', 'T', rows, outer, width, 1.0f, normed, width, weight, width, 0.0f, block, outer);
      for (Index r = 0; r < rows; ++r) add_row(block + r * outer, bias, outer);
    });
  });
}

// x, norm's weight and bias, eps, weight as above, dy [T, O]
//   -> dx [T, C], d_norm_weight [C], d_norm_bias [C], d_weight [O, C], d_bias [O]
KERNEL(norm_linear_gradient) {
  const float *x = in(data, 0), *g = in(data, 1), *b = in(data, 2), *weight = in(data, 4), *dy = in(data, 5);
  const Index tokens = shapes[0][0], width = shapes[0][1], outer = shapes[4][0], area = outer * width;
  const float eps = in(data, 3)[0];
  float* dx = out(data, 6);
  return guarded([&] {
    Pieces pieces(tokens);
    Sums sums(area + outer + 2 * width);
    parallel(pieces.count, [&](Index p) {
      const Index first = pieces.first(p), rows = pieces.size(p);
      const float* d = dy + first * outer;
      float *d_weight = sums.mine(), *d_bias = d_weight + area, *dg = d_bias + outer, *db = dg + width;
      float *hat = scratch(3 * rows * width + rows), *normed = hat + rows * width, *d_normed = normed + rows * width;
      float* inverse = d_normed + rows * width;
      for (Index r = 0; r < rows; ++r)
        normalise(x + (first + r) * width, width, eps, g, b, hat + r * width, normed + r * width, inverse + r);
      gemm('T', 'N', outer, width, rows, 1.0f, d, outer, normed, width, 1.0f, d_weight, width);
      gemm('N', 'N', rows, width, outer, 1.0f, d, outer, weight, width, 0.0f, d_normed, width);
      for (Index r = 0; r < rows; ++r) {
        add_row(d_bias, d + r * outer, outer);
        normalise_gradient(d_normed + r * width, hat + r * width, g, inverse[r], width, dx + (first + r) * width, dg,
                           db);
      }
    });
    sums.into(out(data, 7), area + outer, width);
    sums.into(out(data, 8), area + outer + width, width);
    sums.into(out(data, 9), 0, area);
    sums.into(out(data, 10), area, outer);
  });
}

// x [T, C], norm's weight and bias [C], eps [1], weight1 [O, C], bias1 [O], weight2 [C, O], bias2 [C]
//   -> y [T, C], and while training the hidden layer before its GELU [T, O]
KERNEL(norm_mlp) {
  const float *x = in(data, 0), *g = in(data, 1), *b = in(data, 2);
  const float *weight1 = in(data, 4), *bias1 = in(data, 5), *weight2 = in(data, 6), *bias2 = in(data, 7);
  const Index tokens = shapes[0][0], width = shapes[0][1], hidden = shapes[4][0];
  const float eps = in(data, 3)[0];
  float *y = out(data, 8), *kept = count > 9 ? out(data, 9) : nullptr;
  return guarded([&] {
    Pieces pieces(tokens);
    parallel(pieces.count, [&](Index p) {
      const Index first = pieces.first(p), rows = pieces.size(p);
      float *normed = scratch(rows * (width + 2 * hidden)), *after = normed + rows * width, inverse;
      float *before = kept ? kept + first * hidden : after + rows * hidden, *block = y + first * width;
      for (Index r = 0; r < rows; ++r)
        normalise(x + (first + r) * width, width, eps, g, b, nullptr, normed + r * width, &inverse);
      gemm('N', 'T', rows, hidden, width, 1.0f, normed, width, weight1, width, 0.0f, before, hidden);
      for (Index r = 0; r < rows; ++r) bias_gelu(before + r * hidden, bias1, after + r * hidden, hidden);
      gemm('N', 'T', rows, width, hidden, 1.0f, after, hidden, weight2, hidden, 0.0f, block, width);
      for (Index r = 0; r < rows; ++r) add_row(block + r * width, bias2, width);
    });
  });
}

// x, norm's weight and bias, eps, weight1, weight2 as above, hidden layer before its GELU [T, O], dy [T, C]
//   -> dx [T, C], d_norm_weight [C], d_norm_bias [C], d_weight1 [O, C], d_bias1 [O], d_weight2 [C, O], d_bias2 [C]
KERNEL(norm_mlp_gradient) {
  const float *x = in(data, 0), *g = in(data, 1), *b = in(data, 2);
  const float *weight1 = in(data, 4), *weight2 = in(data, 5), *kept = in(data, 6), *dy = in(data, 7);
  const Index tokens = shapes[0][0], width = shapes[0][1], hidden = shapes[4][0], area = hidden * width;
  const float eps = in(data, 3)[0];
  float* dx = out(data, 8);
  return guarded([&] {
    Pieces pieces(tokens);
    Sums sums(2 * area + hidden + 3 * width);
    parallel(pieces.count, [&](Index p) {
      const Index first = pieces.first(p), rows = pieces.size(p);
      const float *d = dy + first * width, *before = kept + first * hidden;
      float *d_weight1 = sums.mine(), *d_weight2 = d_weight1 + area, *d_bias1 = d_weight2 + area;
      float *d_bias2 = d_bias1 + hidden, *dg = d_bias2 + width, *db = dg + width;
      float *after = scratch(rows * (2 * hidden + 3 * width) + rows), *d_before = after + rows * hidden;
      float *hat = d_before + rows * hidden, *normed = hat + rows * width, *d_normed = normed + rows * width;
      float* inverse = d_normed + rows * width;
      gemm('N', 'N', rows, hidden, width, 1.0f, d, width, weight2, hidden, 0.0f, d_before, hidden);
      for (Index r = 0; r < rows; ++r) {
        add_row(d_bias2, d + r * width, width);
        gelu_gradient(before + r * hidden, after + r * hidden, d_before + r * hidden, d_bias1, hidden);
        normalise(x + (first + r) * width, width, eps, g, b, hat + r * width, normed + r * width, inverse + r);
      }
      gemm('T', 'N', width, hidden, rows, 1.0f, d, width, after, hidden, 1.0f, d_weight2, hidden);
      gemm('T', 'N', hidden, width, rows, 1.0f, d_before, hidden, normed, width, 1.0f, d_weight1, width);
      gemm('N', 'N', rows, width, hidden, 1.0f, d_before, hidden, weight1, width, 0.0f, d_normed, width);
      for (Index r = 0; r < rows; ++r)
        normalise_gradient(d_normed + r * width, hat + r * width, g, inverse[r], width, dx + (first + r) * width, dg,
                           db);
    });
    sums.into(out(data, 9), 2 * area + hidden + width, width);
    sums.into(out(data, 10), 2 * area + hidden + 2 * width, width);
    sums.into(out(data, 11), 0, area);
    sums.into(out(data, 12), 2 * area, hidden);
    sums.into(out(data, 13), area, area);
    sums.into(out(data, 14), 2 * area + hidden, width);
  });
}

// qkv [B, N, 3, H, D] -> [B*N, H*D], log(sum exp) of each query's scores [B, H, N]
KERNEL(attention) {
  const float* qkv = in(data, 0);
  const Index batch = shapes[0][0], tokens = shapes[0][1], heads = shapes[0][3], dim = shapes[0][4];
  const Index width = heads * dim, step = 3 * width, block = 128, blocks = (tokens + block - 1) / block;
  float *y = out(data, 1), *log_sums = out(data, 2);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  return guarded([&] {
    parallel(batch * heads * blocks, [&](Index i) {
      const Index head = i / blocks, first = i % blocks * block, rows = std::min(block, tokens - first);
      const Index b = head / heads, h = head % heads;
      const float *q = qkv + (b * tokens + first) * step + h * dim, *k = qkv + b * tokens * step + width + h * dim;
      float* scores = scratch(rows * tokens);
      gemm('N', 'T', rows, tokens, dim, scale, q, step, k, step, 0.0f, scores, tokens);
      for (Index r = 0; r < rows; ++r) log_sums[head * tokens + first + r] = softmax(scores + r * tokens, tokens);
      gemm('N', 'N', rows, dim, tokens, 1.0f, scores, tokens, k + width, step, 0.0f,
           y + (b * tokens + first) * width + h * dim, width);
    });
  });
}

// qkv, output, log sums as above, dy [B*N, H*D] -> d_qkv [B, N, 3, H, D]
KERNEL(attention_gradient) {
  const float *qkv = in(data, 0), *y = in(data, 1), *log_sums = in(data, 2), *dy = in(data, 3);
  const Index batch = shapes[0][0], tokens = shapes[0][1], heads = shapes[0][3], dim = shapes[0][4];
  const Index width = heads * dim, step = 3 * width, block = 128;
  float* d_qkv = out(data, 4);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  return guarded([&] {
    parallel(batch * heads, [&](Index head) {
      const Index b = head / heads, h = head % heads;
      const Index at = b * tokens * step + h * dim, at_y = b * tokens * width + h * dim;
      const float *q = qkv + at, *k = q + width, *v = k + width, *d = dy + at_y;
      float *dq = d_qkv + at, *dk = dq + width, *dv = dk + width;
      for (Index first = 0; first < tokens; first += block) {
        const Index rows = std::min(block, tokens - first);
        const float *q_rows = q + first * step, *d_rows = d + first * width, added = first ? 1.0f : 0.0f;
        float *p = scratch(2 * rows * tokens), *ds = p + rows * tokens;
        gemm('N', 'T', rows, tokens, dim, scale, q_rows, step, k, step, 0.0f, p, tokens);
        gemm('N', 'T', rows, tokens, dim, 1.0f, d_rows, width, v, step, 0.0f, ds, tokens);
        for (Index r = 0; r < rows; ++r) {
          probabilities(p + r * tokens, log_sums[head * tokens + first + r], tokens);
          const float shift = dot(d_rows + r * width, y + at_y + (first + r) * width, dim);
          score_gradient(ds + r * tokens, p + r * tokens, shift, scale, tokens);
        }
        gemm('T', 'N', tokens, dim, rows, 1.0f, p, tokens, d_rows, width, added, dv, step);
        gemm('N', 'N', rows, dim, tokens, 1.0f, ds, tokens, k, step, 0.0f, dq + first * step, step);
        gemm('T', 'N', tokens, dim, rows, 1.0f, ds, tokens, q_rows, step, added, dk, step);
      }
    });
  });
}

// x [T, C], factors [B] -> each picture's rows times its factor
KERNEL(scale_pictures) {
  const float *x = in(data, 0), *factors = in(data, 1);
  const Index size = shapes[0][0] * shapes[0][1] / shapes[1][0];
  float* y = out(data, 2);
  return guarded([&] { parallel(shapes[1][0], [&](Index b) { scale_to(y + b * size, x + b * size, factors[b], size); }); });
}

namespace {

// A convolution: what its kernel of side K sees of x, maps [B, H, W, I] or an image [B, I, H, W], for some rows of the
// output [B, down, across, O], as rows of a product. `how` says [stride, pad + 1, 2 for an image] by its shape.
struct Convolution {
  Index batch, height, width, channels, side, outer, stride, pad, down, across, inner, block, blocks;
  bool image;
  Convolution(const int64_t* x, const int64_t* weight, const int64_t* how)
      : batch(x[0]), side(weight[2]), outer(weight[0]), stride(how[0]), pad(how[1] - 1), image(how[2] == 2) {
    height = x[image ? 2 : 1], width = x[image ? 3 : 2], channels = x[image ? 1 : 3];
    down = (height + 2 * pad - side) / stride + 1, across = (width + 2 * pad - side) / stride + 1;
    inner = channels * side * side;
    const Index positions = std::min<Index>(256, std::max<Index>(32, 131072 / inner));  // half a megabyte
    block = std::min(down, std::max<Index>(1, positions / across)), blocks = (down + block - 1) / block;
  }
  Index first(Index part) const { return part % blocks * block; }
  Index rows(Index part) const { return std::min(block, down - first(part)); }
  Index size() const { return height * width * channels; }

  // Calls each(offset in a row of the product, offset in a picture, numbers) for all runs that lie in the picture.
  template <class Each>
  void runs(Index i, Index j, Each each) const {
    const Index left = j * stride - pad, from = std::max<Index>(0, -left), to = std::min(side, width - left);
    if (from >= to) return;
    for (Index k = 0; k < side; ++k) {
      const Index y = i * stride - pad + k;
      if (y < 0 || y >= height) continue;
      if (!image) {
        each((k * side + from) * channels, (y * width + left + from) * channels, (to - from) * channels);
        continue;
      }
      for (Index c = 0; c < channels; ++c)
        each((c * side + k) * side + from, (c * height + y) * width + left + from, to - from);
    }
  }
  bool inside(Index i, Index j) const {
    const Index y = i * stride - pad, x = j * stride - pad;
    return y >= 0 && x >= 0 && y + side <= height && x + side <= width;
  }
  void gather(const float* picture, Index first_row, Index count, float* seen) const {
    for (Index i = first_row; i < first_row + count; ++i)
      for (Index j = 0; j < across; ++j, seen += inner) {
        if (!inside(i, j)) std::memset(seen, 0, inner * sizeof(float));
        runs(i, j, [&](Index to, Index from, Index n) { std::memcpy(seen + to, picture + from, n * sizeof(float)); });
      }
  }
  void scatter(const float* seen, Index first_row, Index count, float* picture) const {
    for (Index i = first_row; i < first_row + count; ++i)
      for (Index j = 0; j < across; ++j, seen += inner)
        runs(i, j, [&](Index from, Index to, Index n) { add_row(picture + to, seen + from, n); });
  }
  // [O, I, K, K] to the order of a row of the product and back, which for maps is [O, K, K, I].
  template <class Move>
  void reorder(Move move) const {
    const Index area = side * side;
    for (Index o = 0; o < outer; ++o)
      for (Index c = 0; c < channels; ++c)
        for (Index k = 0; k < area; ++k)
          move((o * channels + c) * area + k, image ? (o * channels + c) * area + k : (o * area + k) * channels + c);
  }
  std::vector<float> ordered(const float* weight) const {
    std::vector<float> rows(outer * inner);
    reorder([&](Index theirs, Index ours) { rows[ours] = weight[theirs]; });
    return rows;
  }
};

}  // namespace

// x, weight [O, I, K, K], bias [O], how -> [B, down, across, O]
KERNEL(convolution) {
  const float *x = in(data, 0), *bias = in(data, 2);
  const Convolution conv(shapes[0], shapes[1], shapes[3]);
  float* y = out(data, 4);
  return guarded([&] {
    const std::vector<float> weight = conv.ordered(in(data, 1));
    parallel(conv.batch * conv.blocks, [&](Index p) {
      const Index b = p / conv.blocks, first = conv.first(p), positions = conv.rows(p) * conv.across;
      float *seen = scratch(positions * conv.inner), *block = y + (b * conv.down + first) * conv.across * conv.outer;
      conv.gather(x + b * conv.size(), first, conv.rows(p), seen);
      gemm('N', 'T', positions, conv.outer, conv.inner, 1.0f, seen, conv.inner, weight.data(), conv.inner, 0.0f, block,
           conv.outer);
      for (Index r = 0; r < positions; ++r) add_row(block + r * conv.outer, bias, conv.outer);
    });
  });
}

// x, weight, dy [B, down, across, O], how -> d_weight [O, I, K, K], d_bias [O], and for maps dx
KERNEL(convolution_gradient) {
  const float *x = in(data, 0), *dy = in(data, 2);
  const Convolution conv(shapes[0], shapes[1], shapes[3]);
  const Index area = conv.outer * conv.inner;
  float *d_weight = out(data, 4), *dx = count > 6 ? out(data, 6) : nullptr;
  return guarded([&] {
    const std::vector<float> weight = conv.ordered(in(data, 1));
    Sums sums(area + conv.outer);
    parallel(conv.batch, [&](Index b) {
      float *sum = sums.mine(), *picture = dx ? dx + b * conv.size() : nullptr;
      if (picture) std::memset(picture, 0, conv.size() * sizeof(float));
      for (Index part = 0; part < conv.blocks; ++part) {
        const Index first = conv.first(part), rows = conv.rows(part), positions = rows * conv.across;
        const float* d = dy + (b * conv.down + first) * conv.across * conv.outer;
        float* seen = scratch(positions * conv.inner);
        conv.gather(x + b * conv.size(), first, rows, seen);
        gemm('T', 'N', conv.outer, conv.inner, positions, 1.0f, d, conv.outer, seen, conv.inner, 1.0f, sum, conv.inner);
        for (Index r = 0; r < positions; ++r) add_row(sum + area, d + r * conv.outer, conv.outer);
        if (!picture) continue;
        gemm('N', 'N', positions, conv.inner, conv.outer, 1.0f, d, conv.outer, weight.data(), conv.inner, 0.0f, seen,
             conv.inner);
        conv.scatter(seen, first, rows, picture);
      }
    });
    std::vector<float> ordered(area);
    sums.into(ordered.data(), 0, area);
    conv.reorder([&](Index theirs, Index ours) { d_weight[theirs] = ordered[ours]; });
    sums.into(out(data, 5), area, conv.outer);
  });
}
