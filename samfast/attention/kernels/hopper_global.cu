// Global attention with decomposed relative positions in bfloat16 on Hopper GPUs, for grids of
// 64 x 64 tokens.
//
// The same calculation as global_attention.py beside this file, which says what is subtracted from
// the scores and what happens if weights overflow. Written in CUDA C++ because there each program
// waits for its own loads and products: here the copy engine brings keys and values ahead, and the
// tensor cores seldom wait for a softmax.
//
// A warpgroup takes the 64 queries of a row of the grid, and 64 keys, a row as well, at a time. So
// the columns' term is the same for all steps and stays in registers, and the rows' term is a
// number per query and step. Three warpgroups take turns to multiply, while the others compute
// their softmax. Blocks stay, and take some rows of queries after others. A fourth warpgroup has a
// thread that works: it tells the copy engine what to bring.
//
// Compiled by NVRTC with these defined:
//   DIM   width of a head: 64 or 80
//   TYPE  "bf16"

#include "hopper.cuh"

constexpr int SIDE = 64;                    // of the grid: queries and keys of a row
constexpr int TOKENS = SIDE * SIDE;
constexpr int STEPS = DIM / 16;             // of a product over the head's width
constexpr int GROUPS = 3;                   // warpgroups that multiply
constexpr int STAGES = 4;                   // rows of keys, and of values

// Whether a turn ends when its products have begun; else when those with the values are done. What
// is faster was measured.
constexpr bool HURRIES = DIM == 80;

// Matrices lie in panels whose rows are a power of two wide, and whose chunks of 16 bytes are
// permuted from row to row (a swizzle).
constexpr int PANEL = 64;                   // the first panel's columns
constexpr int SECOND = DIM - PANEL;         // the second's: 16 or none
constexpr int PANEL_BYTES = 2 * PANEL, SECOND_BYTES = 2 * SECOND;  // of a row
constexpr int FIRST_AT = SIDE * PANEL_BYTES;
constexpr int MATRIX = SIDE * 2 * DIM;
static_assert(SECOND == 0 || SECOND == 16, "not a width of this kernel");

// Of a warpgroup: its queries, the keys of their own row, and the terms of both kinds. The rows'
// terms are needed until the last step, while the next are brought.
constexpr int TERMS = SIDE * PANEL_BYTES;
constexpr int QUERIES_AT = 0, OWN_KEYS_AT = 1024 * ((MATRIX + 1023) / 1024);
constexpr int COLUMN_TERMS_AT = 2 * OWN_KEYS_AT, ROW_TERMS_AT = COLUMN_TERMS_AT + TERMS;
constexpr int GROUP_BYTES = ROW_TERMS_AT + 2 * TERMS;

constexpr int STAGE_BYTES = 1024 * ((MATRIX + 1023) / 1024);
constexpr int KEYS_AT = GROUPS * GROUP_BYTES;
constexpr int VALUES_AT = KEYS_AT + STAGES * STAGE_BYTES;
constexpr int BARRIERS_AT = VALUES_AT + STAGES * STAGE_BYTES;
constexpr int BARRIERS = 4 * STAGES + 2 * GROUPS;
extern "C" __device__ const int shared_bytes = BARRIERS_AT + 8 * BARRIERS;
static_assert(BARRIERS_AT + 8 * BARRIERS <= 232448, "too large");

// The warpgroups' turns to multiply. Without them the tensor cores serve all at once, so that all
// compute their softmax at once, while the tensor cores wait.
__device__ __forceinline__ void wait_for_turn(int group) {
  asm volatile("bar.sync %0, 256;" ::"r"(1 + GROUPS + group) : "memory");
}

__device__ __forceinline__ void give_turn(int group) {
  asm volatile("bar.arrive %0, 256;" ::"r"(1 + GROUPS + group) : "memory");
}

// Whether any thread of a warpgroup says yes.
__device__ __forceinline__ bool any_of_warpgroup(int group, bool yes) {
  u32 any;
  asm volatile("{\n.reg .pred p, q;\nsetp.ne.u32 p, %2, 0;\nbar.red.or.pred q, %1, 128, p;\n"
               "selp.u32 %0, 1, 0, q;\n}" : "=r"(any) : "r"(1 + group), "r"((u32)yes) : "memory");
  return any != 0;
}

// Scores of the queries and 64 keys.
__device__ __forceinline__ void score(float (&scores)[SIDE / 8][4], const u32 (&query)[STEPS][4],
                                      u32 keys) {
  fence_products();
  multiply<false, false>(scores, query[0], panel(keys, PANEL_BYTES));
#pragma unroll
  for (int step = 1; step < PANEL / 16; ++step)
    multiply<true, false>(scores, query[step], panel(keys, PANEL_BYTES) + 2 * step);
  if constexpr (SECOND > 0)
    multiply<true, false>(scores, query[STEPS - 1], panel(keys + FIRST_AT, SECOND_BYTES));
  commit_products();
}

// Add 64 weighted rows of values.
__device__ __forceinline__ void add_values(float (&sums)[2 * STEPS][4],
                                           const u32 (&weights)[SIDE / 16][4], u32 values) {
  using First = float[PANEL / 8][4];
  using Last = float[2][4];
  First& first = reinterpret_cast<First&>(sums);
  Last& last = reinterpret_cast<Last&>(sums[2 * STEPS - 2]);
  fence_products();
#pragma unroll
  for (int step = 0; step < SIDE / 16; ++step) {
    multiply<true, true>(first, weights[step], panel(values, PANEL_BYTES) + step * PANEL_BYTES);
    if constexpr (SECOND > 0)
      multiply<true, true>(last, weights[step],
                           panel(values + FIRST_AT, SECOND_BYTES) + step * SECOND_BYTES);
  }
  commit_products();
}

extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 1) global_attention(
    const __grid_constant__ TensorMap first_panels, const __grid_constant__ TensorMap second_panels,
    const __grid_constant__ TensorMap row_terms, const __grid_constant__ TensorMap column_terms,
    u16* __restrict__ out,        // (batch, 64, 64, channels)
    u8* __restrict__ overflowed,  // (items, 64): of each row of queries, whether weights did
    int items,                    // batch * heads
    int heads, int channels,
    float scale,                  // of the scores, times log2(e)
    float max_total) {            // a sum of weights below which none has overflowed
  extern __shared__ __align__(1024) unsigned char shared[];
  const u32 base = (u32)__cvta_generic_to_shared(shared);
  const int lane = threadIdx.x % 32;
  // By a shuffle, so that the compiler knows that the lanes of a warp agree.
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const u32 keys_full = base + BARRIERS_AT, keys_empty = keys_full + 8 * STAGES;
  const u32 values_full = keys_empty + 8 * STAGES, values_empty = values_full + 8 * STAGES;
  const u32 group_full = values_empty + 8 * STAGES, group_empty = group_full + 8 * GROUPS;
  constexpr int SHARES = (SIDE + GROUPS - 1) / GROUPS;  // of an item's rows of queries

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; ++stage) {
      set_barrier(keys_full + 8 * stage, 1);
      set_barrier(values_full + 8 * stage, 1);
      set_barrier(keys_empty + 8 * stage, 4 * GROUPS);
      set_barrier(values_empty + 8 * stage, 4 * GROUPS);
    }
    for (int group = 0; group < GROUPS; ++group) {
      set_barrier(group_full + 8 * group, 1);
      set_barrier(group_empty + 8 * group, 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  if (warp < 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
    if (warp == 0 && lane == 0) {
      int number = 0;  // of the stage among all
      for (int turn = 0, share = blockIdx.x; share < items * SHARES; share += gridDim.x, ++turn) {
        const int item = share / SHARES, image = item / heads;
        const int column = item % heads * DIM;
        auto matrix = [&](u32 to, u32 barrier, int part, int token) {
          bring(to, &first_panels, barrier, part * channels + column, image * TOKENS + token);
          if (SECOND > 0)
            bring(to + FIRST_AT, &second_panels, barrier, part * channels + column + PANEL,
                  image * TOKENS + token);
        };
        for (int group = 0; group < GROUPS; ++group) {
          // The last share may have fewer rows; then a row is computed twice.
          const int row = min(share % SHARES * GROUPS + group, SIDE - 1);
          const u32 there = base + group * GROUP_BYTES, barrier = group_full + 8 * group;
          wait_for(group_empty + 8 * group, turn & 1 ^ 1);
          expect(barrier, 2 * MATRIX + 2 * TERMS);
          matrix(there + QUERIES_AT, barrier, 0, row * SIDE);
          matrix(there + OWN_KEYS_AT, barrier, 1, row * SIDE);
          bring(there + COLUMN_TERMS_AT, &column_terms, barrier, 0, item * TOKENS + row * SIDE);
          bring(there + ROW_TERMS_AT + turn % 2 * TERMS, &row_terms, barrier, row * SIDE,
                item * SIDE);
        }
        for (int row = 0; row < SIDE; ++row, ++number) {
          const int stage = number % STAGES, parity = number / STAGES & 1 ^ 1;
          wait_for(keys_empty + 8 * stage, parity);
          expect(keys_full + 8 * stage, MATRIX);
          matrix(base + KEYS_AT + stage * STAGE_BYTES, keys_full + 8 * stage, 1, row * SIDE);
          wait_for(values_empty + 8 * stage, parity);
          expect(values_full + 8 * stage, MATRIX);
          matrix(base + VALUES_AT + stage * STAGE_BYTES, values_full + 8 * stage, 2, row * SIDE);
        }
      }
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(160));
  const int group = warp / 4 - 1, quarter = warp % 4;
  const u32 mine = base + group * GROUP_BYTES;
  // Queries of the lane: this and the one 8 after it.
  const int query_of_row = 16 * quarter + lane / 4;
  int number = 0;
  if (group == GROUPS - 1) give_turn(0);
  for (int turn = 0, share = blockIdx.x; share < items * SHARES; share += gridDim.x, ++turn) {
    const int item = share / SHARES, own_row = min(share % SHARES * GROUPS + group, SIDE - 1);
    const bool is_double = share % SHARES * GROUPS + group >= SIDE;
    u32 query[STEPS][4];
    float scores[SIDE / 8][4], column_term[SIDE / 8][4];
    wait_for(group_full + 8 * group, turn & 1);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const int row = 16 * quarter + lane % 16, chunk = 2 * step + lane / 16;
      const bool in_first = step < PANEL / 16;
      const int at = in_first ? swizzled(row, chunk, PANEL_BYTES)
                              : FIRST_AT + swizzled(row, chunk - PANEL / 8,
                                                    SECOND > 0 ? SECOND_BYTES : 16);
      load_matrices(query[step], mine + QUERIES_AT + at);
    }
    score(scores, query, mine + OWN_KEYS_AT);
#pragma unroll
    for (int pair = 0; pair < SIDE / 16; ++pair) {
      u32 terms[4];
      load_matrices(terms, mine + COLUMN_TERMS_AT +
                               swizzled(16 * quarter + lane % 16, 2 * pair + lane / 16,
                                        PANEL_BYTES));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = unpack_bf16(terms[i]);
        column_term[2 * pair + i / 2][i % 2 * 2] = two.x;
        column_term[2 * pair + i / 2][i % 2 * 2 + 1] = two.y;
      }
    }
    wait_for_products<0>();
    settle(scores);
    __syncwarp();
    if (lane == 0) arrive(group_empty + 8 * group);

    // A row's terms of the block's queries are a line of a swizzled matrix.
    const unsigned char* terms_there = shared + group * GROUP_BYTES + ROW_TERMS_AT +
                                       turn % 2 * TERMS;
    auto row_term = [&](int row, int half) {
      const int query = query_of_row + 8 * half;
      const int at = swizzled(row, query / 8, PANEL_BYTES) + 2 * (query % 8);
      return __int_as_float((u32) * (const u16*)(terms_there + at) << 16);
    };
    // What is subtracted is in the columns' terms.
    float total[2] = {0.f, 0.f};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = -__int_as_float(0x7f800000);
#pragma unroll
      for (int i = 0; i < SIDE / 8; ++i) {
#pragma unroll
        for (int odd = 0; odd < 2; ++odd)
          top = fmaxf(top, fmaf(scores[i][2 * half + odd], scale, column_term[i][2 * half + odd]));
      }
      top = max_of_4_lanes(top) + row_term(own_row, half);
#pragma unroll
      for (int i = 0; i < SIDE / 8; ++i) {
        column_term[i][2 * half] -= top;
        column_term[i][2 * half + 1] -= top;
      }
    }

    float sums[2 * STEPS][4];
#pragma unroll
    for (int i = 0; i < 8 * STEPS; ++i) sums[i / 4][i % 4] = 0.f;
    wait_for(keys_full + 8 * (number % STAGES), number / STAGES & 1);
    score(scores, query, base + KEYS_AT + number % STAGES * STAGE_BYTES);
    wait_for_products<0>();
    settle(scores);
    if (lane == 0) arrive(keys_empty + 8 * (number % STAGES));
    u32 weights[SIDE / 16][4];
    auto weigh = [&](int row) {
      const float term[2] = {row_term(row, 0), row_term(row, 1)};
#pragma unroll
      for (int i = 0; i < SIDE / 8; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float low = exp2_fast(
              fmaf(scores[i][2 * half], scale, column_term[i][2 * half] + term[half]));
          const float high = exp2_fast(
              fmaf(scores[i][2 * half + 1], scale, column_term[i][2 * half + 1] + term[half]));
          total[half] += low + high;
          weights[i / 2][2 * (i % 2) + half] = pack(low, high);
        }
      }
    };
    for (int row = 0; row + 1 < SIDE; ++row, ++number) {
      const int stage = number % STAGES, next = (number + 1) % STAGES;
      weigh(row);
      wait_for(values_full + 8 * stage, number / STAGES & 1);
      wait_for(keys_full + 8 * next, (number + 1) / STAGES & 1);
      wait_for_turn(group);
      add_values(sums, weights, base + VALUES_AT + stage * STAGE_BYTES);
      score(scores, query, base + KEYS_AT + next * STAGE_BYTES);
      if (HURRIES) give_turn((group + 1) % GROUPS);
      wait_for_products<1>();
      if (!HURRIES) give_turn((group + 1) % GROUPS);
      if (lane == 0) arrive(values_empty + 8 * stage);
      wait_for_products<0>();
      settle(scores);
      if (lane == 0) arrive(keys_empty + 8 * next);
    }
    weigh(SIDE - 1);
    wait_for(values_full + 8 * (number % STAGES), number / STAGES & 1);
    wait_for_turn(group);
    add_values(sums, weights, base + VALUES_AT + number % STAGES * STAGE_BYTES);
    wait_for_products<0>();
    give_turn((group + 1) % GROUPS);
    settle(sums);
    if (lane == 0) arrive(values_empty + 8 * (number % STAGES));
    ++number;

    bool fits = true;
    u16* answers = out + ((long long)(item / heads) * TOKENS + own_row * SIDE) * channels +
                   item % heads * DIM;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float all = sum_of_4_lanes(total[half]), part = 1.f / all;
      // A comparison with NaN is false, so that it counts as too much.
      fits = fits && all < max_total;
      const int odd = lane % 2;
      u16* to = answers + (query_of_row + 8 * half) * channels + 8 * odd + 2 * (lane % 4 - odd);
#pragma unroll
      for (int pair = 0; pair < STEPS; ++pair) {
        const float(&a)[4] = sums[2 * pair];
        const float(&b)[4] = sums[2 * pair + 1];
        const u32 even_tile = pack(a[2 * half] * part, a[2 * half + 1] * part);
        const u32 odd_tile = pack(b[2 * half] * part, b[2 * half + 1] * part);
        // Neighbours swap, so that each writes four numbers of a row instead of twice two.
        const u32 other = __shfl_xor_sync(~0u, odd ? even_tile : odd_tile, 1);
        if (!is_double)
          *(uint2*)(to + 16 * pair) = odd ? uint2{other, odd_tile} : uint2{even_tile, other};
      }
    }
    const bool any = any_of_warpgroup(group, !fits);
    if (quarter == 0 && lane == 0) overflowed[item * SIDE + own_row] = any;
  }
}
