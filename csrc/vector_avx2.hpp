// AVX2 + FMA + F16C vectors. Included inside the namespace of the instruction set, under its target pragma.

static inline __m256i first_lanes_32(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline __m256i first_lanes_64(int count) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}

struct VectorF32 {
    using T = float;
    static constexpr int lanes = 8;
    static constexpr int columns = 3;  // 4 rows × 3 columns = 12 accumulators of 16 registers
    static constexpr int stream_rows = 4, stream_columns = 3;
    __m256 v;

    inline VectorF32 kept() const { auto r = v; asm("" : "+x"(r)); return {r}; }
    static inline VectorF32 set(float x) { return {_mm256_set1_ps(x)}; }
    static inline VectorF32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static inline VectorF32 load(const float* p, int count) { return {_mm256_maskload_ps(p, first_lanes_32(count))}; }
    inline void store(float* p) const { _mm256_storeu_ps(p, v); }
    static inline VectorF32 add(VectorF32 a, VectorF32 b) { return {_mm256_add_ps(a.v, b.v)}; }
    static inline VectorF32 sub(VectorF32 a, VectorF32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
    static inline VectorF32 mul(VectorF32 a, VectorF32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
    static inline VectorF32 div(VectorF32 a, VectorF32 b) { return {_mm256_div_ps(a.v, b.v)}; }
    static inline VectorF32 max(VectorF32 a, VectorF32 b) { return {_mm256_max_ps(a.v, b.v)}; }
    static inline VectorF32 fma(VectorF32 a, VectorF32 b, VectorF32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
    static inline VectorF32 if_negative(VectorF32 x, VectorF32 a, VectorF32 b) {
        return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_LT_OQ))};
    }
    static inline VectorF32 abs(VectorF32 x) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.f), x.v)}; }
    static inline VectorF32 exp(VectorF32 x) {
        // max(constant, x) returns x when x is NaN: a NaN logit stays NaN.
        const __m256 c = _mm256_min_ps(_mm256_set1_ps(88.f), _mm256_max_ps(_mm256_set1_ps(-104.f), x.v));
        const __m256 n = _mm256_round_ps(_mm256_mul_ps(c, _mm256_set1_ps(kLog2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kLn2High), c);
        r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kLn2Low), r);
        __m256 p = _mm256_set1_ps(kExp[0]);
        for (int k = 1; k < 6; ++k) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExp[k]));
        p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.f)));
        // 2^n in two factors, so that results below the smallest normal number come out right.
        const __m256i i = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(i, 1);
        const __m256i bias = _mm256_set1_epi32(127);
        const __m256 f = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
        const __m256 g = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(i, half), bias), 23));
        const __m256 result = _mm256_mul_ps(_mm256_mul_ps(p, f), g);
        return {_mm256_blendv_ps(result, x.v, _mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q))};
    }
    static inline void sum4(VectorF32 a, VectorF32 b, VectorF32 c, VectorF32 d, float* out) {
        const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
    }
};

struct VectorF64 {
    using T = double;
    static constexpr int lanes = 4;
    static constexpr int columns = 3;
    static constexpr int stream_rows = 4, stream_columns = 3;
    __m256d v;

    inline VectorF64 kept() const { auto r = v; asm("" : "+x"(r)); return {r}; }
    static inline VectorF64 set(double x) { return {_mm256_set1_pd(x)}; }
    static inline VectorF64 load(const double* p) { return {_mm256_loadu_pd(p)}; }
    static inline VectorF64 load(const double* p, int count) { return {_mm256_maskload_pd(p, first_lanes_64(count))}; }
    inline void store(double* p) const { _mm256_storeu_pd(p, v); }
    static inline VectorF64 add(VectorF64 a, VectorF64 b) { return {_mm256_add_pd(a.v, b.v)}; }
    static inline VectorF64 sub(VectorF64 a, VectorF64 b) { return {_mm256_sub_pd(a.v, b.v)}; }
    static inline VectorF64 mul(VectorF64 a, VectorF64 b) { return {_mm256_mul_pd(a.v, b.v)}; }
    static inline VectorF64 div(VectorF64 a, VectorF64 b) { return {_mm256_div_pd(a.v, b.v)}; }
    static inline VectorF64 max(VectorF64 a, VectorF64 b) { return {_mm256_max_pd(a.v, b.v)}; }
    static inline VectorF64 fma(VectorF64 a, VectorF64 b, VectorF64 c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
    static inline VectorF64 if_negative(VectorF64 x, VectorF64 a, VectorF64 b) {
        return {_mm256_blendv_pd(b.v, a.v, _mm256_cmp_pd(x.v, _mm256_setzero_pd(), _CMP_LT_OQ))};
    }
    static inline VectorF64 abs(VectorF64 x) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), x.v)}; }
    static inline VectorF64 exp(VectorF64 x) { return exp_by_lane(x); }
    static inline void sum4(VectorF64 a, VectorF64 b, VectorF64 c, VectorF64 d, double* out) {
        const __m256d ab = _mm256_hadd_pd(a.v, b.v), cd = _mm256_hadd_pd(c.v, d.v);
        _mm_storeu_pd(out, _mm_add_pd(_mm256_castpd256_pd128(ab), _mm256_extractf128_pd(ab, 1)));
        _mm_storeu_pd(out + 2, _mm_add_pd(_mm256_castpd256_pd128(cd), _mm256_extractf128_pd(cd, 1)));
    }
};

static inline void widen_f16(const uint16_t* source, float* target, int64_t count) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(target + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i))));
    for (; i < count; ++i) target[i] = half_to_float(source[i]);
}
