// Scalars behind the vectors: constants of the exponential, half-precision numbers. Included inside an instruction set's namespace.

static constexpr float kLog2E = 1.44269504f;
// ln 2 in two parts: n·kLn2High is exact for |n| < 2^9.
static constexpr float kLn2High = 0.693359375f;
static constexpr float kLn2Low = -2.12194440e-4f;
// e^r = 1 + r + r²·P(r) on |r| ≤ ln2/2, highest power first (minimax; relative error below 1e-7).
static constexpr float kExp[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

template <class V>
static inline V exp_by_lane(V x) {
    typename V::T lane[V::lanes];
    x.store(lane);
    for (int i = 0; i < V::lanes; ++i) lane[i] = ::exp(lane[i]);
    return V::load(lane);
}

static inline float float_from_bits(uint32_t bits) {
    float value;
    ::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 0x1fu, fraction = half & 0x3ffu;
    if (exponent == 0) return float_from_bits(sign | 0x3f800000u) * (static_cast<float>(fraction) * 5.9604644775390625e-8f);
    if (exponent == 31) return float_from_bits(sign | 0x7f800000u | (fraction << 13));
    return float_from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
}

// The nearest number that bf16 holds, ties to even; NaN stays NaN.
static inline void round_to_bf16(float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        ::memcpy(&bits, x + i, sizeof bits);
        const uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
        x[i] = float_from_bits((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x00400000u : nearest);
    }
}

static inline void widen_bf16(const uint16_t* source, float* target, int64_t count) {
    for (int64_t i = 0; i < count; ++i) target[i] = float_from_bits(static_cast<uint32_t>(source[i]) << 16);
}
