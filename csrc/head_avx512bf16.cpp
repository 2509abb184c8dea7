// x86-64 with AVX-512 F, BW, DQ, VL and BF16: computes as AVX-512, and products of bf16 numbers two at a time.
#include <cmath>
#include <cstring>

#include "head_dot.hpp"
#include "instruction_set.hpp"

#if IPFAST_X86_VECTORS
#include <immintrin.h>

IPFAST_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")

namespace ipfast {
namespace avx512bf16 {

#include "scalar.hpp"
#include "vector_avx512.hpp"
#include "pairs_avx512bf16.hpp"
#include "head_tiles.hpp"
#include "head_kernel.hpp"

}  // namespace avx512bf16
}  // namespace ipfast

IPFAST_TARGET_END

namespace ipfast {
HeadKernels head_kernels_avx512bf16() {
    HeadKernels kernels = head_kernels_avx512();
    kernels.bf16 = &avx512bf16::head_range<avx512bf16::VectorF32, avx512bf16::Pairs>;
    kernels.bf16_elements = &avx512bf16::Pairs::elements;
    return kernels;
}
}  // namespace ipfast
#endif
