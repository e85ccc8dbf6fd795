// One fused pass over a range of the vocabulary: the matrix product and, while its result is in the cache, every accumulator of
// moments.py (m, S, A and D; online softmax, Milakov & Gimelshein 2018).
//
// Rows of hidden vectors are lanes of SIMD vectors. They are packed once as panels of [depth][PANEL], anchors first, each set of
// policies from a new SIMD vector on. The unembedding is read in place. A tile of logits comes out as [token][row], so no
// sum crosses lanes. Plain C++17 with the vector extension of GCC and Clang; the one intrinsic is the product of bfloat16 pairs
// (exact products, summed in float32). Within a chunk the accumulators are float32, across chunks double.
#include <cmath>
#include <initializer_list>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "second_look.hpp"
#include "simd.hpp"

// one set of policies ("own" or an anchor), the accumulators of each row, and its largest logits so far
struct PolicySet {
  long rows, first_vector;  // number of rows, and the SIMD vector whose first lane holds the first row
  float* m;  // m, S and A have room for whole SIMD vectors of rows
  double* S;
  double* A;
  long k;  // number of largest logits to keep, 0 for none
  float* top_logits;  // [rows, k], descending
  int64_t* top_ids;
};

static long vectors_of(const PolicySet& set) { return (set.rows + LANES - 1) / LANES; }

struct RangePass {
  const uint32_t* packed;
  const void* weight;  // [vocabulary, d_model]
  const float* bias;  // [vocabulary] or null
  long d_model, start, stop;  // the tokens start...stop-1
  int32_t weight_bf16, dot_bf16, product_alone;  // product_alone, for timing: no reduction
  float scale, inverse_temperature;
  PolicySet own, final, reference;  // an anchor that is not asked for has no rows
  const int64_t* targets;  // [own.rows] or null
  float* target_logit;
  double* kl;  // D of KL(own || final), with room for whole SIMD vectors of rows, or null
  double* kl_from;  // D of KL(reference || own)
  float* kept;  // the logits of the range, [tokens][SIMD vectors of all sets], for a second look at them; or null
};

// length of a row in units of 32 bits: a float, or a pair of bfloat16
static long units(const RangePass& p) { return p.dot_bf16 ? p.d_model / 2 : p.d_model; }

// copies n rows into the panels, from SIMD vector `first` on
extern "C" void layerlens_pack(const void* hidden, long n, long d_model, int bf16, int dot, long first, uint32_t* packed) {
  const long depth = dot ? d_model / 2 : d_model;
  for (long v = 0; v * LANES < n; v++) {
    const long rows = n - v * LANES < LANES ? n - v * LANES : LANES;
    uint32_t* out = packed + (first + v) / VECTORS * depth * PANEL + (first + v) % VECTORS * LANES;
    for (long k0 = 0; k0 < depth; k0 += 16)  // one cache line of each row, then the next
      for (long i = 0; i < rows; i++)
        for (long k = k0; k < k0 + 16 && k < depth; k++) {
          long at = (v * LANES + i) * (bf16 && !dot ? d_model : depth) + k;
          out[k * PANEL + i] = bf16 && !dot ? uint32_t(((const uint16_t*)hidden)[at]) << 16 : ((const uint32_t*)hidden)[at];
        }
  }
}

extern "C" int layerlens_lanes() { return LANES; }
extern "C" int layerlens_panel() { return PANEL; }

// the product of T tokens and N SIMD vectors of rows: [token][PANEL]
template <bool DOT, int T, int N>
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

// the product of `tokens` tokens and the first `vectors` SIMD vectors of a panel: [tokens][PANEL]
template <bool DOT>
static void product(const uint32_t* weight, long stride, long tokens, const uint32_t* rows, long vectors, long depth, float* out) {
  auto tiles_of = vectors > 2 ? tiles<DOT, 3> : vectors > 1 ? tiles<DOT, 2> : tiles<DOT, 1>;
  tiles_of(weight, stride, tokens, rows, depth, out);
}

// the product to logits, in place
static void product_to_logits(const RangePass& p, long start, long tokens, float* x) {
  if (!p.bias && p.scale == 1 && p.inverse_temperature == 1) return;
  for (long t = 0; t < tokens; t++) {
    float b = p.bias ? p.bias[start + t] : 0;
    for (int i = 0; i < PANEL; i++) x[t * PANEL + i] = (x[t * PANEL + i] * p.scale + b) * p.inverse_temperature;
  }
}

// inserts the logits of a chunk into the k largest of one row so far; of equal logits the earlier token stays first
static void update_top_k(const PolicySet& set, long row, const float* column, long tokens, long start) {
  float* logits = set.top_logits + row * set.k;
  int64_t* ids = set.top_ids + row * set.k;
  for (long t = 0; t < tokens; t++) {
    float x = column[t * PANEL];
    if (!(x > logits[set.k - 1])) continue;
    long at = set.k - 1;
    for (; at > 0 && x > logits[at - 1]; at--) logits[at] = logits[at - 1], ids[at] = ids[at - 1];
    logits[at] = x, ids[at] = start + t;
  }
}

// what comparing with an anchor's policies takes, of one chunk
struct AnchorChunk {
  std::vector<float> y, e;  // logits minus each row's maximum so far, and e^ of them: [token][stride]
  std::vector<float> m, S;  // that maximum, and the chunk's S: an offset between two policies' logits must not enter a float32 sum
  std::vector<float> scale;  // the factor that reduce has applied to each row's earlier sums
  long stride = 0;
};

// repeats the first rows after the last one, so that any LANES consecutive rows of a stack can be loaded as one SIMD vector
static void repeat_first_rows(AnchorChunk& anchor, long rows, long tokens) {
  for (std::vector<float>* values : {&anchor.y, &anchor.e})
    for (long t = 0; rows && t < tokens; t++)
      for (long i = 0; i < LANES; i++) (*values)[t * anchor.stride + rows + i] = (*values)[t * anchor.stride + i];
  for (std::vector<float>* values : {&anchor.m, &anchor.S, &anchor.scale})
    for (long i = 0; rows && i < LANES; i++) (*values)[rows + i] = (*values)[i];
}

// combines the chunk's logits x [tokens][PANEL] of one SIMD vector, rows first...first+LANES-1 of a set, with the accumulators of
// these rows. The chunk's sums are relative to each row's maximum so far, to which the earlier sums are rescaled; `keep` takes what is
// needed of an anchor
static void reduce(const RangePass& p, const PolicySet& set, long first, const float* x, long tokens, long start,
                   const AnchorChunk* final, const AnchorChunk* reference, AnchorChunk* keep) {
  const bool own = &set == &p.own;
  const long rows = set.rows - first < LANES ? set.rows - first : LANES;
  auto at = [&](long t) { return load(x + t * PANEL); };
  const long of_final = final ? first % p.final.rows : 0, of_reference = reference ? first % p.reference.rows : 0;
  const float* y_final = final ? &final->y[of_final] : nullptr;
  const float* y_from = reference ? &reference->y[of_reference] : nullptr;
  const float* e_from = reference ? &reference->e[of_reference] : nullptr;
  vec largest = broadcast(-INF), S = {}, A = {}, D = {}, D_from = {};
  for (long t = 0; t < tokens; t++) largest = maximum(at(t), largest);
  const vec earlier_m = load(set.m + first), m = maximum(largest, earlier_m);
  for (long t = 0; t < tokens; t++) {
    vec y = at(t) - m, e = exp_of(y);
    S += e;
    A += e * y;
    if (final) D += e * (y - load(y_final + t * final->stride));
    if (reference) D_from += load(e_from + t * reference->stride) * (load(y_from + t * reference->stride) - y);
    if (keep) {
      store(&keep->y[t * keep->stride + first], y);
      store(&keep->e[t * keep->stride + first], e);
    }
  }
  const vec before = earlier_m > broadcast(-INF) ? earlier_m : m;  // there is none in the first chunk
  const vec scale = exp_of(before - m);
  const vecd earlier_S = load_doubles(set.S + first), earlier_A = load_doubles(set.A + first);
  if (final) {
    const vecd offset = doubles(m) - doubles(load(&final->m[of_final]));
    store(p.kl + first, doubles(scale) * load_doubles(p.kl + first) + (doubles(D) + doubles(S) * offset));
  }
  if (reference) {
    const vecd offset = doubles(load(&reference->m[of_reference])) - doubles(m);
    store(p.kl_from + first, doubles(load(&reference->scale[of_reference])) * load_doubles(p.kl_from + first) +
                                    (doubles(D_from) + doubles(load(&reference->S[of_reference])) * offset));
  }
  store(set.A + first, doubles(scale) * (earlier_A + earlier_S * (doubles(before) - doubles(m))) + doubles(A));
  store(set.S + first, doubles(scale) * earlier_S + doubles(S));
  store(set.m + first, m);
  if (keep) store(&keep->m[first], m), store(&keep->S[first], S), store(&keep->scale[first], scale);
  for (int i = 0; i < rows; i++) {
    long row = first + i;
    if (own && p.targets && p.targets[row] >= start && p.targets[row] < start + tokens)
      p.target_logit[row] = x[(p.targets[row] - start) * PANEL + i];
    if (set.k && largest[i] > set.top_logits[row * set.k + set.k - 1]) update_top_k(set, row, x + i, tokens, start);
  }
}

extern "C" void layerlens_pass(const RangePass* pass) {
  const RangePass& p = *pass;
  const long depth = units(p);
  const bool upcast = p.weight_bf16 && !p.dot_bf16;
  const PolicySet* sets[3] = {&p.final, &p.reference, &p.own};
  AnchorChunk anchors[2];
  for (int g = 0; g < 2; g++) {
    AnchorChunk& anchor = anchors[g];
    anchor.stride = vectors_of(*sets[g]) * LANES + LANES;
    anchor.y.resize(CHUNK * anchor.stride), anchor.e.resize(CHUNK * anchor.stride);
    for (std::vector<float>* values : {&anchor.m, &anchor.S, &anchor.scale}) values->resize(anchor.stride);
  }
  const long stride = upcast ? depth + 16 : depth;  // rows one page apart would all fall into one set of the cache
  std::vector<uint32_t> floats(upcast ? CHUNK * stride : 0);
  std::vector<float> x(CHUNK * PANEL);
  const long end = p.own.first_vector + vectors_of(p.own);
  for (long start = p.start; start < p.stop; start += CHUNK) {
    long tokens = p.stop - start < CHUNK ? p.stop - start : CHUNK;
    const uint32_t* weight = (const uint32_t*)p.weight + start * depth;
    if (upcast) {
      for (long t = 0; t < tokens; t++)
        for (long k = 0; k < depth; k++) floats[t * stride + k] = uint32_t(((const uint16_t*)p.weight)[(start + t) * p.d_model + k]) << 16;
      weight = floats.data();
    }
    for (long panel = 0; panel * VECTORS < end; panel++) {
      const long vectors = end - panel * VECTORS < VECTORS ? end - panel * VECTORS : VECTORS;
      (p.dot_bf16 ? product<true> : product<false>)(weight, stride, tokens, p.packed + panel * depth * PANEL, vectors, depth, x.data());
      if (p.product_alone) continue;
      product_to_logits(p, start, tokens, x.data());
      if (p.kept)
        for (long t = 0; t < tokens; t++)
          std::memcpy(p.kept + ((start - p.start + t) * end + panel * VECTORS) * LANES, x.data() + t * PANEL, vectors * LANES * 4);
      for (long v = panel * VECTORS; v < panel * VECTORS + vectors; v++) {
        const int g = v >= p.own.first_vector ? 2 : p.reference.rows && v >= p.reference.first_vector ? 1 : 0;
        const PolicySet& set = *sets[g];
        const AnchorChunk* final = g == 2 && p.kl ? &anchors[0] : nullptr;
        const AnchorChunk* reference = g == 2 && p.kl_from ? &anchors[1] : nullptr;
        reduce(p, set, (v - set.first_vector) * LANES, x.data() + v % VECTORS * LANES, tokens, start, final, reference,
               g < 2 ? &anchors[g] : nullptr);
        if (g < 2 && v + 1 == set.first_vector + vectors_of(set)) repeat_first_rows(anchors[g], set.rows, tokens);
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
