// Any processor: the floor that is correct everywhere.
#include <cmath>
#include <cstring>

#include "head_dot.hpp"

namespace ipfast {
namespace portable {

#include "scalar.hpp"
#include "vector_portable.hpp"
#include "head_kernel.hpp"

}  // namespace portable

HeadKernels head_kernels_portable() { return {{portable::VectorF32::lanes, portable::VectorF32::columns}, {portable::VectorF64::lanes, portable::VectorF64::columns}, &portable::head_range<portable::VectorF32>, &portable::head_range<portable::VectorF64>}; }

}  // namespace ipfast
