// x86-64 with AVX2, FMA and F16C.
#include <cmath>
#include <cstring>

#include "head_dot.hpp"
#include "instruction_set.hpp"

#if IPFAST_X86_VECTORS
#include <immintrin.h>

IPFAST_TARGET_BEGIN("avx2,fma,f16c")

namespace ipfast {
namespace avx2 {

#include "scalar.hpp"
#include "vector_avx2.hpp"
#include "head_tiles.hpp"
#include "head_kernel.hpp"

}  // namespace avx2
}  // namespace ipfast

IPFAST_TARGET_END

namespace ipfast {
HeadKernels head_kernels_avx2() { return avx2::head_kernels(); }
}  // namespace ipfast
#endif
