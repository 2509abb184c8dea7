// Products of bf16 pairs with fp32 sums. Included inside the namespace of the instruction set, under its target pragma.
//
// The rows of a block lie in the lanes: its features are transposed once into [pair][kBlockRows] words, and a column's pair is
// broadcast to all of them. So a product needs no sum over lanes (with half as many steps as in fp32 it would be a fifth of the
// work), and a dropped entry is one multiply-add. A sum runs over a chunk of pairs at a time: one chain of additions over
// thousands of features would lose digits, and a chunk of the block stays in the first-level cache. The instruction takes numbers
// below the smallest normal one as zero.

struct Pairs {
    static constexpr bool there = true;
    static constexpr int vectors = kBlockRows / 16;
    static constexpr int64_t chunk = 128;
    static constexpr int64_t ahead = 128;  // features of a row that are fetched before they are read

    float* panel;   // words [pairs, filled up to 16][kBlockRows]: the features of the block
    float* labels;  // the same of the queries' rows of the labels

    static int64_t elements(int64_t width) { return (width + 31) / 32 * 16 * kBlockRows; }

    // 32 numbers of a row as bf16, zeros past its end.
    template <Storage storage>
    static inline __m512i read(const void* source, int64_t i, int64_t count) {
        const __mmask32 all = count >= 32 ? ~__mmask32(0) : (__mmask32(1) << count) - 1;
        const __mmask16 low = static_cast<__mmask16>(all), high = static_cast<__mmask16>(all >> 16);
        if (storage == Storage::bf16) return _mm512_maskz_loadu_epi16(all, static_cast<const uint16_t*>(source) + i);
        if (storage == Storage::f16) {
            const __m512i half = _mm512_maskz_loadu_epi16(all, static_cast<const uint16_t*>(source) + i);
            return rounded(_mm512_cvtph_ps(_mm512_castsi512_si256(half)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1)));
        }
        const float* row = static_cast<const float*>(source) + i;
        return rounded(_mm512_maskz_loadu_ps(low, row), _mm512_maskz_loadu_ps(high, row + 16));
    }
    static inline __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

    // to[pair·kBlockRows + row] of 16 rows and 16 pairs
    static inline void transpose(__m512i* x, float* to) {
        __m512i y[16];
        for (int i = 0; i < 16; i += 2) {
            y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
            y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        }
        for (int i = 0; i < 16; i += 4)
            for (int k = 0; k < 2; ++k) {
                x[i + 2 * k] = _mm512_unpacklo_epi64(y[i + k], y[i + k + 2]);
                x[i + 2 * k + 1] = _mm512_unpackhi_epi64(y[i + k], y[i + k + 2]);
            }
        // x[4q + c]: words c of the four quarters, of rows 4q .. 4q + 3
        for (int c = 0; c < 4; ++c) {
            const __m512i a = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x88), b = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x88);
            const __m512i d = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xdd), e = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xdd);
            _mm512_storeu_si512(to + c * kBlockRows, _mm512_shuffle_i32x4(a, b, 0x88));
            _mm512_storeu_si512(to + (4 + c) * kBlockRows, _mm512_shuffle_i32x4(d, e, 0x88));
            _mm512_storeu_si512(to + (8 + c) * kBlockRows, _mm512_shuffle_i32x4(a, b, 0xdd));
            _mm512_storeu_si512(to + (12 + c) * kBlockRows, _mm512_shuffle_i32x4(d, e, 0xdd));
        }
    }
    // rows(r): where row r begins, for kBlockRows rows
    template <Storage storage, class Rows>
    static void fill(const Rows& rows, int64_t width, float* to) {
        constexpr int64_t size = storage == Storage::f32 ? 4 : 2;
        for (int64_t q = 0; q < kBlockRows; q += 16) {
            const char* row[16];
            for (int r = 0; r < 16; ++r) row[r] = reinterpret_cast<const char*>(rows(q + r));
            for (int64_t i = 0; i < width; i += 32) {
                __m512i x[16];
                for (int r = 0; r < 16; ++r) {
                    x[r] = read<storage>(row[r], i, width - i);
                    for (int64_t p = 0; p < size / 2; ++p) __builtin_prefetch(row[r] + (i + ahead) * size + 64 * p, 0, 3);
                }
                transpose(x, to + i / 2 * kBlockRows + q);
            }
        }
    }
    template <class Rows>
    static void fill(const Rows& rows, Storage storage, int64_t width, float* to) {
        if (storage == Storage::bf16) fill<Storage::bf16>(rows, width, to);
        else if (storage == Storage::f16) fill<Storage::f16>(rows, width, to);
        else fill<Storage::f32>(rows, width, to);
    }

    static inline __m512 dot(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
    static inline __m512i word(const float* p) { return _mm512_loadu_si512(p); }

    // out[place[k]·kBlockRows + r] (+)= Σ over `steps` pairs, for K columns; `Lines` lines are fetched a step, from `far`.
    template <int K, int Lines>
    static inline void tile(const float* h, const uint32_t* w, int64_t steps, float* out, const int64_t* place, bool first,
                            const char* far, int64_t stride) {
        __m512 sum[K][vectors];
        for (int k = 0; k < K; ++k)
            for (int r = 0; r < vectors; ++r) sum[k][r] = _mm512_setzero_ps();
        for (int64_t i = 0; i < steps; ++i, h += kBlockRows, w += K, far += stride) {
            for (int p = 0; p < Lines; ++p) __builtin_prefetch(far + 64 * p, 0, 2);
            __m512i x[vectors];
            for (int r = 0; r < vectors; ++r) x[r] = word(h + 16 * r);
            for (int k = 0; k < K; ++k) {
                const __m512i column = _mm512_set1_epi32(static_cast<int>(w[k]));
                for (int r = 0; r < vectors; ++r) sum[k][r] = dot(sum[k][r], x[r], column);
            }
        }
        for (int k = 0; k < K; ++k)
            for (int r = 0; r < vectors; ++r) {
                float* to = out + place[k] * kBlockRows + 16 * r;
                _mm512_storeu_ps(to, first ? sum[k][r] : _mm512_add_ps(_mm512_loadu_ps(to), sum[k][r]));
            }
    }
    template <int Lines>
    static inline void columns(int64_t count, const float* h, const uint32_t* w, int64_t steps, float* out,
                               const int64_t* place, bool first, const char* far, int64_t stride) {
        switch (count) {
            case 1: return tile<1, Lines>(h, w, steps, out, place, first, far, stride);
            case 2: return tile<2, Lines>(h, w, steps, out, place, first, far, stride);
            case 3: return tile<3, Lines>(h, w, steps, out, place, first, far, stride);
            case 4: return tile<4, Lines>(h, w, steps, out, place, first, far, stride);
            case 5: return tile<5, Lines>(h, w, steps, out, place, first, far, stride);
            case 6: return tile<6, Lines>(h, w, steps, out, place, first, far, stride);
        }
    }

    // The products of a tile of classes with every matrix. Meanwhile `bytes` bytes from `next` on are fetched, evenly, into the
    // second-level cache: the rows of the next block.
    void multiply(const PackedPairs& head, size_t number, int64_t width, float* out, const char* next, int64_t bytes) const {
        const int64_t pairs = pair_count(width), calls = static_cast<int64_t>(head.tiles[number + 1] - head.tiles[number]);
        const int64_t stride = pairs == 0 ? 0 : (bytes + calls * pairs - 1) / (calls * pairs);
        for (int64_t p = 0; p < pairs; p += chunk) {
            const int64_t steps = pairs - p < chunk ? pairs - p : chunk;
            for (size_t g = head.tiles[number]; g < head.tiles[number + 1]; ++g, next += steps * stride) {
                const PackedPairs::Group& group = head.groups[g];
                const float* h = panel + p * kBlockRows;
                const uint32_t* w = head.words.data() + group.start + p * group.count;
                const int64_t* place = head.place.data() + group.first;
                if (stride == 0) columns<0>(group.count, h, w, steps, out, place, p == 0, next, stride);
                else if (stride <= 64) columns<1>(group.count, h, w, steps, out, place, p == 0, next, stride);
                else if (stride <= 128) columns<2>(group.count, h, w, steps, out, place, p == 0, next, stride);
                else columns<4>(group.count, h, w, steps, out, place, p == 0, next, stride);
            }
        }
    }

    // out[r] = ⟨row r of the block, row r of `other`⟩ by the arithmetic of the products, so that u_y − u_y is exactly zero.
    void multiply_rows(const float* other, int64_t width, float* out) const {
        const int64_t pairs = pair_count(width);
        for (int64_t q = 0; q < kBlockRows; q += 16) {
            __m512 total = _mm512_setzero_ps();
            for (int64_t p = 0; p < pairs; p += chunk) {
                __m512 sum = _mm512_setzero_ps();
                for (int64_t i = p; i < pairs && i < p + chunk; ++i)
                    sum = dot(sum, word(panel + i * kBlockRows + q), word(other + i * kBlockRows + q));
                total = p == 0 ? sum : _mm512_add_ps(total, sum);
            }
            _mm512_storeu_ps(out + q, total);
        }
    }

    // The logits of a member: rescale·(those of the dense product less the dropped entries).
    void drop(const PackedPairs::Member& member, int64_t c0, int64_t tile, VectorF32 rescale, const float* dense,
              float* out) const {
        for (int64_t c = 0; c < tile; ++c) {
            __m512 z[vectors];
            for (int r = 0; r < vectors; ++r) z[r] = _mm512_loadu_ps(dense + c * kBlockRows + 16 * r);
            for (int64_t e = member.row_start[c0 + c]; e < member.row_start[c0 + c + 1]; ++e) {
                const __m512i w = _mm512_set1_epi32(static_cast<int>(member.entries[e].negated));
                const float* h = panel + member.entries[e].pair * kBlockRows;
                for (int r = 0; r < vectors; ++r) z[r] = dot(z[r], word(h + 16 * r), w);
            }
            for (int r = 0; r < vectors; ++r) _mm512_storeu_ps(out + c * kBlockRows + 16 * r, _mm512_mul_ps(z[r], rescale.v));
        }
    }
};
