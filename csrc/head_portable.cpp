// Any processor: the floor that is correct everywhere.
#include <cmath>
#include <cstring>

#include "head_dot.hpp"

namespace ipfast {
namespace portable {

#include "scalar.hpp"
#include "vector_portable.hpp"
#include "head_tiles.hpp"
#include "head_kernel.hpp"

}  // namespace portable

HeadKernels head_kernels_portable() { return portable::head_kernels(); }

}  // namespace ipfast
