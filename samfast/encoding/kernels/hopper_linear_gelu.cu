// A linear layer with GELU in the product's epilogue, on Hopper GPUs: out = GELU(x W^T + bias).
//
// The same calculation as linear_gelu.py beside this file. Written in CUDA C++ because there two
// warpgroups can take turns: one multiplies a tile while the other computes GELU of its own, so
// that the tensor cores never wait for it (CUTLASS calls the schedule ping-pong). A third warpgroup
// has one thread that works: it tells the copy engine what to bring. Two blocks, a cluster, take
// tiles below each other, and each brings half of the weights for both.
//
// Blocks stay, and take one tile after another.
//
// Compiled by NVRTC with these defined:
//   TYPE       "bf16", "f16" or "e4m3", of x, the weight and out
//   BIAS       "bf16" or "f16", of the bias
//   QUANTIZED  whether TYPE is "e4m3": rows of x and of the weight have scales, out has one

#include "hopper.cuh"

constexpr int BYTES = QUANTIZED ? 1 : 2;       // of a number
constexpr int TILE = 128;                      // rows and columns of a tile
constexpr int ROW_BYTES = 128;                 // of the depth that is brought at a time
constexpr int DEPTH = ROW_BYTES / BYTES;
constexpr int STEPS = ROW_BYTES / 32;          // products of a stage, along the depth
constexpr int OPERAND = TILE * ROW_BYTES;      // bytes of x or of the weight in a stage
constexpr int STAGES = QUANTIZED ? 6 : 5;
constexpr int OUT = TILE * TILE * BYTES;       // bytes of a tile on its way out
constexpr int PANEL = ROW_BYTES / BYTES;       // its columns that lie side by side
constexpr int MULTIPLIERS = 2;                 // warpgroups
constexpr int BLOCKS = 2;                      // of a cluster

constexpr int OUT_AT = STAGES * 2 * OPERAND;
constexpr int BARRIERS_AT = OUT_AT + MULTIPLIERS * OUT;
extern "C" __device__ const int shared_bytes = BARRIERS_AT + 16 * STAGES;

// Arrive at the same barrier of a block of the cluster.
__device__ __forceinline__ void arrive(u32 barrier, u32 block) {
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
               "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier), "r"(block)
               : "memory");
}

__device__ __forceinline__ void synchronize_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The warpgroups' turns to multiply. Without them the second could take the first's stages, for a
// barrier does not tell a phase from the one before the last.
__device__ __forceinline__ void wait_for_turn(int group) {
  asm volatile("bar.sync %0, 256;" ::"r"(1 + MULTIPLIERS + group) : "memory");
}

__device__ __forceinline__ void give_turn(int group) {
  asm volatile("bar.arrive %0, 256;" ::"r"(1 + MULTIPLIERS + group) : "memory");
}

// The same to all blocks of the cluster, whose barriers count it too.
__device__ __forceinline__ void bring_to_all(u32 to, const TensorMap* map, u32 barrier, int x,
                                             int y) {
  const u16 all = (1 << BLOCKS) - 1;
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
               ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to), "l"(map),
               "r"(barrier), "r"(x), "r"(y), "h"(all) : "memory");
}

__device__ __forceinline__ void send(const TensorMap* map, u32 from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::
               "l"(map), "r"(from), "r"(x), "r"(y) : "memory");
}

// Where the tensor cores find rows of 128 bytes, whose chunks of 16 are permuted from row to row.
// High bits of an address tell the block in the cluster, and are not wanted.
__device__ __forceinline__ u64 matrix(u32 address) {
  return (u64)((address & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// c = a * b, or c += a * b where it ADDS: (64, 128) of (64, 32 bytes) and (128, 32 bytes), by a
// warpgroup.
#define FOUR(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
template <bool ADDS>
__device__ __forceinline__ void multiply(float (&c)[64], u64 a, u64 b) {
#define CODE(DEPTH_AND_TYPE, TRANSPOSED)                                                           \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128" DEPTH_AND_TYPE  \
  " {" NAMES_64 "}, %64, %65, p, 1, 1" TRANSPOSED ";\n}"
#if QUANTIZED
  asm volatile(CODE("k32.f32." TYPE "." TYPE, "")
#else
  asm volatile(CODE("k16.f32." TYPE "." TYPE, ", 0, 0")
#endif
               : SIXTEEN(0), SIXTEEN(16), SIXTEEN(32), SIXTEEN(48)
               : "l"(a), "l"(b), "n"(ADDS));
}

// Multiply a stage: 128 rows in two halves.
template <bool FIRST>
__device__ __forceinline__ void multiply_stage(float (&sums)[2][64], u32 stage) {
  fence_products();
  const u64 rows = matrix(stage), weights = matrix(stage + OPERAND);
#pragma unroll
  for (int step = 0; step < STEPS; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u64 a = rows + (half * 64 * ROW_BYTES + 32 * step) / 16, b = weights + 32 * step / 16;
      if (FIRST && step == 0)
        multiply<false>(sums[half], a, b);
      else
        multiply<true>(sums[half], a, b);
    }
  }
  commit_products();
}

// As in gelu.py, which tells the polynomial.
__device__ __forceinline__ float gelu(float x) {
  const float size = fabsf(x);
  float power = fmaf(size, -0.00047330841f, 0.0070845452f);
  power = fmaf(size, power, -0.0518273376f);
  power = fmaf(size, power, -0.4599924982f);
  power = fmaf(size, power, -1.1507878304f);
  power = fmaf(size, power, -1.0000376701f);
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(power));
  return fmaf(-size, y, fmaxf(x, 0.f));
}

__device__ __forceinline__ float2 unpacked(u32 two) {
  float2 both;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32." BIAS " %0, low;\n"
      "cvt.f32." BIAS " %1, high;\n}" : "=f"(both.x), "=f"(both.y) : "r"(two));
  return both;
}

// Two neighbours of a row of the tile on its way out: number j of the row's groups of 8. Chunks of
// 16 bytes are permuted from row to row, as the copy engine expects.
__device__ __forceinline__ void put(u32 out, int line, int j, int lane, float low, float high) {
#if QUANTIZED
  u16 two;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(two) : "f"(high), "f"(low));
  const u32 to = out + line * ROW_BYTES + (j / 2 ^ lane / 4) * 16 + j % 2 * 8 + 2 * (lane % 4);
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(to), "h"(two) : "memory");
#else
  u32 two;
  asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(two) : "f"(high), "f"(low));
  const u32 panel = out + j / 8 * (TILE * ROW_BYTES);
  const u32 to = panel + line * ROW_BYTES + (j % 8 ^ lane / 4) * 16 + 4 * (lane % 4);
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(two) : "memory");
#endif
}

extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1)
    __launch_bounds__(128 * (MULTIPLIERS + 1), 1) linear_gelu(
        const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap weight_map,
        const __grid_constant__ TensorMap out_map,
        const u32* __restrict__ bias,            // (columns), two in each
        const float* __restrict__ x_scale,       // (rows); these four only if QUANTIZED
        const float* __restrict__ weight_scale,  // (columns)
        const float* __restrict__ bound,         // of the result's magnitude: one number
        float* __restrict__ out_scale,           // (rows): written
        int rows, int columns, int width,
        float largest) {                         // of the quantized format
  extern __shared__ __align__(1024) unsigned char shared[];
  const u32 base = (u32)__cvta_generic_to_shared(shared);
  const u32 filled = base + BARRIERS_AT, emptied = filled + 8 * STAGES;
  const int lane = threadIdx.x % 32;
  // By a shuffle, so that the compiler knows that the lanes of a warp agree.
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  u32 block;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(block));
  const int across = columns / TILE, clusters = gridDim.x / BLOCKS;
  const int tiles = across * ((rows + BLOCKS * TILE - 1) / (BLOCKS * TILE));
  const int stages_of_tile = (width + DEPTH - 1) / DEPTH;

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; ++stage) {
      set_barrier(filled + 8 * stage, 1);
      set_barrier(emptied + 8 * stage, 4 * BLOCKS);  // each warp of a warpgroup of each block
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  synchronize_cluster();

  if (warp < 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (warp == 0 && lane == 0) {
      int stage = 0, parity = 1;  // stages are empty at first
      for (int tile = blockIdx.x / BLOCKS; tile < tiles; tile += clusters) {
        const int row = (tile / across * BLOCKS + block) * TILE, column = tile % across * TILE;
        for (int part = 0; part < stages_of_tile; ++part) {
          const u32 to = base + stage * 2 * OPERAND, barrier = filled + 8 * stage;
          wait_for(emptied + 8 * stage, parity);
          expect(barrier, 2 * OPERAND);
          bring(to, &x_map, barrier, part * DEPTH, row);
          bring_to_all(to + OPERAND + block * (OPERAND / BLOCKS), &weight_map, barrier,
                       part * DEPTH, column + block * (TILE / BLOCKS));
          if (++stage == STAGES) stage = 0, parity ^= 1;
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int group = warp / 4 - 1, warp_of_group = warp % 4;
    const u32 out = base + OUT_AT + group * OUT;
    float scale = 1.f;
    if (QUANTIZED) scale = largest / *bound;
    int number = 0;  // of the stage among all
    if (group == 1) give_turn(0);
    for (int turn = 0, tile = blockIdx.x / BLOCKS; tile < tiles; tile += clusters, turn ^= 1) {
      if (turn != group) {
        number += stages_of_tile;
        continue;
      }
      const int row = (tile / across * BLOCKS + block) * TILE, column = tile % across * TILE;
      float sums[2][64];
      wait_for_turn(group);
      for (int part = 0; part < stages_of_tile; ++part, ++number) {
        const int stage = number % STAGES;
        wait_for(filled + 8 * stage, number / STAGES & 1);
        if (part == 0) {
          multiply_stage<true>(sums, base + stage * 2 * OPERAND);
        } else {
          multiply_stage<false>(sums, base + stage * 2 * OPERAND);
          wait_for_products<1>();
          if (lane < BLOCKS) arrive(emptied + 8 * ((number - 1) % STAGES), lane);
        }
      }
      give_turn(1 - group);
      wait_for_products<0>();
      if (lane < BLOCKS) arrive(emptied + 8 * ((number - 1) % STAGES), lane);
#pragma unroll
      for (int i = 0; i < 128; ++i) asm volatile("" : "+f"(sums[i / 64][i % 64]));

      // The tile before has left.
      if (warp_of_group == 0 && lane == 0)
        asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
      synchronize_warpgroup(group);
      const int first_row = 16 * warp_of_group + lane / 4;  // and 8, 64 and 72 after it
      float row_scales[4];
      if (QUANTIZED) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int place = row + first_row + 8 * (i % 2) + 64 * (i / 2);
          row_scales[i] = place < rows ? x_scale[place] : 0.f;
          if (column == 0 && lane % 4 == 0 && place < rows) out_scale[place] = 1.f / scale;
        }
      }
#pragma unroll
      for (int j = 0; j < TILE / 8; ++j) {
        const int at = column + 8 * j + 2 * (lane % 4);
        const float2 b = unpacked(bias[at / 2]);
        float2 s = {1.f, 1.f};
        if (QUANTIZED) s = *(const float2*)(weight_scale + at);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float low = sums[i / 2][4 * j + 2 * (i % 2)], high = sums[i / 2][4 * j + 2 * (i % 2) + 1];
          const int line = first_row + 8 * (i % 2) + 64 * (i / 2);
          if (QUANTIZED) {
            low = gelu(fmaf(low * row_scales[i], s.x, b.x)) * scale;
            high = gelu(fmaf(high * row_scales[i], s.y, b.y)) * scale;
            // The conversion would make it the largest, silently; NaN is found where the
            // embeddings are used.
            const float nan = __int_as_float(0x7fffffff);
            if (fabsf(low) > largest) low = nan;
            if (fabsf(high) > largest) high = nan;
          } else {
            low = gelu(low + b.x);
            high = gelu(high + b.y);
          }
          put(out, line, j, lane, low, high);
        }
      }
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      synchronize_warpgroup(group);
      if (warp_of_group == 0 && lane == 0) {
#pragma unroll
        for (int panel = 0; panel < TILE / PANEL; ++panel)
          send(&out_map, out + panel * TILE * ROW_BYTES, column + panel * PANEL, row);
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      }
    }
    if (warp_of_group == 0 && lane == 0)
      asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
  // The cluster's other block may still arrive at barriers of this one.
  __syncwarp();
  synchronize_cluster();
}
