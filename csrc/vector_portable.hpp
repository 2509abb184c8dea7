// The portable vector: a plain array that any C++17 compiler can unroll. Included inside the namespace of an instruction set.

template <class Scalar, int Lanes>
struct PortableVector {
    using T = Scalar;
    static constexpr int lanes = Lanes;
    static constexpr int columns = 2;  // of the register tile: 4 rows × 2 columns leave room in 16 registers
    static constexpr int stream_rows = 4, stream_columns = 2;
    T v[Lanes];

    inline PortableVector kept() const { return *this; }
    static inline PortableVector set(T x) {
        PortableVector r;
        for (int i = 0; i < Lanes; ++i) r.v[i] = x;
        return r;
    }
    static inline PortableVector load(const T* p) {
        PortableVector r;
        for (int i = 0; i < Lanes; ++i) r.v[i] = p[i];
        return r;
    }
    static inline PortableVector load(const T* p, int count) {
        PortableVector r;
        for (int i = 0; i < Lanes; ++i) r.v[i] = i < count ? p[i] : T(0);
        return r;
    }
    inline void store(T* p) const {
        for (int i = 0; i < Lanes; ++i) p[i] = v[i];
    }
#define IPFAST_LANEWISE(name, expression)                                             \
    static inline PortableVector name(const PortableVector& a, const PortableVector& b) { \
        PortableVector r;                                                             \
        for (int i = 0; i < Lanes; ++i) r.v[i] = expression;                          \
        return r;                                                                     \
    }
    IPFAST_LANEWISE(add, a.v[i] + b.v[i])
    IPFAST_LANEWISE(sub, a.v[i] - b.v[i])
    IPFAST_LANEWISE(mul, a.v[i] * b.v[i])
    IPFAST_LANEWISE(div, a.v[i] / b.v[i])
    IPFAST_LANEWISE(max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])  // of a NaN operand: b
#undef IPFAST_LANEWISE
    static inline PortableVector fma(const PortableVector& a, const PortableVector& b, const PortableVector& c) {
        PortableVector r;
        for (int i = 0; i < Lanes; ++i) r.v[i] = a.v[i] * b.v[i] + c.v[i];
        return r;
    }
    // lanewise sign(x) < 0 ? a : b
    static inline PortableVector if_negative(const PortableVector& x, const PortableVector& a, const PortableVector& b) {
        PortableVector r;
        for (int i = 0; i < Lanes; ++i) r.v[i] = x.v[i] < T(0) ? a.v[i] : b.v[i];
        return r;
    }
    static inline PortableVector abs(const PortableVector& x) {
        PortableVector r;
        for (int i = 0; i < Lanes; ++i) r.v[i] = x.v[i] < T(0) ? -x.v[i] : x.v[i];
        return r;
    }
    static inline PortableVector exp(const PortableVector& x) {
        PortableVector r;
        for (int i = 0; i < Lanes; ++i) r.v[i] = std::exp(x.v[i]);
        return r;
    }
    // out[r] = sum of the lanes of a_r
    static inline void sum4(const PortableVector& a0, const PortableVector& a1, const PortableVector& a2,
                            const PortableVector& a3, T* out) {
        const PortableVector* a[4] = {&a0, &a1, &a2, &a3};
        for (int r = 0; r < 4; ++r) {
            T part[Lanes];
            for (int i = 0; i < Lanes; ++i) part[i] = a[r]->v[i];
            for (int half = Lanes / 2; half > 0; half /= 2)
                for (int i = 0; i < half; ++i) part[i] += part[i + half];
            out[r] = part[0];
        }
    }
};

using VectorF32 = PortableVector<float, 4>;
using VectorF64 = PortableVector<double, 2>;

static inline void widen_f16(const uint16_t* source, float* target, int64_t count) {
    for (int64_t i = 0; i < count; ++i) target[i] = half_to_float(source[i]);
}
