// Products of a few rows with a few columns, in registers. Included inside an instruction set's namespace, before head_kernel.hpp.

// out[place[k]·kBlockRows + r] = ⟨row r, column k⟩ for R rows (4 or 8) and K columns. The columns lie interleaved,
// [step][K][lanes], so that one pointer walks through them; the last step is filled up with zeros (padded), or read in part
// (K = 1, a plain vector). Far, Near: how many lines to fetch a step, from `far` into the second-level cache and from `near`, where
// they have arrived, into the first.
template <class V, int R, int K, int Far, int Near, bool padded = true>
static inline void tile(const typename V::T* const* row, const typename V::T* w, int64_t width, typename V::T* out,
                        const int64_t* place, const typename V::T* far, const typename V::T* near) {
    V sum[R][K];
    for (int r = 0; r < R; ++r)
        for (int k = 0; k < K; ++k) sum[r][k] = V::set(0);
    const int64_t whole = width - width % V::lanes;
    for (int64_t i = 0; i < whole; i += V::lanes, w += K * V::lanes) {
        for (int p = 0; p < Far; ++p) __builtin_prefetch(far + Far * i + p * V::lanes, 0, 2);
        for (int p = 0; p < Near; ++p) __builtin_prefetch(near + Near * i + p * V::lanes, 0, 3);
        V column[K];
        for (int k = 0; k < K; ++k) column[k] = V::load(w + k * V::lanes);
        for (int r = 0; r < R; ++r) {
            const V h = V::load(row[r] + i).kept();
            for (int k = 0; k < K; ++k) sum[r][k] = V::fma(h, column[k], sum[r][k]);
        }
    }
    if (whole < width) {
        const int rest = static_cast<int>(width - whole);
        for (int k = 0; k < K; ++k) {
            const V column = padded ? V::load(w + k * V::lanes) : V::load(w, rest);
            for (int r = 0; r < R; ++r) sum[r][k] = V::fma(V::load(row[r] + whole, rest), column, sum[r][k]);
        }
    }
    for (int k = 0; k < K; ++k)
        for (int r = 0; r < R; r += 4)
            V::sum4(sum[r][k], sum[r + 1][k], sum[r + 2][k], sum[r + 3][k], out + place[k] * kBlockRows + r);
}

// The tile of 4 rows and as many columns as the registers hold, for rows that are in the cache.
template <class V>
static inline void cached_tile(int64_t columns, const typename V::T* const* row, const typename V::T* w, int64_t width,
                               typename V::T* out, const int64_t* place) {
    switch (columns) {
        case 1: return tile<V, 4, 1, 0, 0>(row, w, width, out, place, nullptr, nullptr);
        case 2: return tile<V, 4, 2, 0, 0>(row, w, width, out, place, nullptr, nullptr);
        case 3: return tile<V, 4, V::columns < 3 ? 1 : 3, 0, 0>(row, w, width, out, place, nullptr, nullptr);
        case 4: return tile<V, 4, V::columns < 4 ? 1 : 4, 0, 0>(row, w, width, out, place, nullptr, nullptr);
        case 5: return tile<V, 4, V::columns < 5 ? 1 : 5, 0, 0>(row, w, width, out, place, nullptr, nullptr);
    }
}

// The tile of V::stream_rows rows and at most three columns, for rows that come from memory; a step fetches `Far` and
// `Near` lines of rows further on.
template <class V, int Far, int Near>
static inline void streaming_tile(int64_t columns, const typename V::T* const* row, const typename V::T* w, int64_t width,
                                  typename V::T* out, const int64_t* place, const typename V::T* far,
                                  const typename V::T* near) {
    switch (columns) {
        case 1: return tile<V, V::stream_rows, 1, Far, Near>(row, w, width, out, place, far, near);
        case 2: return tile<V, V::stream_rows, 2, Far, Near>(row, w, width, out, place, far, near);
        case 3: return tile<V, V::stream_rows, V::stream_columns < 3 ? 1 : 3, Far, Near>(row, w, width, out, place, far, near);
    }
}
template <class V>
static inline void fetching_tile(int64_t lines, int64_t columns, const typename V::T* const* row, const typename V::T* w,
                                 int64_t width, typename V::T* out, const int64_t* place, const typename V::T* far,
                                 const typename V::T* near) {
    switch (lines) {
        case 0: return streaming_tile<V, 0, 0>(columns, row, w, width, out, place, far, near);
        case 1: return streaming_tile<V, 1, 1>(columns, row, w, width, out, place, far, near);
        case 2: return streaming_tile<V, 2, 2>(columns, row, w, width, out, place, far, near);
        case 3: return streaming_tile<V, 3, 0>(columns, row, w, width, out, place, far, near);
        case 4: return streaming_tile<V, 4, 0>(columns, row, w, width, out, place, far, near);
        default: return streaming_tile<V, V::stream_rows, 0>(columns, row, w, width, out, place, far, near);
    }
}
