// What the kernels for Hopper GPUs share: barriers, the copy engine, and products of warpgroups.
//
// A program that includes it defines TYPE, the operands' type in the tensor cores' names.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// ---- Barriers in shared memory ----------------------------------------------------------------

__device__ __forceinline__ void set_barrier(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Arrive, and wait for so many bytes of the copy engine.
__device__ __forceinline__ void expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Until the barrier's phase of this parity is complete.
__device__ __forceinline__ void wait_for(u32 barrier, u32 parity) {
  asm volatile("{\n.reg .pred p;\nagain:\n"
               "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
               "@!p bra again;\n}" ::"r"(barrier), "r"(parity) : "memory");
}

__device__ __forceinline__ void synchronize_warpgroup(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
}

// ---- The copy engine --------------------------------------------------------------------------

// A description of a tensor for it, which the host makes.
struct __align__(64) TensorMap {
  unsigned char bytes[128];
};

// Bring a box, whose first place is at these coordinates; what is beyond the edge is zeros.
__device__ __forceinline__ void bring(u32 to, const TensorMap* map, u32 barrier, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%3, %4}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y)
               : "memory");
}

__device__ __forceinline__ void bring(u32 to, const TensorMap* map, u32 barrier, int x, int y,
                                      int z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y),
               "r"(z) : "memory");
}

__device__ __forceinline__ void bring(u32 to, const TensorMap* map, u32 barrier, int x, int y,
                                      int z, int t) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(x),
               "r"(y), "r"(z), "r"(t) : "memory");
}

__device__ __forceinline__ void bring(u32 to, const TensorMap* map, u32 barrier, int x, int y,
                                      int z, int t, int u) {
  asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(x),
               "r"(y), "r"(z), "r"(t), "r"(u) : "memory");
}

// Threads' writes to shared memory become visible to the copy engine and the tensor cores.
__device__ __forceinline__ void publish() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- Matrices in shared memory ----------------------------------------------------------------

// They lie in panels whose rows are a power of two wide, and whose chunks of 16 bytes are permuted
// from row to row (a swizzle): as the copy engine puts them, and the tensor cores take them.

// A chunk of a panel's row, in bytes from the panel's begin.
__device__ __forceinline__ int swizzled(int row, int chunk, int row_bytes) {
  const int chunks = row_bytes / 16;
  return row * row_bytes + ((chunk ^ row / (8 / chunks)) & chunks - 1) * 16;
}

// Where the tensor cores find a panel whose rows have so many bytes; for both sides, as a panel is
// one group wide.
__device__ __forceinline__ u64 panel(u32 address, int row_bytes) {
  const u64 swizzle = row_bytes == 128 ? 1 : 3;
  return (u64)(address >> 4) | (u64)1 << 16 | (u64)(8 * row_bytes >> 4) << 32 | swizzle << 62;
}

// The same of panels of 128 bytes a row, `leading` bytes from one to the next. That counts only
// where rows are summed over.
__device__ __forceinline__ u64 matrix(u32 address, int leading) {
  return (u64)(address >> 4) | (u64)(leading >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// Four matrices of 8 x 8 halves, as the first operand of a product; a lane has a row's address.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}

// ---- Products of a warpgroup ------------------------------------------------------------------

__device__ __forceinline__ void fence_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until all products but those of the last PENDING groups are done. Then `settle` what holds them,
// which was not to be read or moved.
template <int PENDING>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

template <int TILES>
__device__ __forceinline__ void settle(float (&c)[TILES][4]) {
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile)
    asm volatile("" : "+f"(c[tile][0]), "+f"(c[tile][1]), "+f"(c[tile][2]), "+f"(c[tile][3]));
}

// Operands of an instruction that holds a warpgroup's sums: tiles of 8 columns, four numbers each.
#define FLOATS(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define FLOATS_4(c, i) FLOATS(c, i), FLOATS(c, i + 1), FLOATS(c, i + 2), FLOATS(c, i + 3)
#define FLOATS_8(c, i) FLOATS_4(c, i), FLOATS_4(c, i + 4)
#define NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NAMES_24                                                                               \
  NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23"
#define NAMES_28 NAMES_24 ", %24, %25, %26, %27"
#define NAMES_32 NAMES_28 ", %28, %29, %30, %31"
#define NAMES_48                                                                               \
  NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64                                                                               \
  NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_128                                                                              \
  NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, "     \
  "%79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, " \
  "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "    \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "       \
  "%126, %127"

// c = a * b, or c += a * b where it ADDS: (64, 8 * TILES) of (64, 16) and (16, 8 * TILES), by a
// warpgroup. TRANSPOSED: the rows of b in memory are the summed side.
template <bool ADDS, bool TRANSPOSED, int TILES>
__device__ __forceinline__ void multiply(float (&c)[TILES][4], const u32 (&a)[4], u64 b) {
  static_assert(TILES == 2 || TILES == 6 || TILES == 7 || TILES == 8 || TILES == 12 ||
                    TILES == 32, "not a width of a product");
#define OPERANDS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ADDS), "n"(TRANSPOSED)
#define CODE(N, NAMES, A, B, P, T)                                                             \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\nwgmma.mma_async.sync.aligned.m64n" N "k16.f32." \
  TYPE "." TYPE " {" NAMES "}, {" A "}, " B ", p, 1, 1, " T ";\n}"
  if constexpr (TILES == 2) {
    asm volatile(CODE("16", NAMES_8, "%8, %9, %10, %11", "%12", "%13", "%14")
                 : FLOATS(c, 0), FLOATS(c, 1) : OPERANDS);
  } else if constexpr (TILES == 6) {
    asm volatile(CODE("48", NAMES_24, "%24, %25, %26, %27", "%28", "%29", "%30")
                 : FLOATS_4(c, 0), FLOATS(c, 4), FLOATS(c, 5) : OPERANDS);
  } else if constexpr (TILES == 7) {
    asm volatile(CODE("56", NAMES_28, "%28, %29, %30, %31", "%32", "%33", "%34")
                 : FLOATS_4(c, 0), FLOATS(c, 4), FLOATS(c, 5), FLOATS(c, 6) : OPERANDS);
  } else if constexpr (TILES == 8) {
    asm volatile(CODE("64", NAMES_32, "%32, %33, %34, %35", "%36", "%37", "%38")
                 : FLOATS_8(c, 0) : OPERANDS);
  } else if constexpr (TILES == 12) {
    asm volatile(CODE("96", NAMES_48, "%48, %49, %50, %51", "%52", "%53", "%54")
                 : FLOATS_8(c, 0), FLOATS_4(c, 8) : OPERANDS);
  } else {
    asm volatile(CODE("256", NAMES_128, "%128, %129, %130, %131", "%132", "%133", "%134")
                 : FLOATS_8(c, 0), FLOATS_8(c, 8), FLOATS_8(c, 16), FLOATS_8(c, 24) : OPERANDS);
  }
#undef OPERANDS
#undef CODE
}

// ---- Arithmetic -------------------------------------------------------------------------------

__device__ __forceinline__ u32 pack(float low, float high) {
  u32 both;
  asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

__device__ __forceinline__ float2 unpack_bf16(u32 both) {
  return {__int_as_float(both << 16), __int_as_float(both & 0xffff0000)};
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float max_of_4_lanes(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float sum_of_4_lanes(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}
