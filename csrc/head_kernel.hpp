// The scoring pass over a range of rows, written once for any vector type. Included inside an instruction set's namespace, so
// that nothing compiled for a newer processor can be linked into the code of an older one; no standard templates in here.
//
// A block of kBlockRows rows at a time: logits z = W h and products u = G h of a tile of classes go to a buffer laid out
// [column][row], then an epilogue runs down the classes with the rows in the lanes. A row's arithmetic never depends on its
// neighbours: short groups repeat their last row, so scores are the same bits wherever a row stands.

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

// The tile of V::stream_rows rows and at most three columns, for rows that come from memory; `lines` of them are fetched a step.
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

template <class V>
struct HeadBlock {
    using T = typename V::T;
    const HeadArguments<T>& a;
    T *z, *u;                               // [tile classes][kBlockRows]; u follows z
    T *top, *sum, *moment, *label, *norm;   // [kBlockRows]: running maximum, Σe, Σe·(u−u_y) or Σe², u_y or z_y, ‖h‖²
    T* chunk;                               // columns of a tile, packed
    T* panel;                               // [kBlockRows][width]: converted features
    const T* row[kBlockRows];
    int64_t first, rows;

    HeadBlock(const HeadArguments<T>& arguments, T* workspace) : a(arguments) {
        const int64_t tile = a.classes < kClassTile ? a.classes : kClassTile;
        z = workspace;
        u = z + tile * kBlockRows;
        top = u + tile * kBlockRows;
        sum = top + kBlockRows;
        moment = sum + kBlockRows;
        label = moment + kBlockRows;
        norm = label + kBlockRows;
        chunk = norm + kBlockRows;
        panel = chunk + V::columns * packed_steps(a.width, V::lanes) * V::lanes;
    }

    const T* source(int64_t i) const { return static_cast<const T*>(a.features) + i * a.row_stride; }
    bool stored_as_computed() const { return a.storage == Storage::f64 || a.storage == Storage::f32; }

    void point_at(int64_t begin, int64_t count) {
        first = begin;
        rows = count;
        constexpr int64_t group = V::stream_rows > 4 ? V::stream_rows : 4;
        for (int64_t r = 0; r < (count + group - 1) / group * group; ++r) {
            const int64_t i = r < count ? r : count - 1;
            if (stored_as_computed()) {
                row[r] = source(begin + i);
            } else {
                row[r] = panel + i * a.width;
                if (r < count) widen(static_cast<const uint16_t*>(a.features) + (begin + i) * a.row_stride, panel + i * a.width);
            }
        }
    }
    void widen(const uint16_t* from, float* to) const {
        if (a.storage == Storage::f16) widen_f16(from, to, a.width);
        else widen_bf16(from, to, a.width);
    }
    void widen(const uint16_t*, double*) const {}  // no half storage in double computations

    // Products of plain columns with all rows: a chunk of columns is packed, stays in the first-level cache and meets every row.
    void products(const T* w, int64_t columns, T* out) {
        const int64_t chunks = (columns + V::columns - 1) / V::columns;
        for (int64_t j = 0; j < chunks; ++j) {
            const int64_t k = j * columns / chunks, next = (j + 1) * columns / chunks;
            pack_columns(w + k * a.width, next - k, a.width, V::lanes, chunk);
            for (int64_t r = 0; r < rows; r += 4)
                cached_tile<V>(next - k, row + r, chunk, a.width, out + k * kBlockRows + r, kInOrder);
        }
    }

    // The same for few columns, packed once: the features come from memory, so rows further on are fetched while these are
    // multiplied: into the second-level cache kRowsAhead rows before their use, into the first one group before. Line after line, as
    // the hardware's own prefetcher likes it, and spread over the chunks, since loads and products overlap only if neither comes in
    // bursts. Fetching straight into the first level would throw out rows that are still in use.
    void products_streaming() {
        constexpr int64_t group = V::stream_rows;
        const PackedHead<T>& head = *a.packed;
        const int64_t steps = packed_steps(a.width, V::lanes), chunks = head.chunks.size() - 1;
        const bool fetch = stored_as_computed() && a.row_stride == a.width;
        if (head.reference >= 0) {  // its products are zero by definition, and the epilogues write over them
            T *zero_z = z + head.reference * kBlockRows, *zero_u = u + head.reference * kBlockRows;
            for (int64_t r = 0; r < kBlockRows; ++r) zero_z[r] = zero_u[r] = 0;
        }
        for (int64_t q = 0; q < rows; q += group) {
            const T *far = ahead_of(q + kRowsAhead), *near = ahead_of(q + group), *columns = head.columns.data();
            for (int64_t j = 0; j < chunks; ++j) {
                const int64_t k = head.chunks[j], count = head.chunks[j + 1] - k;
                const int64_t from = group * j / chunks, to = group * (j + 1) / chunks;
                fetching_tile<V>(fetch ? to - from : 0, count, row + q, columns, a.width, z + q, head.place.data() + k,
                                 far + from * a.width, near + from * a.width);
                columns += count * steps * V::lanes;
            }
        }
    }
    // A group of rows to fetch, `offset` rows behind the first of this block; near the end of the data any rows will do.
    const T* ahead_of(int64_t offset) const { return source(first + offset + V::stream_rows <= a.rows ? first + offset : 0); }

    // Fill z (and u) with the products of classes [c0, c0 + tile).
    void multiply(int64_t c0, int64_t tile) {
        if (a.packed) return products_streaming();
        products(a.weight + c0 * a.width, tile, z);
        if (a.query) products(a.query + c0 * a.width, tile, u);
    }

    void begin_rows() {
        for (int64_t r = 0; r < kBlockRows; ++r) {
            top[r] = -INFINITY;
            sum[r] = moment[r] = label[r] = 0;
        }
        if (a.query) {
            if (a.loss == Loss::cross_entropy && a.classes > kClassTile) dots_with_label();
        } else {
            self_dots();
        }
    }

    // label = G[y]·h, by the same arithmetic as u, so that u_y − u_y is exactly zero.
    void dots_with_label() {
        T out[4];
        for (int64_t r = 0; r < rows; ++r) {
            const T* same[4] = {row[r], row[r], row[r], row[r]};
            tile<V, 4, 1, 0, 0, false>(same, a.query + a.labels[first + r] * a.width, a.width, out, kInOrder, nullptr, nullptr);
            label[r] = out[0];
        }
    }
    void self_dots() {
        T out[4];
        for (int64_t r = 0; r < rows; ++r) {
            const T* same[4] = {row[r], row[r], row[r], row[r]};
            tile<V, 4, 1, 0, 0, false>(same, row[r], a.width, out, kInOrder, nullptr, nullptr);
            norm[r] = out[0];
        }
    }

    // z += bias and the running maximum; returns the factor that brings old sums to the new maximum.
    V raise(int64_t r, int64_t c0, int64_t tile) {
        const V before = V::load(top + r);
        V m = before;
        for (int64_t c = 0; c < tile; ++c) {
            T* p = z + c * kBlockRows + r;
            const V logit = V::add(V::load(p), V::set(a.bias ? a.bias[c0 + c] : T(0)));
            logit.store(p);
            m = V::max(m, logit);
        }
        m.store(top + r);
        return V::exp(V::sub(before, m));
    }
    bool in_tile(int64_t r, int64_t c0, int64_t tile, int64_t& column) const {
        column = a.labels[first + r] - c0;
        return column >= 0 && column < tile;
    }

    // Sums over classes go in parts of 16: one chain of additions over a thousand classes would lose a decimal place.
    static int64_t part_end(int64_t c, int64_t tile) { return c + 16 < tile ? c + 16 : tile; }

    void softmax_dot(int64_t c0, int64_t tile) {
        if (a.classes <= kClassTile)
            for (int64_t r = 0; r < rows; ++r) label[r] = u[a.labels[first + r] * kBlockRows + r];
        for (int64_t r = 0; r < rows; r += V::lanes) {
            const V shrink = raise(r, c0, tile), m = V::load(top + r);
            T bias[V::lanes];
            for (int l = 0; l < V::lanes; ++l)
                bias[l] = a.query_bias && r + l < rows ? a.query_bias[a.labels[first + r + l]] : T(0);
            const V u_label = V::add(V::load(label + r), V::load(bias));
            V s = V::mul(V::load(sum + r), shrink), e = V::mul(V::load(moment + r), shrink);
            for (int64_t c = 0; c < tile;) {
                V part_s = V::set(0), part_e = V::set(0);
                for (const int64_t stop = part_end(c, tile); c < stop; ++c) {
                    const V p = V::exp(V::sub(V::load(z + c * kBlockRows + r), m));
                    const V uc = V::add(V::load(u + c * kBlockRows + r), V::set(a.query_bias ? a.query_bias[c0 + c] : T(0)));
                    part_s = V::add(part_s, p);
                    part_e = V::fma(p, V::sub(uc, u_label), part_e);
                }
                s = V::add(s, part_s);
                e = V::add(e, part_e);
            }
            s.store(sum + r);
            e.store(moment + r);
        }
    }

    // The label's own logit is set aside and its place emptied, so that the sums run over the other classes.
    void softmax_norm(int64_t c0, int64_t tile) {
        for (int64_t r = 0; r < rows; r += V::lanes) {
            const V shrink = raise(r, c0, tile), m = V::load(top + r);
            for (int64_t l = r, c; l < r + V::lanes && l < rows; ++l)
                if (in_tile(l, c0, tile, c)) {
                    label[l] = z[c * kBlockRows + l];
                    z[c * kBlockRows + l] = -INFINITY;
                }
            V s = V::mul(V::load(sum + r), shrink), q = V::mul(V::load(moment + r), V::mul(shrink, shrink));
            for (int64_t c = 0; c < tile;) {
                V part_s = V::set(0), part_q = V::set(0);
                for (const int64_t stop = part_end(c, tile); c < stop; ++c) {
                    const V p = V::exp(V::sub(V::load(z + c * kBlockRows + r), m));
                    part_s = V::add(part_s, p);
                    part_q = V::fma(p, p, part_q);
                }
                s = V::add(s, part_s);
                q = V::add(q, part_q);
            }
            s.store(sum + r);
            q.store(moment + r);
        }
    }

    V residual(V logit, V target) const {
        if (a.loss == Loss::mse) return V::mul(V::set(T(2) / T(a.classes)), V::sub(logit, target));
        // (1 − y)σ(z) − yσ(−z): no cancellation for y = 0 and y = 1
        const V one = V::set(1), e = V::exp(V::sub(V::set(0), V::abs(logit)));
        const V high = V::div(one, V::add(one, e)), low = V::mul(e, high);
        const V on = V::if_negative(logit, low, high), off = V::if_negative(logit, high, low);
        return V::sub(V::mul(V::sub(one, target), on), V::mul(target, off));
    }

    void elementwise(int64_t c0, int64_t tile) {
        for (int64_t r = 0; r < rows; r += V::lanes) {
            V total = V::load(moment + r);
            for (int64_t c = 0; c < tile;) {
                V part = V::set(0);
                for (const int64_t stop = part_end(c, tile); c < stop; ++c) {
                    T y[V::lanes];
                    for (int l = 0; l < V::lanes; ++l)
                        y[l] = r + l < rows ? a.targets[(first + r + l) * a.classes + c0 + c] : T(0);
                    const V logit = V::add(V::load(z + c * kBlockRows + r), V::set(a.bias ? a.bias[c0 + c] : T(0)));
                    const V g = residual(logit, V::load(y));
                    const V uc = V::add(V::load(u + c * kBlockRows + r), V::set(a.query_bias ? a.query_bias[c0 + c] : T(0)));
                    part = V::fma(g, a.query ? uc : g, part);
                }
                total = V::add(total, part);
            }
            total.store(moment + r);
        }
    }

    void finish() {
        for (int64_t r = 0; r < rows; r += V::lanes) {
            V value = V::load(moment + r);
            if (a.loss == Loss::cross_entropy) {
                V s = V::load(sum + r);
                if (a.query) {
                    value = V::div(value, s);
                } else {
                    value = V::fma(s, s, value);
                    s = V::add(s, V::exp(V::sub(V::load(label + r), V::load(top + r))));
                    value = V::div(value, V::mul(s, s));
                }
            }
            if (!a.query) value = V::mul(value, V::add(V::load(norm + r), V::set(a.include_bias ? T(1) : T(0))));
            T lane[V::lanes];
            V::mul(value, V::set(a.scale)).store(lane);
            for (int64_t l = 0; l < V::lanes && r + l < rows; ++l) a.out[first + r + l] = lane[l];
        }
    }

    void score(int64_t begin, int64_t count) {
        point_at(begin, count);
        begin_rows();
        for (int64_t c0 = 0; c0 < a.classes; c0 += kClassTile) {
            const int64_t tile = a.classes - c0 < kClassTile ? a.classes - c0 : kClassTile;
            multiply(c0, tile);
            if (a.loss != Loss::cross_entropy) elementwise(c0, tile);
            else if (a.query) softmax_dot(c0, tile);
            else softmax_norm(c0, tile);
        }
        finish();
    }
};

template <class V>
static void head_range(const HeadArguments<typename V::T>& arguments, int64_t begin, int64_t end, typename V::T* workspace) {
    HeadBlock<V> block(arguments, workspace);
    for (int64_t i = begin; i < end; i += kBlockRows) block.score(i, end - i < kBlockRows ? end - i : kBlockRows);
}

static inline HeadKernels head_kernels() {
    return {{VectorF32::lanes, VectorF32::columns, VectorF32::stream_columns},
            {VectorF64::lanes, VectorF64::columns, VectorF64::stream_columns},
            &head_range<VectorF32>,
            &head_range<VectorF64>};
}
