// Window attention for half precision on Hopper GPUs.
//
// The same calculation as window_attention.py beside this file, which says what is read where it
// lies and which queries are left out. Written in CUDA C++ because Triton's tiles have sides of
// powers of two: there a head of 80 is 64 + 16, and 196 keys are 128 + 64 + 16.
//
// Blocks stay: each takes a window of one head after another. The copy engine brings a window's
// keys while the last values of the window before are multiplied, and its values while the first
// scores are computed. A warpgroup takes 64 queries. Their scores would fill all registers, so
// keys come in three parts, and the sums so far are scaled when a part has a higher score.
//
// Compiled by NVRTC with these defined:
//   DIM   width of a head: 64 or 80
//   TYPE  "bf16" or "f16"

#include "hopper.cuh"

constexpr int WINDOW = 14;
constexpr int AREA = WINDOW * WINDOW;
constexpr int GROUPS = 2;                   // warpgroups of a block
constexpr int THREADS = 128 * GROUPS;
constexpr int STEPS = DIM / 16;             // of a product over the head's width
constexpr int CHUNKS = DIM / 8;             // of 16 bytes in a row of a head
constexpr int PARTS = 3;
constexpr int KEYS[PARTS] = {96, 48, 56};   // of each part: 200, four beyond the window
constexpr int KEY_ROWS = 208;               // v is multiplied by 16 keys at a time
constexpr int OFFSETS = 2 * WINDOW;         // rows of a table, and one of zeros
constexpr int TERMS = 2 * OFFSETS;
constexpr int LINES = 32;                   // of a window: 16 rows and 16 columns

// Whether warps without queries leave out the softmax. At 80 the branch costs registers that the
// products lack, which would then run one after another.
constexpr bool SKIPS = DIM == 64;

// Keys and values lie in shared memory as the copy engine puts them: in panels whose rows are a
// power of two wide, and whose chunks of 16 bytes are permuted from row to row (a swizzle).
constexpr int PANEL = 64;                   // the first panel's columns
constexpr int SECOND = DIM - PANEL;         // the second's: 16 or none
constexpr int PANEL_BYTES = 2 * PANEL, SECOND_BYTES = 2 * SECOND;  // of a row
static_assert(SECOND == 0 || SECOND == 16, "not a width of this kernel");

// Other matrices lie as the tensor cores take them without permutation: 8 rows of 16 bytes one
// after another, then the next 8 rows, and chunk by chunk.
constexpr int GROUP_BYTES = 128;
constexpr int LINES_CHUNK = 25 * GROUP_BYTES + 16;
constexpr int TABLE_CHUNK = TERMS / 8 * GROUP_BYTES + 16;

constexpr int K_AT = 0;
constexpr int V_AT = K_AT + KEY_ROWS * PANEL_BYTES;
constexpr int K2_AT = V_AT + KEY_ROWS * PANEL_BYTES;
constexpr int V2_AT = K2_AT + KEY_ROWS * SECOND_BYTES;
constexpr int LINES_AT = V2_AT + KEY_ROWS * SECOND_BYTES;
constexpr int TABLE_AT = LINES_AT + LINES / 8 * LINES_CHUNK;
constexpr int SCRATCH_AT = TABLE_AT + CHUNKS * TABLE_CHUNK;
constexpr int SCRATCH_BYTES = 16 * TERMS * 2;  // of a warp
constexpr int BARRIERS_AT = SCRATCH_AT + 4 * GROUPS * SCRATCH_BYTES;
static_assert(V_AT % 1024 == 0 && V2_AT % 256 == 0 && BARRIERS_AT % 8 == 0, "not aligned");
extern "C" __device__ const int shared_bytes = BARRIERS_AT + 16;

__device__ __forceinline__ u32 place(int row, int chunk, int chunk_bytes) {
  return chunk * chunk_bytes + row * 16;  // 8 rows fill a group
}

__device__ __forceinline__ void store_16(u32 to, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

__device__ __forceinline__ void prefetch_window(const TensorMap* map, int channel, int left,
                                                int top, int image) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %3, %4}];" ::"l"(map),
               "r"(channel), "r"(left), "r"(top), "r"(image) : "memory");
}

// Where the tensor cores find a matrix of the second kind. `leading` and `stride` are the bytes
// between groups of 8 along its two sides.
__device__ __forceinline__ u64 plain(u32 address, int leading, int stride) {
  return (u64)(address >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32;
}

struct Softmax {
  float top[2], total[2];    // of the lane's two queries: highest score, sum of weights
  float sums[2 * STEPS][4];  // weighted sums of v
};

// Turn the scores of TILES tiles of keys into weights; scale the sums so far accordingly.
template <int TILES, bool FIRST, bool LAST>
__device__ __forceinline__ void weigh(Softmax& s, float (&c)[TILES][4],
                                      u32 (&weights)[(TILES + 1) / 2][4], float scale, int lane) {
  if (LAST) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (2 * (lane % 4) + i % 2 >= AREA % 8) c[TILES - 1][i] = -__int_as_float(0x7f800000);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = fmaxf(c[0][2 * half], c[0][2 * half + 1]);
#pragma unroll
    for (int tile = 1; tile < TILES; ++tile)
      top = fmaxf(top, fmaxf(c[tile][2 * half], c[tile][2 * half + 1]));
    top = max_of_4_lanes(top);
    float total = 0.f;
    if (!FIRST) {
      top = fmaxf(top, s.top[half]);
      const float shrink = exp2_fast((s.top[half] - top) * scale);
      total = s.total[half] * shrink;
#pragma unroll
      for (int n = 0; n < 2 * STEPS; ++n) {
        s.sums[n][2 * half] *= shrink;
        s.sums[n][2 * half + 1] *= shrink;
      }
    }
    const float shift = -top * scale;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const float low = exp2_fast(fmaf(c[tile][2 * half], scale, shift));
      const float high = exp2_fast(fmaf(c[tile][2 * half + 1], scale, shift));
      total += low + high;
      weights[tile / 2][2 * (tile % 2) + half] = pack(low, high);
    }
    s.top[half] = top;
    s.total[half] = total;
  }
  if (TILES % 2) weights[TILES / 2][2] = weights[TILES / 2][3] = 0;
}

constexpr int tiles_before(int part) {
  return (part > 0 ? KEYS[0] / 8 : 0) + (part > 1 ? KEYS[1] / 8 : 0);
}

template <int PART>
using Weights = u32[(KEYS[PART] + 15) / 16][4];

// The matrices of a window, for the tensor cores.
struct Window {
  u64 keys, keys_2, values, values_2, lines;
};

// The weights of a part's keys, and the sums so far scaled accordingly.
template <int PART, typename Done>
__device__ __forceinline__ void score(Softmax& s, Weights<PART>& weights, const u32 (&q)[STEPS][4],
                                      const u32 (&terms)[2][4], const Window& window, float scale,
                                      int lane, bool has_queries, Done done) {
  constexpr int TILES = KEYS[PART] / 8, BEFORE = tiles_before(PART);
  const u64 keys = window.keys + BEFORE * 8 * PANEL_BYTES / 16;
  float c[TILES][4];
  fence_products();
  multiply<false, false>(c, q[0], keys);
#pragma unroll
  for (int step = 1; step < PANEL / 16; ++step)
    multiply<true, false>(c, q[step], keys + step * 2);
  if constexpr (SECOND > 0)
    multiply<true, false>(c, q[STEPS - 1], window.keys_2 + BEFORE * 8 * SECOND_BYTES / 16);
#pragma unroll
  for (int step = 0; step < 2; ++step)
    multiply<true, false>(c, terms[step],
                          window.lines + (step * 2 * LINES_CHUNK + BEFORE * GROUP_BYTES) / 16);
  commit_products();
  wait_for_products<0>();
  settle(c);
  done();
  // The tensor cores need all four warps, but one without queries has nothing to weigh.
  if (has_queries || !SKIPS) {
    weigh<TILES, PART == 0, PART == PARTS - 1>(s, c, weights, scale, lane);
  } else {
#pragma unroll
    for (int i = 0; i < 4 * ((TILES + 1) / 2); ++i) weights[i / 4][i % 4] = 0;
  }
}

// Add a part's weighted rows of v.
template <int PART>
__device__ __forceinline__ void add_values(Softmax& s, const Weights<PART>& weights,
                                           const Window& window) {
  constexpr int BEFORE = 8 * tiles_before(PART);
  using First = float[PANEL / 8][4];
  using Last = float[2][4];
  First& sums = reinterpret_cast<First&>(s.sums);
  Last& sums_2 = reinterpret_cast<Last&>(s.sums[2 * STEPS - 2]);
  const u64 rows = window.values + BEFORE * PANEL_BYTES / 16;
  const u64 rows_2 = window.values_2 + BEFORE * SECOND_BYTES / 16;
  fence_products();
  multiply<(PART > 0), true>(sums, weights[0], rows);
  if constexpr (SECOND > 0) multiply<(PART > 0), true>(sums_2, weights[0], rows_2);
#pragma unroll
  for (int step = 1; step < (KEYS[PART] + 15) / 16; ++step) {
    multiply<true, true>(sums, weights[step], rows + step * PANEL_BYTES);
    if constexpr (SECOND > 0)
      multiply<true, true>(sums_2, weights[step], rows_2 + step * SECOND_BYTES);
  }
  commit_products();
  wait_for_products<0>();
  settle(s.sums);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) window_attention(
    const __grid_constant__ TensorMap first_panels, const __grid_constant__ TensorMap second_panels,
    const u16* __restrict__ qkv,      // (batch, height, width, 3 * channels)
    const u16* __restrict__ table_h,  // (2 * WINDOW - 1, DIM)
    const u16* __restrict__ table_w,
    const u16* __restrict__ pad,      // (3 * channels): q, k and v of a padding token
    u16* __restrict__ out,            // (batch, height, width, channels)
    int batch, int height, int width, int channels,
    float scale,                      // of the scores, times log2(e)
    float root) {                     // times which the terms have the scale of unscaled scores
  extern __shared__ __align__(1024) unsigned char shared[];
  const u32 base = (u32)__cvta_generic_to_shared(shared);
  const int lane = threadIdx.x % 32;
  // By a shuffle, so that the compiler knows that the lanes of a warp agree.
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const u32 keys_there = base + BARRIERS_AT, values_there = base + BARRIERS_AT + 8;
  const int head = blockIdx.x, across = (width + WINDOW - 1) / WINDOW;
  const int windows = across * ((height + WINDOW - 1) / WINDOW);

  if (threadIdx.x == 0) {
    set_barrier(keys_there, 1);
    set_barrier(values_there, 1);
  }
  // Rows of the tables that are no offsets, and keys beyond the window, weigh nothing: zeros.
  for (int i = threadIdx.x; i < TERMS * CHUNKS; i += THREADS) {
    const int row = i / CHUNKS, chunk = i % CHUNKS, offset = row % OFFSETS;
    const u16* from = row < OFFSETS ? table_h : table_w;
    uint4 x = {0, 0, 0, 0};
    if (offset < OFFSETS - 1) x = *(const uint4*)(from + offset * DIM + 8 * chunk);
    store_16(base + TABLE_AT + place(row, chunk, TABLE_CHUNK), x.x, x.y, x.z, x.w);
  }
  for (int i = threadIdx.x; i < (KEY_ROWS - AREA) * PANEL_BYTES / 16; i += THREADS) {
    store_16(base + K_AT + AREA * PANEL_BYTES + 16 * i, 0, 0, 0, 0);
    store_16(base + V_AT + AREA * PANEL_BYTES + 16 * i, 0, 0, 0, 0);
    if (i < (KEY_ROWS - AREA) * SECOND_BYTES / 16) {
      store_16(base + K2_AT + AREA * SECOND_BYTES + 16 * i, 0, 0, 0, 0);
      store_16(base + V2_AT + AREA * SECOND_BYTES + 16 * i, 0, 0, 0, 0);
    }
  }
  // One-hot rows and columns of the keys: a product with them adds a query's terms to its scores.
  const u32 one = pack(1.f, 0.f);
  for (int i = threadIdx.x; i < 200 * 4; i += THREADS) {
    const int key = i / 4, chunk = i % 4;
    const int line = (chunk < 2 ? key / WINDOW : key % WINDOW) - 8 * (chunk % 2);
    const u32 word = line & 1 ? one << 16 : one;
    store_16(base + LINES_AT + place(key, chunk, LINES_CHUNK), line >> 1 == 0 ? word : 0,
             line >> 1 == 1 ? word : 0, line >> 1 == 2 ? word : 0, line >> 1 == 3 ? word : 0);
  }
  publish();
  __syncthreads();

  // Keys are part 1 of qkv, values part 2.
  auto fetch = [&](int part, int image, int top, int left) {
    if (threadIdx.x != 0 || image >= batch) return;
    const u32 barrier = part == 1 ? keys_there : values_there;
    const int channel = part * channels + head * DIM;
    expect(barrier, AREA * 2 * DIM);
    bring(base + (part == 1 ? K_AT : V_AT), &first_panels, barrier, channel, left, top, image);
    if (SECOND > 0)
      bring(base + (part == 1 ? K2_AT : V2_AT), &second_panels, barrier, channel + PANEL, left, top,
            image);
    // Threads read the queries themselves, later.
    if (part == 1) prefetch_window(&first_panels, head * DIM, left, top, image);
    if (part == 1 && SECOND > 0)
      prefetch_window(&second_panels, head * DIM + PANEL, left, top, image);
  };

  const Window matrices = {panel(base + K_AT, PANEL_BYTES), panel(base + K2_AT, SECOND_BYTES),
                           panel(base + V_AT, PANEL_BYTES), panel(base + V2_AT, SECOND_BYTES),
                           plain(base + LINES_AT, LINES_CHUNK, GROUP_BYTES)};
  const u64 table = plain(base + TABLE_AT, TABLE_CHUNK, GROUP_BYTES);
  u16* scratch = (u16*)(shared + SCRATCH_AT + warp * SCRATCH_BYTES);

  int item = blockIdx.y, parity = 0;
  int image = item / windows, top = item % windows / across * WINDOW;
  int left = item % windows % across * WINDOW;
  fetch(1, image, top, left);
  fetch(2, image, top, left);
  while (image < batch) {
    item += gridDim.y;
    const int next_image = item / windows, next_top = item % windows / across * WINDOW;
    const int next_left = item % windows % across * WINDOW;
    const int rows = min(height - top, WINDOW), columns = min(width - left, WINDOW);
    const long long first = (long long)image * height * width + top * width + left;
    const u16* corner = qkv + first * 3 * channels + head * DIM;
    u16* answers = out + first * channels + head * DIM;
    const int queries = rows * columns;
    const int reciprocal = (4096 + columns - 1) / columns;  // exact for queries below 256

    if (queries < AREA) {
      // Beyond the grid's edge is the padding token, not the zeros that were copied.
      wait_for(keys_there, parity);
      wait_for(values_there, parity);
      for (int i = threadIdx.x; i < AREA * CHUNKS; i += THREADS) {
        const int key = i / CHUNKS, chunk = i % CHUNKS;
        if (key / WINDOW < rows && key % WINDOW < columns) continue;
        const u16* from = pad + head * DIM + 8 * chunk;
        const uint4 k = *(const uint4*)(from + channels);
        const uint4 v = *(const uint4*)(from + 2 * channels);
        const bool in_first = chunk < PANEL / 8;
        const int at = in_first ? swizzled(key, chunk, PANEL_BYTES)
                                : swizzled(key, chunk - PANEL / 8, SECOND > 0 ? SECOND_BYTES : 16);
        store_16(base + (in_first ? K_AT : K2_AT) + at, k.x, k.y, k.z, k.w);
        store_16(base + (in_first ? V_AT : V2_AT) + at, v.x, v.y, v.z, v.w);
      }
      publish();
      __syncthreads();
    }

    // When the last scores of all warpgroups are computed, the next window's keys may come.
    auto next_keys = [&] {
      __syncthreads();
      fetch(1, next_image, next_top, next_left);
    };
    for (int start = 64 * (warp / 4); start < queries; start += 64 * GROUPS) {
      const bool last = start + 64 * GROUPS >= queries;
      const int mine = start + 16 * (warp % 4) + lane / 4;  // and the query 8 after it
      const bool has_queries = start + 16 * (warp % 4) < queries;
      int row[2], column[2], token[2];
      u32 q[STEPS][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = mine + 8 * half < queries ? mine + 8 * half : 0;
        row[half] = query * reciprocal >> 12;
        column[half] = query - row[half] * columns;
        token[half] = row[half] * width + column[half];
        const u16* from = corner + token[half] * 3 * channels + 2 * (lane % 4);
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
          q[step][half] = *(const u32*)(from + 16 * step);
          q[step][half + 2] = *(const u32*)(from + 16 * step + 8);
        }
      }

      // Products with all rows of both tables; of these then those at the keys' offsets.
      {
        float products[TERMS / 8][4];
        fence_products();
        multiply<false, false>(products, q[0], table);
#pragma unroll
        for (int step = 1; step < STEPS; ++step)
          multiply<true, false>(products, q[step], table + step * 2 * TABLE_CHUNK / 16);
        commit_products();
        wait_for_products<0>();
        settle(products);
        __syncwarp();
#pragma unroll
        for (int tile = 0; tile < TERMS / 8; ++tile)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            *(u32*)(scratch + (lane / 4 + 8 * half) * TERMS + 8 * tile + 2 * (lane % 4)) =
                pack(products[tile][2 * half] * root, products[tile][2 * half + 1] * root);
        __syncwarp();
      }
      u32 terms[2][4];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int half = i % 2, key = 2 * (lane % 4) + 8 * (i / 2 % 2);
        const int offset = i / 4 ? OFFSETS + column[half] - key : row[half] - key;
        const u16* at = scratch + (lane / 4 + 8 * half) * TERMS;
        // Beyond the window's lines any number will do: no key is there.
        const u32 low = at[max(offset + WINDOW - 1, 0)], high = at[max(offset + WINDOW - 2, 0)];
        terms[i / 4][i % 4] = low | high << 16;
      }

      Softmax softmax;
      wait_for(keys_there, parity);
      {
        Weights<0> weights;
        score<0>(softmax, weights, q, terms, matrices, scale, lane, has_queries, [] {});
        wait_for(values_there, parity);
        add_values<0>(softmax, weights, matrices);
      }
      {
        Weights<1> weights;
        score<1>(softmax, weights, q, terms, matrices, scale, lane, has_queries, [] {});
        add_values<1>(softmax, weights, matrices);
      }
      {
        Weights<2> weights;
        score<2>(softmax, weights, q, terms, matrices, scale, lane, has_queries, [&] {
          if (last) next_keys();
        });
        add_values<2>(softmax, weights, matrices);
      }

      if (SKIPS && !has_queries) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float share = 1.f / sum_of_4_lanes(softmax.total[half]);
        const int odd = lane % 2;
        u16* to = answers + token[half] * channels + 8 * odd + 2 * (lane % 4 - odd);
#pragma unroll
        for (int pair = 0; pair < STEPS; ++pair) {
          const float(&a)[4] = softmax.sums[2 * pair];
          const float(&b)[4] = softmax.sums[2 * pair + 1];
          const u32 even_tile = pack(a[2 * half] * share, a[2 * half + 1] * share);
          const u32 odd_tile = pack(b[2 * half] * share, b[2 * half + 1] * share);
          // Neighbours swap, so that each writes four numbers of a row instead of twice two.
          const u32 other = __shfl_xor_sync(~0u, odd ? even_tile : odd_tile, 1);
          if (mine + 8 * half < queries)
            *(uint2*)(to + 16 * pair) = odd ? uint2{other, odd_tile} : uint2{even_tile, other};
        }
      }
    }
    // A warpgroup without queries waits as often as the others.
    if (64 * (warp / 4) >= queries) next_keys();
    __syncthreads();
    fetch(2, next_image, next_top, next_left);
    image = next_image, top = next_top, left = next_left, parity ^= 1;
  }
}
