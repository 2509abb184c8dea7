// AVX-512 vectors. Included inside the namespace of the instruction set, under its target pragma.

struct VectorF32 {
    using T = float;
    static constexpr int lanes = 16;
    static constexpr int columns = 5;         // 4 rows × 5 columns = 20 accumulators of 32 registers
    static constexpr int stream_rows = 8;     // 8 rows × 3 columns = 24: the packed head passes through the first-level cache half as
    static constexpr int stream_columns = 3;  // often as with 4 rows, which leaves its ports to the rows that come from memory
    __m512 v;

    inline VectorF32 kept() const { auto r = v; asm("" : "+v"(r)); return {r}; }
    static inline VectorF32 set(float x) { return {_mm512_set1_ps(x)}; }
    static inline VectorF32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static inline VectorF32 load(const float* p, int count) {
        return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), p)};
    }
    inline void store(float* p) const { _mm512_storeu_ps(p, v); }
    static inline VectorF32 add(VectorF32 a, VectorF32 b) { return {_mm512_add_ps(a.v, b.v)}; }
    static inline VectorF32 sub(VectorF32 a, VectorF32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
    static inline VectorF32 mul(VectorF32 a, VectorF32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
    static inline VectorF32 div(VectorF32 a, VectorF32 b) { return {_mm512_div_ps(a.v, b.v)}; }
    static inline VectorF32 max(VectorF32 a, VectorF32 b) { return {_mm512_max_ps(a.v, b.v)}; }
    static inline VectorF32 fma(VectorF32 a, VectorF32 b, VectorF32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
    static inline VectorF32 if_negative(VectorF32 x, VectorF32 a, VectorF32 b) {
        return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LT_OQ), b.v, a.v)};
    }
    static inline VectorF32 abs(VectorF32 x) { return {_mm512_abs_ps(x.v)}; }
    static inline VectorF32 exp(VectorF32 x) {
        // max(constant, x) returns x when x is NaN: a NaN logit stays NaN. Below −104 the result is 0 in float.
        const __m512 c = _mm512_min_ps(_mm512_set1_ps(89.f), _mm512_max_ps(_mm512_set1_ps(-104.f), x.v));
        const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(c, _mm512_set1_ps(kLog2E)), 0);
        __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kLn2High), c);
        r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kLn2Low), r);
        __m512 p = _mm512_set1_ps(kExp[0]);
        for (int k = 1; k < 6; ++k) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExp[k]));
        p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.f)));
        return {_mm512_scalef_ps(p, n)};
    }
    static inline void sum4(VectorF32 a, VectorF32 b, VectorF32 c, VectorF32 d, float* out) {
        const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
        const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
        const __m512d abd = _mm512_castps_pd(ab), cdd = _mm512_castps_pd(cd);
        const __m512 s = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(abd, cdd)),
                                       _mm512_castpd_ps(_mm512_unpackhi_pd(abd, cdd)));
        const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
    }
};

struct VectorF64 {
    using T = double;
    static constexpr int lanes = 8;
    static constexpr int columns = 5;
    static constexpr int stream_rows = 8, stream_columns = 3;
    __m512d v;

    inline VectorF64 kept() const { auto r = v; asm("" : "+v"(r)); return {r}; }
    static inline VectorF64 set(double x) { return {_mm512_set1_pd(x)}; }
    static inline VectorF64 load(const double* p) { return {_mm512_loadu_pd(p)}; }
    static inline VectorF64 load(const double* p, int count) {
        return {_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1u), p)};
    }
    inline void store(double* p) const { _mm512_storeu_pd(p, v); }
    static inline VectorF64 add(VectorF64 a, VectorF64 b) { return {_mm512_add_pd(a.v, b.v)}; }
    static inline VectorF64 sub(VectorF64 a, VectorF64 b) { return {_mm512_sub_pd(a.v, b.v)}; }
    static inline VectorF64 mul(VectorF64 a, VectorF64 b) { return {_mm512_mul_pd(a.v, b.v)}; }
    static inline VectorF64 div(VectorF64 a, VectorF64 b) { return {_mm512_div_pd(a.v, b.v)}; }
    static inline VectorF64 max(VectorF64 a, VectorF64 b) { return {_mm512_max_pd(a.v, b.v)}; }
    static inline VectorF64 fma(VectorF64 a, VectorF64 b, VectorF64 c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
    static inline VectorF64 if_negative(VectorF64 x, VectorF64 a, VectorF64 b) {
        return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(x.v, _mm512_setzero_pd(), _CMP_LT_OQ), b.v, a.v)};
    }
    static inline VectorF64 abs(VectorF64 x) { return {_mm512_abs_pd(x.v)}; }
    static inline VectorF64 exp(VectorF64 x) { return exp_by_lane(x); }
    static inline void sum4(VectorF64 a, VectorF64 b, VectorF64 c, VectorF64 d, double* out) {
        const __m512d ab = _mm512_add_pd(_mm512_unpacklo_pd(a.v, b.v), _mm512_unpackhi_pd(a.v, b.v));
        const __m512d cd = _mm512_add_pd(_mm512_unpacklo_pd(c.v, d.v), _mm512_unpackhi_pd(c.v, d.v));
        const __m256d h = _mm256_add_pd(_mm512_castpd512_pd256(ab), _mm512_extractf64x4_pd(ab, 1));
        const __m256d k = _mm256_add_pd(_mm512_castpd512_pd256(cd), _mm512_extractf64x4_pd(cd, 1));
        _mm_storeu_pd(out, _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1)));
        _mm_storeu_pd(out + 2, _mm_add_pd(_mm256_castpd256_pd128(k), _mm256_extractf128_pd(k, 1)));
    }
};

static inline void widen_f16(const uint16_t* source, float* target, int64_t count) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        _mm512_storeu_ps(target + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i))));
    for (; i < count; ++i) target[i] = half_to_float(source[i]);
}
