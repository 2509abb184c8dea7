// A channel-wise affine function and its derivative in one pass over memory. Meaning: ipfast/ops/affine_tangent.py.
#pragma once

#include <cstdint>

namespace ipfast {

template <class T>
struct AffineTangent {
    int64_t planes;    // B·C, one channel of one sample each
    int64_t channels;  // C
    int64_t inner;     // positions of a plane
    const T* x;        // [planes, inner]
    const T* dx;       // the same, or nullptr: x does not move
    const T* scale;    // a [C]
    const T* shift;    // c [C]
    const T* dscale;   // ȧ [C]
    const T* dshift;   // ċ [C]
    T* y;              // a x + c
    T* dy;             // a ẋ + ȧ x + ċ
};

template <class T>
void affine_tangent(const AffineTangent<T>& arguments, int threads);

}  // namespace ipfast
