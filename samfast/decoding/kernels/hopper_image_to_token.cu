// Image-to-token attention, its residual addition and the norm, on Hopper GPUs.
//
// The same calculation as image_to_token.py beside this file. Written in CUDA C++ because there the
// rows of an image are brought while the block waits for them, and each head's softmax changes the
// layout of the scores. Here the copy engine brings the next rows while the tensor cores multiply,
// and a row of the image stays in the registers of four lanes from the first product to the norm.
//
// Blocks stay: each takes a share of all tiles, 64 places of an object's image, one after another.
// Two warpgroups take turns with the tiles. A third has one warp that works: it tells the copy
// engine what to bring, and prepares the keys and values of the next object.
//
// Compiled by NVRTC with these defined:
//   TYPE  "bf16" or "f16"
//   BF16  1 or 0, the same

#include "hopper.cuh"

constexpr int CHANNELS = 256;
constexpr int HEADS = 8;
constexpr int TOKENS = 8;                      // of a head, the last of which is not one
constexpr int COLUMNS = HEADS * TOKENS;        // of the scores
constexpr int TILE = 64;                       // places
constexpr int STEPS = CHANNELS / 16;           // of a product over the channels
constexpr int TILES = CHANNELS / 8;            // of 8 columns, of a warpgroup's rows
constexpr int GROUPS = 2;                      // warpgroups that multiply

// Matrices lie in panels of 64 channels: rows of 128 bytes, whose chunks of 16 bytes are permuted
// from row to row (a swizzle).
constexpr int PANEL = TILE * 128;
constexpr int PANELS = CHANNELS / 64;
constexpr int MATRIX = PANELS * PANEL;

constexpr int ROW_STAGES = 3;                  // rows wait in memory until they have left it again
constexpr int POSITION_STAGES = 2;

constexpr int KEYS_AT = 0;
constexpr int VALUES_AT = KEYS_AT + MATRIX;
constexpr int ROWS_AT = VALUES_AT + MATRIX;
constexpr int POSITIONS_AT = ROWS_AT + ROW_STAGES * MATRIX;
// Norm weights and biases, each lane's columns beside each other.
constexpr int WEIGHT_PITCH = TILES * 8 + 16;
constexpr int BIAS_PITCH = TILES * 4 + 16;
constexpr int WEIGHTS_AT = POSITIONS_AT + POSITION_STAGES * MATRIX;
constexpr int BIASES_AT = WEIGHTS_AT + 4 * WEIGHT_PITCH;
constexpr int SCORE_BIAS_AT = BIASES_AT + 4 * BIAS_PITCH;
constexpr int BARRIERS_AT = SCORE_BIAS_AT + COLUMNS * 4;
constexpr int BARRIERS = 2 * ROW_STAGES + 2 * POSITION_STAGES + 3;
extern "C" __device__ const int shared_bytes = BARRIERS_AT + 8 * BARRIERS;
static_assert(BARRIERS_AT % 8 == 0 && BARRIERS_AT + 8 * BARRIERS <= 232448, "too large");

__device__ __forceinline__ void send_rows(const TensorMap* map, u32 from, int place, int object) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group "
               "[%0, {%2, %3, %2, %4}], [%1];" ::"l"(map), "r"(from), "r"(0), "r"(place),
               "r"(object) : "memory");
}


__device__ __forceinline__ void store_matrices(u32 to, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a),
               "r"(b), "r"(c), "r"(d) : "memory");
}

__device__ __forceinline__ float2 unpack(u32 both) {
#if BF16
  return unpack_bf16(both);
#else
  float2 two;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\n"
      "cvt.f32.f16 %1, high;\n}" : "=f"(two.x), "=f"(two.y) : "r"(both));
  return two;
#endif
}

__device__ __forceinline__ u32 add_pairs(u32 a, u32 b) {
  u32 sum;
  asm("add.rn." TYPE "x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  return sum;
}

__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The highest scores of two rows among 4 lanes, rounded: any number near the highest will do.
__device__ __forceinline__ float2 about_max_of_4_lanes(float a, float b) {
  u32 both, other;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
  other = __shfl_xor_sync(~0u, both, 1);
  asm("max.bf16x2 %0, %0, %1;" : "+r"(both) : "r"(other));
  other = __shfl_xor_sync(~0u, both, 2);
  asm("max.bf16x2 %0, %0, %1;" : "+r"(both) : "r"(other));
  return unpack_bf16(both);
}

// The scores of two rows, 8 tokens of each head in 4 lanes, become weights.
__device__ __forceinline__ void weigh(float (&c)[HEADS][4], u32 (&weights)[HEADS / 2][4],
                                      const float2* biases, float scale, int lane) {
#pragma unroll
  for (int head = 0; head < HEADS; ++head) {
    const float2 bias = biases[4 * head + lane % 4];
    float(&x)[4] = c[head];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = fmaf(x[i], scale, i % 2 ? bias.y : bias.x);
    const float2 top = about_max_of_4_lanes(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = half ? top.y : top.x;
      const float low = exp2_fast(x[2 * half] - shift), high = exp2_fast(x[2 * half + 1] - shift);
      const float share = reciprocal(sum_of_4_lanes(low + high));
      weights[head / 2][2 * (head % 2) + half] = pack(low * share, high * share);
    }
  }
  // The first head's last token is none: its value is the bias of the output's projection.
  if (lane % 4 == TOKENS / 2 - 1) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      weights[0][half] = weights[0][half] & 0xffff | pack(0.f, 1.f) & 0xffff0000;
  }
}

extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 1) image_to_token_attention(
    const __grid_constant__ TensorMap row_map, const __grid_constant__ TensorMap position_map,
    const __grid_constant__ TensorMap key_map, const __grid_constant__ TensorMap value_map,
    const __grid_constant__ TensorMap out_map,
    const long long* __restrict__ source_of,  // (objects)
    const float* __restrict__ score_bias,     // (HEADS, objects, tokens)
    const u16* __restrict__ out_bias,         // (CHANNELS), as the norm's
    const u32* __restrict__ norm_weight, const u32* __restrict__ norm_bias,
    int objects, int tokens, int places,
    float scale,                              // of the scores, times log2(e)
    float eps) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const u32 base = (u32)__cvta_generic_to_shared(shared);
  const int lane = threadIdx.x % 32;
  // By a shuffle, so that the compiler knows that the lanes of a warp agree.
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const u32 rows_full = base + BARRIERS_AT, rows_empty = rows_full + 8 * ROW_STAGES;
  const u32 positions_full = rows_empty + 8 * ROW_STAGES;
  const u32 positions_empty = positions_full + 8 * POSITION_STAGES;
  const u32 tokens_brought = positions_empty + 8 * POSITION_STAGES;
  const u32 tokens_full = tokens_brought + 8, tokens_empty = tokens_full + 8;

  const int tiles = (places + TILE - 1) / TILE;  // of an object
  const long long all = (long long)objects * tiles;
  const long long first = all * blockIdx.x / gridDim.x;
  const long long last = all * (blockIdx.x + 1) / gridDim.x;

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < ROW_STAGES; ++stage) {
      set_barrier(rows_full + 8 * stage, 1);
      set_barrier(rows_empty + 8 * stage, 1);
    }
    for (int stage = 0; stage < POSITION_STAGES; ++stage) {
      set_barrier(positions_full + 8 * stage, 1);
      set_barrier(positions_empty + 8 * stage, 4);  // the warps of a warpgroup
    }
    set_barrier(tokens_brought, 1);
    set_barrier(tokens_full, 1);
    set_barrier(tokens_empty, 4 * GROUPS);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  // Pair number i of lane l % 4 has the columns 8 * i + 2 * (l % 4) and the next.
  for (int i = threadIdx.x; i < CHANNELS / 2; i += blockDim.x) {
    const float2 weight = unpack(norm_weight[i]);
    *(float2*)(shared + WEIGHTS_AT + i % 4 * WEIGHT_PITCH + i / 4 * 8) = weight;
    *(u32*)(shared + BIASES_AT + i % 4 * BIAS_PITCH + i / 4 * 4) = norm_bias[i];
  }
  __syncthreads();

  if (warp < 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp == 0) {
      int row_stage = 0, row_parity = 1, position_stage = 0, position_parity = 1;  // empty at first
      int tokens_parity = 0;
      long long object = -1;
      for (long long tile = first; tile < last; ++tile) {
        const long long now = tile / tiles;
        const int place = (int)(tile - now * tiles) * TILE;
        if (lane == 0) {
          const int image = (int)source_of[now];
          wait_for(rows_empty + 8 * row_stage, row_parity);
          expect(rows_full + 8 * row_stage, MATRIX);
          bring(base + ROWS_AT + row_stage * MATRIX, &row_map, rows_full + 8 * row_stage, 0, place,
                0, image);
          wait_for(positions_empty + 8 * position_stage, position_parity);
          expect(positions_full + 8 * position_stage, MATRIX);
          bring(base + POSITIONS_AT + position_stage * MATRIX, &position_map,
                positions_full + 8 * position_stage, 0, place, 0);
        }
        __syncwarp();
        if (++row_stage == ROW_STAGES) row_stage = 0, row_parity ^= 1;
        if (++position_stage == POSITION_STAGES) position_stage = 0, position_parity ^= 1;
        if (now != object) {
          object = now;
          wait_for(tokens_empty, tokens_parity ^ 1);
          if (lane == 0) {
            expect(tokens_brought, 2 * MATRIX);
            // Tokens beyond the last are zeros.
            bring(base + KEYS_AT, &key_map, tokens_brought, 0, 0, (int)object, 0, 0);
            bring(base + VALUES_AT, &value_map, tokens_brought, 0, 0, (int)object, 0, 0);
          }
          for (int column = lane; column < COLUMNS; column += 32) {
            const int head = column / TOKENS, token = column % TOKENS;
            float bias = -__int_as_float(0x7f800000);
            if (token < tokens)
              bias = score_bias[(head * (long long)objects + object) * tokens + token];
            *(float*)(shared + SCORE_BIAS_AT + 4 * column) = bias * 1.4426950408889634f;
          }
          wait_for(tokens_brought, tokens_parity);
          const int row = TOKENS - 1, panel = lane / 8, chunk = lane % 8;
          *(uint4*)(shared + VALUES_AT + panel * PANEL + row * 128 + (chunk ^ row % 8) * 16) =
              *(const uint4*)(out_bias + 64 * panel + 8 * chunk);
          publish();
          __syncwarp();
          if (lane == 0) arrive(tokens_full);
          tokens_parity ^= 1;
        }
      }
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  const int group = warp / 4 - 1, quarter = warp % 4;
  const bool sends = quarter == 0 && lane == 0;
  // Where the lane finds its part of the first four matrices of a panel; the others' are at
  // addresses of which two bits differ.
  const int row = 16 * quarter + lane % 16;
  const u32 within = row * 128 + ((lane / 16) ^ row % 8) * 16;
  const u64 keys = matrix(base + KEYS_AT, 16), values = matrix(base + VALUES_AT, PANEL);
  const float2* biases = (const float2*)(shared + SCORE_BIAS_AT);
  const float4* weights_there = (const float4*)(shared + WEIGHTS_AT + lane % 4 * WEIGHT_PITCH);
  const uint2* biases_there = (const uint2*)(shared + BIASES_AT + lane % 4 * BIAS_PITCH);

  int number = 0;     // of the tile among the block's
  int sent = -1;      // stage of the rows that are on their way out
  int tokens_parity = 0;
  for (long long begin = first; begin < last;) {
    const long long object = begin / tiles;
    const long long end = min(last, (object + 1) * tiles);
    wait_for(tokens_full, tokens_parity);
    tokens_parity ^= 1;
    for (long long tile = begin; tile < end; ++tile, ++number) {
      if (number % GROUPS != group) continue;
      const int place = (int)(tile - object * tiles) * TILE;
      const int stage = number % ROW_STAGES, position_stage = number % POSITION_STAGES;
      const u32 rows = base + ROWS_AT + stage * MATRIX + within;
      const u32 positions = base + POSITIONS_AT + position_stage * MATRIX + within;

      u32 x[STEPS][4], weights[HEADS / 2][4];
      {
        float scores[HEADS][4];
        wait_for(rows_full + 8 * stage, number / ROW_STAGES & 1);
        wait_for(positions_full + 8 * position_stage, number / POSITION_STAGES & 1);
        u32 query[STEPS][4];
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
          const u32 at = step / 4 * PANEL;
          load_matrices(x[step], (rows ^ step % 4 * 32) + at);
          load_matrices(query[step], (positions ^ step % 4 * 32) + at);
#pragma unroll
          for (int i = 0; i < 4; ++i) query[step][i] = add_pairs(query[step][i], x[step][i]);
        }
        __syncwarp();
        if (lane == 0) arrive(positions_empty + 8 * position_stage);
        fence_products();
        multiply<false, false>(scores, query[0], keys);
#pragma unroll
        for (int step = 1; step < STEPS; ++step)
          multiply<true, false>(scores, query[step],
                                keys + (step / 4 * PANEL + step % 4 * 32) / 16);
        commit_products();
        wait_for_products<0>();
        settle(scores);
        if (sends && sent >= 0) {
          asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
          arrive(rows_empty + 8 * sent);
        }
        weigh(scores, weights, biases, scale, lane);
      }

      float sums[TILES][4];
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 both = unpack(x[step][i]);
          sums[2 * step + i / 2][i % 2 * 2] = both.x;
          sums[2 * step + i / 2][i % 2 * 2 + 1] = both.y;
        }
      }
      fence_products();
#pragma unroll
      for (int step = 0; step < HEADS / 2; ++step)
        multiply<true, true>(sums, weights[step], values + step * 16 * 128 / 16);
      commit_products();
      wait_for_products<0>();
      settle(sums);

      float share[2], shift[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float total = 0.f, squares = 0.f;
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
          const float low = sums[i][2 * half], high = sums[i][2 * half + 1];
          total += low + high;
          squares = fmaf(low, low, fmaf(high, high, squares));
        }
        const float mean = sum_of_4_lanes(total) / CHANNELS;
        const float variance = fmaf(-mean, mean, sum_of_4_lanes(squares) / CHANNELS);
        share[half] = rsqrtf(fmaxf(variance, 0.f) + eps);
        shift[half] = -mean * share[half];
      }
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        const float4 weight = weights_there[step];
        const uint2 packed = biases_there[step];
        u32 answer[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float(&sum)[4] = sums[2 * step + i / 2];
          const int half = i % 2;
          const float2 bias = unpack(i / 2 ? packed.y : packed.x);
          const float low = fmaf(sum[2 * half], share[half], shift[half]);
          const float high = fmaf(sum[2 * half + 1], share[half], shift[half]);
          answer[i] = pack(fmaf(low, i / 2 ? weight.z : weight.x, bias.x),
                           fmaf(high, i / 2 ? weight.w : weight.y, bias.y));
        }
        store_matrices((rows ^ step % 4 * 32) + step / 4 * PANEL, answer[0], answer[1], answer[2],
                       answer[3]);
      }
      publish();
      synchronize_warpgroup(group);
      if (sends) {
        send_rows(&out_map, base + ROWS_AT + stage * MATRIX, place, (int)object);
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      }
      sent = stage;
    }
    begin = end;
    __syncwarp();
    if (lane == 0) arrive(tokens_empty);
  }
  if (sends) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
