// x86-64 with AVX-512 F, BW, DQ and VL.
#include <cmath>
#include <cstring>

#include "head_dot.hpp"
#include "instruction_set.hpp"

#if IPFAST_X86_VECTORS
#include <immintrin.h>

IPFAST_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

namespace ipfast {
namespace avx512 {

#include "scalar.hpp"
#include "vector_avx512.hpp"
#include "head_tiles.hpp"
#include "head_kernel.hpp"

}  // namespace avx512
}  // namespace ipfast

IPFAST_TARGET_END

namespace ipfast {
HeadKernels head_kernels_avx512() { return avx512::head_kernels(); }
}  // namespace ipfast
#endif
