// Low-resolution logits to masks, packed masks and measures on Hopper GPUs.
//
// The same calculation as postprocess_tiles.py beside this file. Written in CUDA C++ because a
// thread here takes a column of 32 rows and keeps it as bits of a register: an area is a count of
// bits, a box lies between the first and the last column and row that are not zero, and the
// register is the word of the packed mask.
//
// A block belongs to one mask. A warp takes a band, the 32 rows of a word, or a piece of one where
// masks are few. First it computes the extremes of the logits of each strip of 32 columns. Strips
// entirely above or below the thresholds end there. In the others a lane walks down a column: each
// row of logits is blended across once, and rows of the image blend three of these.
//
// Both resizes together blend four logits in a line, of which at most three differ where the
// square has as many pixels as there are logits: three neighbours, with summed weights. Zero times
// infinity would then be NaN elsewhere than in PyTorch, so strips with logits that are not finite
// blend all sixteen, one pixel after another.
//
// Compiled by NVRTC, without headers, with these defined:
//   TYPE   "bf16", "f16" or "f32"
//   BYTES  of a logit

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

constexpr int WARPS = 4;
constexpr int LANES = 32;
constexpr int ROWS = 32;     // of a band: the bits of a word
constexpr int COLUMNS = 32;  // of a strip: one for each lane
constexpr int CHUNK = 8;     // neighbouring logits that a lane scans
constexpr int PAIRS = LANES * CHUNK / 2;
constexpr int BATCH = 12 / BYTES;  // rows of logits that are loaded at once
constexpr u32 ALL = ~0u;
constexpr int FAR = 0x7fffffff;

constexpr int ROWS_BYTES = ROWS * 16;
constexpr int WARP_BYTES = ROWS_BYTES + PAIRS * 8;
constexpr int TOTALS_AT = WARPS * WARP_BYTES;
extern "C" __device__ const int shared_bytes = TOTALS_AT + 7 * 4;

// One side of both resizes.
struct Side {
  int inside, low;         // pixels of the image inside the square; logits
  float scale, low_scale;  // pixels inside the square per pixel; logits per pixel of the square
};

struct Neighbours {
  int first, second;
  float left, right;  // their weights
};

// The two source pixels, in a line of `size`, of a pixel of the resized line.
__device__ __forceinline__ Neighbours between(int target, float scale, int size) {
  const float place = fmaxf(((float)target + 0.5f) * scale - 0.5f, 0.f);
  const int first = min((int)place, size - 1);
  const float share = fminf(place - (float)first, 1.f);
  return {first, min(first + 1, size - 1), 1.f - share, share};
}

// Three neighbouring logits of a line, of which a pixel is the weighted sum.
struct Taps {
  int first;
  float weight[3];
};

__device__ __forceinline__ Taps taps_of(int target, const Side& side) {
  const Neighbours in_square = between(target, side.scale, side.inside);
  const Neighbours a = between(in_square.first, side.low_scale, side.low);
  const Neighbours b = between(in_square.second, side.low_scale, side.low);
  const bool same = a.first == b.first;
  const float b_left = in_square.right * b.left, b_right = in_square.right * b.right;
  const float w0 = in_square.left * a.left + (same ? b_left : 0.f);
  const float w1 = in_square.left * a.right + (same ? b_right : b_left);
  const float w2 = same ? 0.f : b_right;
  // Beyond the line's end its last logit is repeated.
  const int first = min(a.first, side.low - 3), repeated = a.first - first;
  return {first,
          {repeated ? 0.f : w0, repeated ? (repeated == 1 ? w0 : 0.f) : w1,
           repeated ? w1 + w2 + (repeated == 1 ? 0.f : w0) : w2}};
}

#if BYTES == 2
typedef u16 Logit;

__device__ __forceinline__ float to_float(Logit x) {
  float y;
  asm("cvt.f32." TYPE " %0, %1;" : "=f"(y) : "h"(x));
  return y;
}

// Extremes of two neighbouring columns, each for itself. A minimum with NaN is NaN, a maximum
// with NaN is the other operand.
struct Pair {
  u32 lowest, highest;
};

__device__ __forceinline__ void widen(Pair& pair, u32 x) {
  asm("min.NaN." TYPE "x2 %0, %0, %1;" : "+r"(pair.lowest) : "r"(x));
  asm("max." TYPE "x2 %0, %0, %1;" : "+r"(pair.highest) : "r"(x));
}

__device__ __forceinline__ float2 extremes_of(const Pair& pair) {
  const float a = to_float((u16)pair.lowest), b = to_float((u16)(pair.lowest >> 16));
  const float c = to_float((u16)pair.highest), d = to_float((u16)(pair.highest >> 16));
  return {a != a || b != b ? a + b : fminf(a, b), fmaxf(c, d)};
}

struct Chunk {
  uint4 bits;
};

__device__ __forceinline__ Chunk load_chunk(const Logit* from) { return {*(const uint4*)from}; }

__device__ __forceinline__ void begin(Pair (&pairs)[CHUNK / 2], const Chunk& x) {
  pairs[0] = {x.bits.x, x.bits.x};
  pairs[1] = {x.bits.y, x.bits.y};
  pairs[2] = {x.bits.z, x.bits.z};
  pairs[3] = {x.bits.w, x.bits.w};
}

__device__ __forceinline__ void widen(Pair (&pairs)[CHUNK / 2], const Chunk& x) {
  widen(pairs[0], x.bits.x);
  widen(pairs[1], x.bits.y);
  widen(pairs[2], x.bits.z);
  widen(pairs[3], x.bits.w);
}
#else
typedef float Logit;

__device__ __forceinline__ float to_float(Logit x) { return x; }

struct Pair {
  float lowest, highest;
};

__device__ __forceinline__ void widen(Pair& pair, float x) {
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(pair.lowest) : "f"(x));
  pair.highest = fmaxf(pair.highest, x);
}

__device__ __forceinline__ float2 extremes_of(const Pair& pair) {
  return {pair.lowest, pair.highest};
}

struct Chunk {
  float4 left, right;
};

__device__ __forceinline__ Chunk load_chunk(const Logit* from) {
  return {((const float4*)from)[0], ((const float4*)from)[1]};
}

__device__ __forceinline__ void begin(Pair (&pairs)[CHUNK / 2], const Chunk& x) {
  pairs[0] = {x.left.x, x.left.x};
  pairs[1] = {x.left.z, x.left.z};
  pairs[2] = {x.right.x, x.right.x};
  pairs[3] = {x.right.z, x.right.z};
}

__device__ __forceinline__ void widen(Pair (&pairs)[CHUNK / 2], const Chunk& x) {
  widen(pairs[0], x.left.x);
  widen(pairs[0], x.left.y);
  widen(pairs[1], x.left.z);
  widen(pairs[1], x.left.w);
  widen(pairs[2], x.right.x);
  widen(pairs[2], x.right.y);
  widen(pairs[3], x.right.z);
  widen(pairs[3], x.right.w);
}
#endif

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

// Extremes of a lane's logits in rows `top` to `bottom`, two columns at a time.
__device__ __forceinline__ void scan(float2* out, const Logit* from, int top, int bottom,
                                     int low_w) {
  Pair pairs[CHUNK / 2];
  begin(pairs, load_chunk(from + top * low_w));
#pragma unroll 1
  for (int row = top; row <= bottom; row += BATCH) {
    Chunk chunks[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; ++i)
      chunks[i] = load_chunk(from + min(row + i, bottom) * low_w);
#pragma unroll
    for (int i = 0; i < BATCH; ++i) widen(pairs, chunks[i]);
  }
#pragma unroll
  for (int i = 0; i < CHUNK / 2; ++i) {
    const float2 x = extremes_of(pairs[i]);
    // NaN counts as the lowest.
    out[i] = {x.x == x.x ? x.x : -infinity(), x.y == x.y ? x.y : -infinity()};
  }
}

// How the rows of a band are blended.
struct Band {
  const Logit* logits;   // the first row that the band blends
  int low_w, lines;      // of the logits: columns, and rows from there on
  const float4* weights; // of each row, negative; and by how many logits the row before is higher
  u32 moves;             // a bit a row: whether it begins lower than the row before
  bool leaps;            // whether any begins lower by several logits
};

// Bits of 32 rows, the first row in the highest bit: whether the pixel is above the threshold, and
// the threshold plus and minus the offset.
struct Bits {
  u32 set, inner, outer;
};

// The pixels of N columns.
template <int N, bool MEASURES>
__device__ __forceinline__ void interpolate(Bits (&bits)[N], const int (&x)[N], const Band& band,
                                            const Side& across, float threshold, float offset) {
  Taps taps[N];
  const Logit* from[N];
  // Of each column three rows of logits, blended across, and the logits of the next row.
  float high[N], middle[N], deep[N];
  Logit next[N][3];
  auto blend = [](const Taps& t, const Logit (&l)[3]) {
    return t.weight[0] * to_float(l[0]) + t.weight[1] * to_float(l[1]) +
           t.weight[2] * to_float(l[2]);
  };
  int line = min(3, band.lines - 1);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    taps[n] = taps_of(x[n], across);
    from[n] = band.logits + taps[n].first;
    bits[n] = {0, 0, 0};
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
    Logit rows[3][3];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
#pragma unroll
      for (int row = 0; row < 3; ++row) rows[row][i] = from[n][row * band.low_w + i];
      next[n][i] = from[n][line * band.low_w + i];
    }
    high[n] = blend(taps[n], rows[0]);
    middle[n] = blend(taps[n], rows[1]);
    deep[n] = blend(taps[n], rows[2]);
  }
  auto advance = [&]() {
    line = min(line + 1, band.lines - 1);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      high[n] = middle[n];
      middle[n] = deep[n];
      deep[n] = blend(taps[n], next[n]);
#pragma unroll
      for (int i = 0; i < 3; ++i) next[n][i] = from[n][line * band.low_w + i];
    }
  };
  for (int row = 0;;) {
    const u32 later = band.moves & ~1u << row;  // rows that begin lower
    const int stop = later ? __ffs(later) - 1 : ROWS;
#pragma unroll 1
    for (; row < stop; ++row) {
      const float4 weights = band.weights[row];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        // The threshold minus the logit: its sign is the pixel.
        float less = fmaf(weights.x, high[n], threshold);
        less = fmaf(weights.y, middle[n], less);
        less = fmaf(weights.z, deep[n], less);
        bits[n].set = __funnelshift_l(__float_as_uint(less), bits[n].set, 1);
        if (MEASURES) {
          bits[n].inner = __funnelshift_l(__float_as_uint(less + offset), bits[n].inner, 1);
          bits[n].outer = __funnelshift_l(__float_as_uint(less - offset), bits[n].outer, 1);
        }
      }
    }
    if (row == ROWS) break;
    const int logits = band.leaps ? __float_as_int(band.weights[row].w) : 1;
#pragma unroll 1
    for (int i = 0; i < logits; ++i) advance();
  }
}

// Four source logits in a line, as PyTorch blends them, zero weights included.
struct AllTaps {
  int source[4];
  float weight[4];
};

__device__ __forceinline__ AllTaps all_taps_of(int target, const Side& side) {
  const Neighbours in_square = between(target, side.scale, side.inside);
  const Neighbours a = between(in_square.first, side.low_scale, side.low);
  const Neighbours b = between(in_square.second, side.low_scale, side.low);
  return {{a.first, a.second, b.first, b.second},
          {in_square.left * a.left, in_square.left * a.right, in_square.right * b.left,
           in_square.right * b.right}};
}

// The pixels of a column among whose logits are some that are not finite.
__device__ __noinline__ Bits interpolate_all(const Logit* logits, int x, int first_row,
                                             int last_row, Side down, Side across,
                                             float threshold, float offset) {
  const AllTaps columns = all_taps_of(x, across);
  Bits bits = {0, 0, 0};
#pragma unroll 1
  for (int i = 0; i < ROWS; ++i) {
    const AllTaps rows = all_taps_of(min(first_row + i, last_row), down);
    float blended[4];
#pragma unroll
    for (int column = 0; column < 4; ++column) {
      float products[4];
#pragma unroll
      for (int row = 0; row < 4; ++row)
        products[row] = rows.weight[row] * to_float(logits[rows.source[row] * across.low +
                                                           columns.source[column]]);
      blended[column] = columns.weight[column] * ((products[0] + products[1]) +
                                                  (products[2] + products[3]));
    }
    const float value = (blended[0] + blended[1]) + (blended[2] + blended[3]);
    bits.set = bits.set << 1 | (value > threshold);
    bits.inner = bits.inner << 1 | (value > threshold + offset);
    bits.outer = bits.outer << 1 | (value > threshold - offset);
  }
  return bits;
}

// Measures of a lane's columns.
struct Measures {
  int area, inner, outer, left, right;
  u32 rows;  // a bit a row: whether any pixel is set
};

// Where a warp stores pixels, and which of them are the image's.
struct Output {
  u8* masks;        // this mask's first row of the band, or null
  int* packed;      // this mask's word of the band in the first column, or null
  int width, bands;
  int rows;         // of the band
  int last;         // one past the last column of the piece
};

__device__ __forceinline__ u32 valid_rows(const Output& out) { return ALL >> (ROWS - out.rows); }

// The words of a strip's columns, a lane each.
__device__ __forceinline__ void store(const Output& out, int x, u32 word) {
  if (x >= out.last) return;
  if (out.packed) out.packed[(long long)x * out.bands] = (int)word;
  if (out.masks) {
    u8* to = out.masks + x;
#pragma unroll 4
    for (int row = 0; row < out.rows; ++row, to += out.width) *to = word >> row & 1;
  }
}

__device__ __forceinline__ void add(Measures& m, const Output& out, int x, const Bits& bits) {
  const u32 inside = x < out.last ? __brev(valid_rows(out)) : 0;
  const u32 set = __brev(bits.set & inside);
  m.area += __popc(set);
  m.inner += __popc(bits.inner & inside);
  m.outer += __popc(bits.outer & inside);
  if (set) {
    m.left = min(m.left, x);
    m.right = max(m.right, x);
    m.rows |= set;
  }
}

template <int N, bool MEASURES>
__device__ __forceinline__ void finish_strips(Measures& m, const int (&x)[N], const Band& band,
                                              const Side& across, float threshold, float offset,
                                              const Output& out) {
  Bits bits[N];
  int inside[N];
#pragma unroll
  for (int n = 0; n < N; ++n) inside[n] = min(x[n], out.last - 1);
  interpolate<N, MEASURES>(bits, inside, band, across, threshold, offset);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (MEASURES) add(m, out, x[n], bits[n]);
    if (out.packed || out.masks) store(out, x[n], __brev(bits[n].set) & valid_rows(out));
  }
}

// The strips of those bits, two at a time, as they share the weights of rows. `column` is the
// lane's in the first strip.
template <bool MEASURES>
__device__ __forceinline__ void finish(Measures& m, u32 strips, int column, const Band& band,
                                       const Side& across, float threshold, float offset,
                                       const Output& out) {
  auto take = [&]() {
    const int strip = __ffs(strips) - 1;
    strips &= strips - 1;
    return column + strip * COLUMNS;
  };
  while (strips & (strips - 1)) {
    const int a = take(), b = take();
    const int x[2] = {a, b};
    finish_strips<2, MEASURES>(m, x, band, across, threshold, offset, out);
  }
  if (strips) {
    const int x[1] = {take()};
    finish_strips<1, MEASURES>(m, x, band, across, threshold, offset, out);
  }
}

extern "C" __global__ void __launch_bounds__(LANES * WARPS, 8) tiles(
    const Logit* __restrict__ low_res,  // (count, low_h, low_w)
    u8* __restrict__ masks,             // (count, height, width), or null
    int* __restrict__ packed,           // (count, width, bands), or null
    int* measures,                      // (count, 7), zeros, or null
    int* finished,                      // (count): blocks of each mask; zeros
    const u8* __restrict__ wanted,      // (count), or null
    int low_h, int low_w, int inside_h, int inside_w, int height, int width,
    int span,                           // strips of a piece
    int blocks,                         // of a mask
    float low_scale_y, float low_scale_x, float scale_y, float scale_x,
    float threshold, float offset,
    float below,                        // blends of lower logits are below all thresholds
    float above) {
  extern __shared__ __align__(16) u8 shared[];
  const int lane = threadIdx.x % LANES;
  // By a shuffle, so that the compiler knows that the lanes of a warp agree.
  const int warp = __shfl_sync(ALL, threadIdx.x / LANES, 0);
  const int mask = blockIdx.x / blocks, task = blockIdx.x % blocks * WARPS + warp;
  if (wanted && !wanted[mask]) return;
  int* totals = (int*)(shared + TOTALS_AT);
  if (measures) {
    if (threadIdx.x < 7) totals[threadIdx.x] = 0;
    __syncthreads();
  }

  const Side down = {inside_h, low_h, scale_y, low_scale_y};
  const Side across = {inside_w, low_w, scale_x, low_scale_x};
  const int bands = (height + ROWS - 1) / ROWS, strips = (width + COLUMNS - 1) / COLUMNS;
  const int piece = task / bands, number = task % bands, first = piece * span * COLUMNS;
  if (first < strips * COLUMNS) {
    float4* weights = (float4*)(shared + warp * WARP_BYTES);
    float2* pairs = (float2*)(shared + warp * WARP_BYTES + ROWS_BYTES);
    const Logit* logits = low_res + (long long)mask * low_h * low_w;
    const int first_row = number * ROWS;
    Output out = {nullptr, nullptr, width, bands, min(ROWS, height - first_row),
                  min(first + span * COLUMNS, width)};
    if (masks) out.masks = masks + ((long long)mask * height + first_row) * width;
    if (packed) out.packed = packed + (long long)mask * width * bands + number;

    const Taps row = taps_of(min(first_row + lane, height - 1), down);
    const int before = __shfl_up_sync(ALL, row.first, 1);
    const int moved = lane ? row.first - before : 0;
    weights[lane] = {-row.weight[0], -row.weight[1], -row.weight[2], __int_as_float(moved)};
    const int top = __shfl_sync(ALL, row.first, 0);
    const int bottom = __shfl_sync(ALL, row.first, LANES - 1) + 2;
    const Band band = {logits + top * low_w, low_w, low_h - top, weights,
                       __ballot_sync(ALL, moved > 0), __any_sync(ALL, moved > 1) != 0};

    const int last = out.last - 1;
    const int begin = taps_of(first, across).first / CHUNK * CHUNK;
    const int chunk = begin + lane * CHUNK;
    if (chunk < taps_of(last, across).first + 3)
      scan(pairs + lane * (CHUNK / 2), logits + chunk, top, bottom, low_w);
    __syncwarp();

    Measures m = {0, 0, 0, FAR, -1, 0};
    for (int group = first; group <= last; group += LANES * COLUMNS) {
      const int x = group + lane * COLUMNS, x_end = min(x + COLUMNS - 1, last);
      float lowest = infinity(), highest = -infinity();
      if (x <= last) {
        const int from = taps_of(x, across).first, to = taps_of(x_end, across).first + 2;
#pragma unroll 2
        for (int i = (from - begin) / 2; i <= (to - begin) / 2; ++i) {
          lowest = fminf(lowest, pairs[i].x);
          highest = fmaxf(highest, pairs[i].y);
        }
      }
      const bool odd = lowest == -infinity() || highest == infinity();
      // Blends lie between the extremes, unless infinity makes them NaN.
      const bool straddles = highest > below && (lowest < above || highest == infinity());
      const bool is_full = highest > below && !straddles;
      const u32 full = __ballot_sync(ALL, is_full);
      if (is_full) {
        const int area = (x_end - x + 1) * out.rows;
        m.area += area;
        m.inner += area;
        m.outer += area;
        m.left = min(m.left, x);
        m.right = max(m.right, x_end);
        m.rows |= valid_rows(out);
      }
      const int column = group + lane;
      if (masks || packed)
        for (u32 left = __ballot_sync(ALL, x <= last && !straddles); left; left &= left - 1) {
          const int strip = __ffs(left) - 1;
          store(out, column + strip * COLUMNS, full >> strip & 1 ? valid_rows(out) : 0);
        }
#pragma unroll 1
      for (u32 left = __ballot_sync(ALL, straddles && odd); left; left &= left - 1) {
        const int x = column + (__ffs(left) - 1) * COLUMNS;
        const Bits bits = interpolate_all(logits, min(x, last), first_row, height - 1, down,
                                          across, threshold, offset);
        add(m, out, x, bits);
        store(out, x, __brev(bits.set) & valid_rows(out));
      }
      const u32 to_blend = __ballot_sync(ALL, straddles && !odd);
      if (measures)
        finish<true>(m, to_blend, column, band, across, threshold, offset, out);
      else
        finish<false>(m, to_blend, column, band, across, threshold, offset, out);
    }

    if (measures) {
      const int area = __reduce_add_sync(ALL, m.area), inner = __reduce_add_sync(ALL, m.inner);
      const int outer = __reduce_add_sync(ALL, m.outer);
      const int left = __reduce_min_sync(ALL, m.left), right = __reduce_max_sync(ALL, m.right);
      const u32 rows = __reduce_or_sync(ALL, m.rows);
      if (lane == 0 && (inner > 0 || outer > 0)) {
        atomicAdd(totals, area);
        atomicAdd(totals + 1, inner);
        atomicAdd(totals + 2, outer);
        if (area > 0) {
          // Sides of the box are stored so that a larger number wins, and zero is no pixel.
          atomicMax(totals + 3, FAR - left);
          atomicMax(totals + 4, FAR - (first_row + __ffs(rows) - 1));
          atomicMax(totals + 5, right + 1);
          atomicMax(totals + 6, first_row + ROWS - __clz(rows));
        }
      }
    }
  }
  if (!measures) return;

  __syncthreads();
  if (threadIdx.x > 0) return;
  int* table = measures + 7ll * mask;
  if (totals[1] > 0 || totals[2] > 0) {
    for (int i = 0; i < 3; ++i) atomicAdd(table + i, totals[i]);
    for (int i = 3; i < 7; ++i) atomicMax(table + i, totals[i]);
  }
  __threadfence();
  if (atomicAdd(finished + mask, 1) < blocks - 1) return;
  // The last block of a mask turns the sides of its box into coordinates.
  __threadfence();
  if (atomicAdd(table, 0) == 0) return;
  for (int i = 3; i < 5; ++i) table[i] = FAR - atomicAdd(table + i, 0);
  for (int i = 5; i < 7; ++i) table[i] = atomicAdd(table + i, 0) - 1;
}
