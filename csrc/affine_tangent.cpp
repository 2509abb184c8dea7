#include "affine_tangent.hpp"

#include <algorithm>

#include "parallel.hpp"

namespace ipfast {

namespace {
constexpr int64_t kGrainElements = 1 << 16;  // of a range that a thread takes at once
}

template <class T>
void affine_tangent(const AffineTangent<T>& in, int threads) {
    const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(in.inner, 1));
    parallel_rows(in.planes, grain, threads, [&](int64_t begin, int64_t end) {
        for (int64_t plane = begin; plane < end; ++plane) {
            const int64_t channel = plane % in.channels, offset = plane * in.inner;
            const T a = in.scale[channel], c = in.shift[channel], da = in.dscale[channel], dc = in.dshift[channel];
            const T* const x = in.x + offset;
            T *const y = in.y + offset, *const dy = in.dy + offset;
            if (in.dx) {
                const T* const dx = in.dx + offset;
                for (int64_t i = 0; i < in.inner; ++i) {
                    y[i] = a * x[i] + c;
                    dy[i] = a * dx[i] + (da * x[i] + dc);
                }
            } else {
                for (int64_t i = 0; i < in.inner; ++i) {
                    y[i] = a * x[i] + c;
                    dy[i] = da * x[i] + dc;
                }
            }
        }
    });
}

template void affine_tangent<float>(const AffineTangent<float>&, int);
template void affine_tangent<double>(const AffineTangent<double>&, int);

}  // namespace ipfast
