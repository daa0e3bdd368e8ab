// Token-to-image attention whose keys and values are rows of the image, on Hopper GPUs.
//
// The same calculation as token_to_image.py beside this file. Written in CUDA C++ because there the
// queries are read from shared memory for every product, which takes as long as the products. Here
// most of them stay in registers.
//
// A block takes two objects, each by a warpgroup, and the same places of their images, so that the
// positions are brought once for both. A third warpgroup has one thread that works: it tells the
// copy engine what to bring. Blocks stay, and take one pair of objects after another.
//
// Compiled by NVRTC with this defined:
//   TYPE  "bf16" or "f16"

#include "hopper.cuh"

constexpr int CHANNELS = 256;
constexpr int HEADS = 8;
constexpr int TOKENS = 8;                      // of a head, of which the last may be none
constexpr int TILE = 64;                       // places
constexpr int STEPS = CHANNELS / 16;           // of a product over the channels
constexpr int TILES = CHANNELS / 8;            // of 8 columns, of a warpgroup's queries
constexpr int GROUPS = 2;                      // warpgroups that multiply

// Matrices lie in panels of 64 channels: rows of 128 bytes, whose chunks of 16 bytes are permuted
// from row to row (a swizzle).
constexpr int PANEL = TILE * 128;
constexpr int PANELS = CHANNELS / 64;
constexpr int MATRIX = PANELS * PANEL;

constexpr int STAGES = 2;                      // of the rows of each warpgroup, and of positions
constexpr int KEPT = 12;                       // steps whose queries stay in registers; all would
                                               // be too many, so a panel stays in shared memory
constexpr int POSITIONS_AT = GROUPS * STAGES * MATRIX;
constexpr int QUERIES_AT = POSITIONS_AT + STAGES * MATRIX;
constexpr int BARRIERS_AT = QUERIES_AT + GROUPS * PANEL;
static_assert(KEPT * 16 == CHANNELS - 64, "what is not kept is a panel");
constexpr int BARRIERS = 2 * STAGES * (GROUPS + 1);
extern "C" __device__ const int shared_bytes = BARRIERS_AT + 8 * BARRIERS;

// How far a step's columns are from a matrix's first, as a descriptor counts.
constexpr int panel_and_step(int step) { return (step / 4 * PANEL + step % 4 * 32) / 16; }

// c += a * b^T: scores (64, 64) of queries (64, 16), in shared memory too, and keys (64, 16).
__device__ __forceinline__ void multiply_keys(float (&c)[HEADS][4], u64 a, u64 b) {
  asm volatile("{\nwgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" NAMES_32
               "}, %32, %33, 1, 1, 1, 0, 0;\n}"
               : FLOATS_4(c, 0), FLOATS_4(c, 4) : "l"(a), "l"(b));
}

extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 1) token_to_image_attention(
    const __grid_constant__ TensorMap query_map, const __grid_constant__ TensorMap row_map,
    const __grid_constant__ TensorMap position_map,
    const long long* __restrict__ source_of,  // (objects)
    void* __restrict__ out,                   // (HEADS, objects, tokens, CHANNELS) of TYPE, or with
                                              // splits (splits, the same) of float: not normalised
    float* __restrict__ tops,                 // (splits, HEADS, objects, tokens): the score, times
                                              // log2(e), that weighs one; only with splits
    float* __restrict__ totals,               // the same: sums of the weights
    int objects, int tokens, int places,
    int splits, int span,                     // of the places; span is a multiple of TILE
    float scale) {                            // of the scores, times log2(e)
  extern __shared__ __align__(1024) unsigned char shared[];
  const u32 base = (u32)__cvta_generic_to_shared(shared);
  const int lane = threadIdx.x % 32;
  // By a shuffle, so that the compiler knows that the lanes of a warp agree.
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  // Of each stage of each warpgroup's rows, then of each stage of the positions.
  const u32 full = base + BARRIERS_AT, empty = full + 8 * STAGES * (GROUPS + 1);

  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES * (GROUPS + 1); ++i) {
      set_barrier(full + 8 * i, 1);
      set_barrier(empty + 8 * i, i < STAGES * GROUPS ? 4 : 4 * GROUPS);  // warps
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const int pairs = (objects + GROUPS - 1) / GROUPS;

  if (warp < 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp == 0 && lane == 0) {
      int rows = 0, positions = 0;  // brought so far
      for (int item = blockIdx.x; item < pairs * splits; item += gridDim.x) {
        const int split = item / pairs, first = split * span, last = min(first + span, places);
        int object[GROUPS], image[GROUPS];
        for (int group = 0; group < GROUPS; ++group) {
          object[group] = min(item % pairs * GROUPS + group, objects - 1);
          image[group] = (int)source_of[object[group]];
        }
        // The queries come first, the way of the rows.
        for (int place = first - TILE; place < last; place += TILE) {
          for (int group = 0; group < GROUPS; ++group) {
            const int stage = group * STAGES + rows % STAGES;
            wait_for(empty + 8 * stage, rows / STAGES & 1 ^ 1);
            expect(full + 8 * stage, MATRIX);
            if (place < first)
              bring(base + stage * MATRIX, &query_map, full + 8 * stage, 0, 0, object[group], 0, 0);
            else
              bring(base + stage * MATRIX, &row_map, full + 8 * stage, 0, place, 0, image[group]);
          }
          ++rows;
          if (place < first) continue;
          const int stage = positions % STAGES, barrier = GROUPS * STAGES + stage;
          wait_for(empty + 8 * barrier, positions / STAGES & 1 ^ 1);
          expect(full + 8 * barrier, MATRIX);
          bring(base + POSITIONS_AT + stage * MATRIX, &position_map, full + 8 * barrier, 0, place,
                0);
          ++positions;
        }
      }
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  const int group = warp / 4 - 1, quarter = warp % 4;
  int rows = 0, positions = 0;
  for (int item = blockIdx.x; item < pairs * splits; item += gridDim.x) {
    const int split = item / pairs, first = split * span, last = min(first + span, places);
    u32 query[KEPT][4];
    {
      const int stage = group * STAGES + rows % STAGES;
      // The lane's part of the first four matrices of a panel; the others' are at addresses of
      // which two bits differ.
      const int row = 16 * quarter + lane % 16;
      const u32 from = base + stage * MATRIX + row * 128 + ((lane / 16) ^ row % 8) * 16;
      wait_for(full + 8 * stage, rows / STAGES & 1);
#pragma unroll
      for (int step = 0; step < KEPT; ++step)
        load_matrices(query[step], (from ^ step % 4 * 32) + step / 4 * PANEL);
      synchronize_warpgroup(group);  // all have waited for the products with the panel that stays
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 2048 * quarter + 512 * i + 16 * lane;
        *(uint4*)(shared + QUERIES_AT + group * PANEL + at) =
            *(const uint4*)(shared + stage * MATRIX + (PANELS - 1) * PANEL + at);
      }
      publish();
      synchronize_warpgroup(group);
      if (lane == 0) arrive(empty + 8 * stage);
      ++rows;
    }

    float sums[TILES][4], top[2], total[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) top[half] = -__int_as_float(0x7f800000), total[half] = 0.f;
#pragma unroll
    for (int i = 0; i < 4 * TILES; ++i) sums[i / 4][i % 4] = 0.f;
    for (int place = first; place < last; place += TILE, ++rows, ++positions) {
      const int stage = group * STAGES + rows % STAGES, position_stage = positions % STAGES;
      const u32 there = base + stage * MATRIX;
      const u32 position_there = base + POSITIONS_AT + position_stage * MATRIX;
      const u32 position_barrier = 8 * (GROUPS * STAGES + position_stage);
      u32 weights[TILE / 16][4];
      {
        float scores[TILE / 8][4];
        const u64 keys = matrix(there, 16), position_keys = matrix(position_there, 16);
        const u64 queries = matrix(base + QUERIES_AT + group * PANEL, 16);
        wait_for(full + 8 * stage, rows / STAGES & 1);
        fence_products();
        multiply<false, false>(scores, query[0], keys);
#pragma unroll
        for (int step = 1; step < KEPT; ++step)
          multiply<true, false>(scores, query[step], keys + panel_and_step(step));
#pragma unroll
        for (int step = KEPT; step < STEPS; ++step)
          multiply_keys(scores, queries + panel_and_step(step - KEPT), keys + panel_and_step(step));
        wait_for(full + position_barrier, positions / STAGES & 1);
#pragma unroll
        for (int step = 0; step < KEPT; ++step)
          multiply<true, false>(scores, query[step], position_keys + panel_and_step(step));
#pragma unroll
        for (int step = KEPT; step < STEPS; ++step)
          multiply_keys(scores, queries + panel_and_step(step - KEPT),
                        position_keys + panel_and_step(step));
        commit_products();
        wait_for_products<0>();
        settle(scores);
        if (lane == 0) arrive(empty + position_barrier);
        if (place + TILE > places) {
#pragma unroll
          for (int i = 0; i < TILE / 2; ++i)
            if (place + i / 4 * 8 + 2 * (lane % 4) + i % 2 >= places)
              scores[i / 4][i % 4] = -__int_as_float(0x7f800000);
        }
        float before[2], shift[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float highest = scores[0][2 * half];
#pragma unroll
          for (int i = 0; i < TILE / 8; ++i)
            highest = fmaxf(highest, fmaxf(scores[i][2 * half], scores[i][2 * half + 1]));
          before[half] = top[half];
          top[half] = fmaxf(top[half], max_of_4_lanes(highest) * scale);
          shift[half] = -top[half];
        }
        // Seldom true after the first tiles.
        if (__any_sync(~0u, before[0] != top[0] || before[1] != top[1])) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float fade = exp2_fast(before[half] - top[half]);
            total[half] *= fade;
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
              sums[i][2 * half] *= fade;
              sums[i][2 * half + 1] *= fade;
            }
          }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < TILE / 8; ++i) {
            const float low = exp2_fast(fmaf(scores[i][2 * half], scale, shift[half]));
            const float high = exp2_fast(fmaf(scores[i][2 * half + 1], scale, shift[half]));
            total[half] += low + high;
            weights[i / 2][2 * (i % 2) + half] = pack(low, high);
          }
        }
      }
      const u64 values = matrix(there, PANEL);
      fence_products();
#pragma unroll
      for (int step = 0; step < TILE / 16; ++step)
        multiply<true, true>(sums, weights[step], values + step * 16 * 128 / 16);
      commit_products();
      wait_for_products<0>();
      settle(sums);
      if (lane == 0) arrive(empty + 8 * stage);
    }

    const int object = item % pairs * GROUPS + group;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float all = sum_of_4_lanes(total[half]), share = 1.f / all;
      const int query_row = 16 * quarter + lane / 4 + 8 * half;
      const int head = query_row / TOKENS, token = query_row % TOKENS;
      if (object >= objects || token >= tokens) continue;
      const long long row = (head * (long long)objects + object) * tokens + token;
      if (splits == 1) {
        u32* to = (u32*)out + (row * CHANNELS + 2 * (lane % 4)) / 2;
#pragma unroll
        for (int i = 0; i < TILES; ++i)
          to[4 * i] = pack(sums[i][2 * half] * share, sums[i][2 * half + 1] * share);
      } else {
        const long long there = (long long)split * HEADS * objects * tokens + row;
        float2* to = (float2*)out + (there * CHANNELS + 2 * (lane % 4)) / 2;
#pragma unroll
        for (int i = 0; i < TILES; ++i) to[4 * i] = {sums[i][2 * half], sums[i][2 * half + 1]};
        if (lane % 4 == 0) tops[there] = top[half], totals[there] = all;
      }
    }
  }
}
