// A second look at the kept logits of a range of the vocabulary, once every row's m and log S are known; second_look.py has the formulas.
#pragma once
#include <vector>

#include "simd.hpp"

// log x for x > 0, with an error of about one unit in the last place (Cephes' logf)
static inline vec log_of(vec x) {
  const veci bits = (veci)x;
  veci exponent = (bits >> 23) - 126;
  vec f = (vec)((bits & 0x007fffff) | 0x3f000000);  // 0.5 <= f < 1
  const veci low = f < broadcast(0.707106781f);
  exponent += low;  // a comparison gives -1 for true
  f = (low ? f + f : f) - 1.0f;
  vec p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const vec z = f * f, e = __builtin_convertvector(exponent, vec);
  return f + (p * f * z + e * -2.12194440e-4f - z * 0.5f) + e * 0.693359375f;
}

struct RangeLook {
  const float* kept;  // [tokens][lanes], as layerlens_pass kept them
  const float* m;  // of each lane
  const float* log_S;
  long lanes, start, stop;
  long own_first, own_rows, final_first, final_rows;  // SIMD vector of the first row, and number of rows; final may have none
  const int64_t* targets;  // [own rows] or null
  const float* target_logit;
  double* js;  // the sums, [own rows] or null: of s log s,
  double* kl_from_final;  // of the final policy's probability times the log-probability,
  double* renyi;  // of squared probabilities,
  double* rank;  // and of tokens before the target
};

// adds the first rows of one SIMD vector of sums to the sums of the whole range
static void add_rows(double* sums, long first, long rows, const vec& of_chunk) {
  for (long i = 0; sums && i < rows; i++) sums[first + i] += of_chunk[i];
}

extern "C" void layerlens_look(const RangeLook* look) {
  const RangeLook& p = *look;
  const long stride = (p.final_rows + LANES - 1) / LANES * LANES + LANES;
  std::vector<float> final(CHUNK * stride);  // the final policy: [token][row], the first rows repeated after the last one
  for (long start = p.start; start < p.stop; start += CHUNK) {
    const long tokens = p.stop - start < CHUNK ? p.stop - start : CHUNK;
    const float* x = p.kept + (start - p.start) * p.lanes;
    auto log_policy = [&](long t, long lane) { return load(x + t * p.lanes + lane) - load(p.m + lane) - load(p.log_S + lane); };
    for (long t = 0; p.final_rows && t < tokens; t++) {
      for (long row = 0; row < p.final_rows; row += LANES) {
        const vec q = exp_of(log_policy(t, p.final_first * LANES + row));
        std::memcpy(&final[t * stride + row], &q, sizeof q);
      }
      for (long i = 0; i < LANES; i++) final[t * stride + p.final_rows + i] = final[t * stride + i];
    }
    for (long first = 0; first < p.own_rows; first += LANES) {
      const long lane = p.own_first * LANES + first, rows = p.own_rows - first < LANES ? p.own_rows - first : LANES;
      const float* q_of = p.final_rows ? &final[first % p.final_rows] : nullptr;
      vec js = {}, kl = {}, squares = {}, target_logit = {};
      veci before = {}, target = {};
      for (long i = 0; p.rank && i < rows; i++) target[i] = p.targets[first + i], target_logit[i] = p.target_logit[first + i];
      for (long t = 0; t < tokens; t++) {
        if (p.rank) {
          const vec logit = load(x + t * p.lanes + lane);
          before -= (logit > target_logit) | ((logit == target_logit) & (target > int32_t(start + t)));
        }
        if (!p.js && !p.kl_from_final && !p.renyi) continue;
        const vec log_p = log_policy(t, lane);
        if (p.kl_from_final) kl += load(q_of + t * stride) * log_p;
        if (!p.js && !p.renyi) continue;
        const vec policy = exp_of(log_p);
        if (p.renyi) squares += policy * policy;
        if (p.js) {
          const vec s = policy + load(q_of + t * stride);
          js += s * log_of(maximum(s, broadcast(1e-37f)));
        }
      }
      add_rows(p.js, first, rows, js), add_rows(p.kl_from_final, first, rows, kl), add_rows(p.renyi, first, rows, squares);
      add_rows(p.rank, first, rows, __builtin_convertvector(before, vec));
    }
  }
}
