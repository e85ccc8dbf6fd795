// One fused pass over a range of the vocabulary: matrix product and, while its result is in the cache, every sum of sums.py.
//
// Rows of hidden vectors are lanes: anchors first, each set of policies from a new vector on, they are packed once as panels of
// [depth][PANEL], the unembedding is read as it lies, and a tile of logits comes out as [token][row], so that no sum ever crosses lanes. Plain C++17 with the vector extension of GCC and Clang;
// the one intrinsic is the product of bfloat16 pairs, exact products summed in float32. Within a chunk sums are float32,
// across chunks double.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16, TOKENS = 8;  // 24 sums, 3 rows and 1 weight in 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8, TOKENS = 4;  // 12 + 3 + 1 in 16
#else
constexpr int LANES = 4, TOKENS = 8;
#endif
constexpr int VECTORS = 3, PANEL = VECTORS * LANES;
constexpr long CHUNK = 128;  // tokens whose logits are reduced at a time
constexpr float INF = std::numeric_limits<float>::infinity();

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t veci __attribute__((vector_size(LANES * 4)));

static inline vec load(const void* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline vec all(float x) { return x - vec{}; }
static inline vec larger(vec a, vec b) { return a > b ? a : b; }

// e^y for y <= 0; 0 below -87, and NaN stays NaN
static inline vec exp_of(vec y) {
  const veci tiny = y < all(-87.0f);
  y = tiny ? all(-87.0f) : y;
  vec shifted = y * 1.44269504f + 12582912.0f;  // rounds to an integer, in the low bits
  vec n = shifted - 12582912.0f;
  vec r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  return (vec)(((veci)p + ((veci)shifted << 23)) & ~tiny);
}

// a set of policies: its vectors and what is known of each so far
struct Policies {
  long n, first;  // rows, and the vector that holds the first of them
  float* m;
  double* S;
  double* A;
  long k;  // largest logits to keep, 0 for none
  float* values;  // [n, k], descending
  int64_t* ids;
};

static long vectors_of(const Policies& who) { return (who.n + LANES - 1) / LANES; }

struct Pass {
  const uint32_t* packed;
  const void* weight;  // [vocab, d]
  const float* bias;  // [vocab] or null
  long d, start, stop;
  int32_t weight_bf16, dot_bf16, product_alone;  // alone: for timing
  float scale, per_temperature;
  Policies own, final, reference;  // of anchors that are not asked for, n is 0
  const int64_t* targets;  // [own.n] or null
  float* target;
  double* kl;  // [own.n] or null
  double* kl_from;
};

// depth in units of 32 bits: a float, or a pair of bfloat16
static long units(const Pass& p) { return p.dot_bf16 ? p.d / 2 : p.d; }

// writes rows where they belong in the panels, from the vector `first` on
extern "C" void layerlens_pack(const void* hidden, long n, long d, int bf16, int dot, long first, uint32_t* packed) {
  const long depth = dot ? d / 2 : d;
  for (long v = 0; v * LANES < n; v++) {
    const long rows = n - v * LANES < LANES ? n - v * LANES : LANES;
    uint32_t* out = packed + (first + v) / VECTORS * depth * PANEL + (first + v) % VECTORS * LANES;
    for (long k0 = 0; k0 < depth; k0 += 16)  // a line of the cache from each row, then the next
      for (long i = 0; i < rows; i++)
        for (long k = k0; k < k0 + 16 && k < depth; k++) {
          long at = (v * LANES + i) * (bf16 && !dot ? d : depth) + k;
          out[k * PANEL + i] = bf16 && !dot ? uint32_t(((const uint16_t*)hidden)[at]) << 16 : ((const uint32_t*)hidden)[at];
        }
  }
}

extern "C" int layerlens_lanes() { return LANES; }
extern "C" int layerlens_panel() { return PANEL; }

template <bool DOT, int T, int N>  // T tokens, N vectors of rows
static inline void tile(const uint32_t* weight, long stride, const uint32_t* rows, long depth, float* out) {
  vec sums[T][N] = {};
  for (long k = 0; k < depth; k++) {
    vec h[N];
#pragma GCC unroll 3
    for (int c = 0; c < N; c++) h[c] = load(rows + k * PANEL + c * LANES);
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      uint32_t w = weight[t * stride + k];
#if defined(__AVX512BF16__)
      if constexpr (DOT) {
#pragma GCC unroll 3
        for (int c = 0; c < N; c++)
          sums[t][c] = (vec)_mm512_dpbf16_ps((__m512)sums[t][c], (__m512bh)h[c], (__m512bh)_mm512_set1_epi32(w));
        continue;
      }
#endif
      float x;
      std::memcpy(&x, &w, 4);
#pragma GCC unroll 3
      for (int c = 0; c < N; c++) sums[t][c] += h[c] * x;
    }
  }
  for (int t = 0; t < T; t++) std::memcpy(out + t * PANEL, sums[t], sizeof sums[t]);
}

template <bool DOT, int N>
static void tiles(const uint32_t* weight, long stride, long tokens, const uint32_t* rows, long depth, float* out) {
  long t = 0;
  for (; t + TOKENS <= tokens; t += TOKENS) tile<DOT, TOKENS, N>(weight + t * stride, stride, rows, depth, out + t * PANEL);
  for (; t < tokens; t++) tile<DOT, 1, N>(weight + t * stride, stride, rows, depth, out + t * PANEL);
}

// logits of the first `vectors` of a panel: [tokens][PANEL]
template <bool DOT>
static void product(const uint32_t* weight, long stride, long tokens, const uint32_t* rows, long vectors, long depth, float* out) {
  auto how = vectors > 2 ? tiles<DOT, 3> : vectors > 1 ? tiles<DOT, 2> : tiles<DOT, 1>;
  how(weight, stride, tokens, rows, depth, out);
}

static void finish(const Pass& p, long start, long tokens, float* x) {
  if (!p.bias && p.scale == 1 && p.per_temperature == 1) return;
  for (long t = 0; t < tokens; t++) {
    float b = p.bias ? p.bias[start + t] : 0;
    for (int i = 0; i < PANEL; i++) x[t * PANEL + i] = (x[t * PANEL + i] * p.scale + b) * p.per_temperature;
  }
}

// the k largest of one row so far: what a chunk adds to them
static void keep_largest(const Policies& who, long row, const float* column, long tokens, long start) {
  float* values = who.values + row * who.k;
  int64_t* ids = who.ids + row * who.k;
  for (long t = 0; t < tokens; t++) {
    float x = column[t * PANEL];
    if (!(x > values[who.k - 1])) continue;
    long at = who.k - 1;
    for (; at > 0 && x > values[at - 1]; at--) values[at] = values[at - 1], ids[at] = ids[at - 1];
    values[at] = x, ids[at] = start + t;
  }
}

// an anchor's logits in a chunk less each row's largest, and e^ of them: [token][padded rows]
struct Anchor {
  std::vector<float> y, e;
  std::vector<double> m, S;  // of the chunk: what two policies' logits differ by as a whole must not enter sums of float32
  std::vector<double> ratio, weight;  // what the chunk has done to the sums of each row: see reduce
  long width = 0;
};

// the rows again after the last one, so that any LANES of a stack's rows lie side by side
static void repeat(Anchor& anchor, long n, long tokens) {
  for (std::vector<float>* values : {&anchor.y, &anchor.e})
    for (long t = 0; n && t < tokens; t++)
      for (long i = 0; i < LANES; i++) (*values)[t * anchor.width + n + i] = (*values)[t * anchor.width + i];
}

// takes one vector's chunk of logits, [tokens][PANEL], into the sums of its rows, the `first` of a set and those after it
static void reduce(const Pass& p, const Policies& who, long first, const float* x, long tokens, long start, const Anchor* final,
                   const Anchor* reference, Anchor* keep) {
  const bool own = &who == &p.own;
  const long rows = who.n - first < LANES ? who.n - first : LANES;
  auto at = [&](long t) { return load(x + t * PANEL); };
  const float* y_final = final ? final->y.data() + first % p.final.n : nullptr;
  const float* y_from = reference ? reference->y.data() + first % p.reference.n : nullptr;
  const float* e_from = reference ? reference->e.data() + first % p.reference.n : nullptr;
  vec m = all(-INF), S = {}, A = {}, D = {}, D_from = {};
  for (long t = 0; t < tokens; t++) m = larger(at(t), m);
  for (long t = 0; t < tokens; t++) {
    vec y = at(t) - m, e = exp_of(y);
    S += e;
    A += e * y;
    if (final) D += e * (y - load(y_final + t * final->width));
    if (reference) D_from += load(e_from + t * reference->width) * (load(y_from + t * reference->width) - y);
    if (keep) {
      std::memcpy(keep->y.data() + t * keep->width + first, &y, sizeof y);
      std::memcpy(keep->e.data() + t * keep->width + first, &e, sizeof e);
    }
  }
  for (int i = 0; i < rows; i++) {
    long row = first + i;
    float top = who.m[row] > m[i] ? who.m[row] : m[i];
    double shift = who.S[row] > 0 ? double(who.m[row]) - top : 0, added = double(m[i]) - top;  // of what was there, and of what comes
    double ratio = std::exp(shift), weight = std::exp(added);
    if (own && p.targets && p.targets[row] >= start && p.targets[row] < start + tokens)
      p.target[row] = x[(p.targets[row] - start) * PANEL + i];
    if (who.k && m[i] > who.values[row * who.k + who.k - 1]) keep_largest(who, row, x + i, tokens, start);
    if (final) p.kl[row] = ratio * p.kl[row] + weight * (D[i] + S[i] * (m[i] - final->m[(first + i) % p.final.n]));
    if (reference) {
      long j = (first + i) % p.reference.n;
      p.kl_from[row] = reference->ratio[j] * p.kl_from[row] + reference->weight[j] * (D_from[i] + reference->S[j] * (reference->m[j] - m[i]));
    }
    who.A[row] = ratio * (who.A[row] + who.S[row] * shift) + weight * (A[i] + S[i] * added);
    who.S[row] = ratio * who.S[row] + weight * S[i];
    who.m[row] = top;
    if (keep) keep->ratio[row] = ratio, keep->weight[row] = weight, keep->m[row] = m[i], keep->S[row] = S[i];
  }
}

extern "C" void layerlens_pass(const Pass* pass) {
  const Pass& p = *pass;
  const long depth = units(p);
  const bool upcast = p.weight_bf16 && !p.dot_bf16;
  const Policies* groups[3] = {&p.final, &p.reference, &p.own};
  Anchor anchors[2];
  for (int g = 0; g < 2; g++) {
    Anchor& anchor = anchors[g];
    anchor.width = vectors_of(*groups[g]) * LANES + LANES;
    anchor.y.resize(CHUNK * anchor.width), anchor.e.resize(CHUNK * anchor.width);
    for (auto* values : {&anchor.m, &anchor.S, &anchor.ratio, &anchor.weight}) values->resize(anchor.width);
  }
  const long stride = upcast ? depth + 16 : depth;  // rows a page apart would share one set of the cache
  std::vector<uint32_t> floats(upcast ? CHUNK * stride : 0);
  std::vector<float> x(CHUNK * PANEL);
  const long end = p.own.first + vectors_of(p.own);
  for (long start = p.start; start < p.stop; start += CHUNK) {
    long tokens = p.stop - start < CHUNK ? p.stop - start : CHUNK;
    const uint32_t* weight = (const uint32_t*)p.weight + start * depth;
    if (upcast) {
      for (long t = 0; t < tokens; t++)
        for (long k = 0; k < depth; k++) floats[t * stride + k] = uint32_t(((const uint16_t*)p.weight)[(start + t) * p.d + k]) << 16;
      weight = floats.data();
    }
    for (long panel = 0; panel * VECTORS < end; panel++) {
      const long vectors = end - panel * VECTORS < VECTORS ? end - panel * VECTORS : VECTORS;
      (p.dot_bf16 ? product<true> : product<false>)(weight, stride, tokens, p.packed + panel * depth * PANEL, vectors, depth, x.data());
      if (p.product_alone) continue;
      finish(p, start, tokens, x.data());
      for (long v = panel * VECTORS; v < panel * VECTORS + vectors; v++) {
        const int g = v >= p.own.first ? 2 : p.reference.n && v >= p.reference.first ? 1 : 0;
        const Policies& who = *groups[g];
        reduce(p, who, (v - who.first) * LANES, x.data() + v % VECTORS * LANES, tokens, start, g == 2 && p.kl ? &anchors[0] : nullptr,
               g == 2 && p.kl_from ? &anchors[1] : nullptr, g < 2 ? &anchors[g] : nullptr);
        if (g < 2 && v + 1 == who.first + vectors_of(who)) repeat(anchors[g], who.n, tokens);
      }
    }
  }
}

extern "C" int layerlens_has_dot() {
#if defined(__AVX512BF16__)
  return 1;
#else
  return 0;
#endif
}
