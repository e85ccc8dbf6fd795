// SIMD vectors of float32 for what compiler and processor there are, and e^ of them.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512F__)
constexpr int LANES = 16, TOKENS = 8;  // 24 sums, 3 rows and 1 weight in 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8, TOKENS = 4;  // 12 + 3 + 1 in 16
#else
constexpr int LANES = 4, TOKENS = 8;
#endif
constexpr int VECTORS = 3, PANEL = VECTORS * LANES;
constexpr long CHUNK = 128;  // tokens whose logits are reduced together
constexpr float INF = std::numeric_limits<float>::infinity();

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t veci __attribute__((vector_size(LANES * 4)));
typedef double vecd __attribute__((vector_size(LANES * 8)));

static inline vec load(const void* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline vecd load_doubles(const double* p) {
  vecd v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline vecd doubles(vec v) { return __builtin_convertvector(v, vecd); }
template <class V>
static inline void store(void* p, const V& v) {
  std::memcpy(p, &v, sizeof v);
}
static inline vec broadcast(float x) { return x - vec{}; }
static inline vec maximum(vec a, vec b) { return a > b ? a : b; }  // b if one of them is NaN

// e^y for y <= 0, and e^-87 = 1.6e-38 below -87; NaN stays NaN
static inline vec exp_of(vec y) {
  y = maximum(broadcast(-87.0f), y);
  vec shifted = y * 1.44269504f + 12582912.0f;  // rounds to an integer, in the low bits
  vec n = shifted - 12582912.0f;
  vec r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  return (vec)((veci)p + ((veci)shifted << 23));
}
