// The scoring pass over a range of rows, written once for any vector type. Included inside an instruction set's namespace, so
// that nothing compiled for a newer processor can be linked into the code of an older one; no standard templates in here.
//
// A block of kBlockRows rows at a time: products of a tile of classes with every weight and every query go to a buffer laid out
// [matrix][class][row], then the epilogues run down the classes with the rows in the lanes. A row's arithmetic never depends on its
// neighbours: short groups repeat their last row, so scores are the same bits wherever a row stands.
//
// Logits come in sets: one for all queries, or one for each (a weight each, or one weight with a dropout mask each).

struct NoPairs {
    static constexpr bool there = false;
};

// P: how bf16 numbers are multiplied two at a time (Pairs of an instruction set), or NoPairs.
template <class V, class P>
struct HeadBlock {
    using T = typename V::T;
    const HeadArguments<T>& a;
    int64_t tile_classes;                    // classes whose products are held at once
    T *products;                             // [weights + queries][tile_classes][kBlockRows]
    T *masked;                               // [tile_classes][kBlockRows]: logits of one set, where sets share a product
    T *top, *sum;                            // [sets][kBlockRows]: running maximum of the logits, Σe
    T *moment, *label, *target;              // [outputs][kBlockRows]: Σe(u − u_y) or Σr²; u_y or z_y; Σt(u − u_y) or Σr
    T *norm;                                 // [kBlockRows]: ‖h‖²
    T *chunk;                                // columns of a tile, packed
    T *panel;                                // [kBlockRows][width]: converted features
    T *columns;                              // [kBlockRows / lanes][dropped features][lanes]
    const T* row[kBlockRows];
    P pairs;
    int64_t first, rows;

    HeadBlock(const HeadArguments<T>& arguments, T* workspace) : a(arguments), tile_classes(head_tile(arguments)) {
        const auto take = [&](int64_t count) {
            T* begin = workspace;
            workspace += count;
            return begin;
        };
        products = take((a.weights + a.queries()) * tile_classes * kBlockRows);
        masked = take(tile_classes * kBlockRows);
        top = take(a.sets() * kBlockRows);
        sum = take(a.sets() * kBlockRows);
        moment = take(a.outputs * kBlockRows);
        label = take(a.outputs * kBlockRows);
        target = take(a.outputs * kBlockRows);
        norm = take(kBlockRows);
        chunk = take(V::columns * packed_steps(a.width, V::lanes) * V::lanes);
        columns = take(a.masks ? a.masks->features.size() * kBlockRows : 0);
        panel = workspace;
        if constexpr (P::there) pairs = {take(P::elements(a.width)), take(P::elements(a.width))};
    }

    T* logits_of(int64_t weight) const { return products + weight * tile_classes * kBlockRows; }
    T* products_of(int64_t query) const { return products + (a.weights + query) * tile_classes * kBlockRows; }
    const T* bias_of(int64_t set) const { return a.bias ? a.bias + (a.bias_sets > 1 ? set : 0) * a.classes : nullptr; }
    const T* query_bias_of(int64_t query) const { return a.query_bias ? a.query_bias + query * a.classes : nullptr; }
    bool has_targets() const { return a.class_target || (a.targets && a.loss == Loss::cross_entropy); }
    static V or_zero(const T* vector, int64_t c) { return V::set(vector ? vector[c] : T(0)); }

    const T* source(int64_t i) const { return static_cast<const T*>(a.features) + i * a.row_stride; }
    bool stored_as_computed() const { return a.storage == Storage::f64 || (a.storage == Storage::f32 && !a.bf16); }

    void point_at(int64_t begin, int64_t count) {
        first = begin;
        rows = count;
        if constexpr (P::there) {
            const auto repeated = [&](int64_t r) { return stored(begin + (r < count ? r : count - 1)); };
            return pairs.fill(repeated, a.storage, a.width, pairs.panel);
        }
        constexpr int64_t group = V::stream_rows > 4 ? V::stream_rows : 4;
        for (int64_t r = 0; r < (count + group - 1) / group * group; ++r) {
            const int64_t i = r < count ? r : count - 1;
            if (stored_as_computed()) {
                row[r] = source(begin + i);
            } else {
                row[r] = panel + i * a.width;
                if (r < count) convert(stored(begin + i), panel + i * a.width);
            }
        }
    }
    int64_t stored_bytes() const { return a.storage == Storage::f64 ? 8 : a.storage == Storage::f32 ? 4 : 2; }
    const char* stored(int64_t i) const { return static_cast<const char*>(a.features) + i * a.row_stride * stored_bytes(); }
    void convert(const void* from, float* to) const {
        if (a.storage == Storage::f32) ::memcpy(to, from, a.width * sizeof(float));
        else if (a.storage == Storage::f16) widen_f16(static_cast<const uint16_t*>(from), to, a.width);
        else widen_bf16(static_cast<const uint16_t*>(from), to, a.width);
        if (a.bf16) round_to_bf16(to, a.width);
    }
    void convert(const void*, double*) const {}  // no other storage in double computations

    // Products of plain columns with all rows: a chunk of columns is packed, stays in the first-level cache and meets every row.
    void multiply_cached(const T* w, int64_t count, T* out) {
        const int64_t chunks = (count + V::columns - 1) / V::columns;
        for (int64_t j = 0; j < chunks; ++j) {
            const int64_t k = j * count / chunks, next = (j + 1) * count / chunks;
            pack_columns(w + k * a.width, next - k, a.width, V::lanes, chunk);
            for (int64_t r = 0; r < rows; r += 4)
                cached_tile<V>(next - k, row + r, chunk, a.width, out + k * kBlockRows + r, kInOrder);
        }
    }

    // The same for few columns, packed once: the features come from memory, so rows further on are fetched while these are
    // multiplied: into the second-level cache kRowsAhead rows before their use, into the first one group before. Line after line, as
    // the hardware's own prefetcher likes it, and spread over the chunks, since loads and products overlap only if neither comes in
    // bursts. Fetching straight into the first level would throw out rows that are still in use.
    void multiply_streaming() {
        constexpr int64_t group = V::stream_rows;
        const PackedHead<T>& head = *a.packed;
        const int64_t steps = packed_steps(a.width, V::lanes), chunks = head.chunks.size() - 1;
        const bool fetch = stored_as_computed() && a.row_stride == a.width;
        for (size_t matrix = 0; matrix < head.reference.size(); ++matrix) {
            // The products of a reference are zero by definition, and the epilogues write over them.
            T* zero = products + (static_cast<int64_t>(matrix) * tile_classes + head.reference[matrix]) * kBlockRows;
            for (int64_t r = 0; r < kBlockRows; ++r) zero[r] = 0;
        }
        for (int64_t q = 0; q < rows; q += group) {
            const T *far = ahead_of(q + kRowsAhead), *near = ahead_of(q + group), *packed = head.columns.data();
            for (int64_t j = 0; j < chunks; ++j) {
                const int64_t k = head.chunks[j], count = head.chunks[j + 1] - k;
                const int64_t from = group * j / chunks, to = group * (j + 1) / chunks;
                fetching_tile<V>(fetch ? to - from : 0, count, row + q, packed, a.width, products + q, head.place.data() + k,
                                 far + from * a.width, near + from * a.width);
                packed += count * steps * V::lanes;
            }
        }
    }
    // A group of rows to fetch, `offset` rows behind the first of this block; near the end of the data any rows will do.
    const T* ahead_of(int64_t offset) const { return source(first + offset + V::stream_rows <= a.rows ? first + offset : 0); }

    // The products of classes [c0, c0 + tile) with every weight and every query.
    void multiply(int64_t c0, int64_t tile) {
        if constexpr (P::there) {
            const int64_t begin = first + 2 * kBlockRows <= a.rows ? first + kBlockRows : 0;  // near the end any rows will do
            const int64_t bytes = c0 == 0 && a.row_stride == a.width ? kBlockRows * a.width * stored_bytes() : 0;
            return pairs.multiply(*a.pairs, c0 / tile_classes, a.width, products, stored(begin), bytes);
        }
        if (a.packed) return multiply_streaming();
        for (int64_t l = 0; l < a.weights; ++l)
            multiply_cached(a.weight + (l * a.classes + c0) * a.width, tile, logits_of(l));
        for (int64_t q = 0; q < a.queries(); ++q)
            multiply_cached(a.query + (q * a.classes + c0) * a.width, tile, products_of(q));
    }

    void begin_rows() {
        for (int64_t i = 0; i < a.sets() * kBlockRows; ++i) {
            top[i] = -INFINITY;
            sum[i] = 0;
        }
        for (int64_t i = 0; i < a.outputs * kBlockRows; ++i) moment[i] = label[i] = target[i] = 0;
        if (a.masks && !P::there) gather_columns();
        if (!a.query) {
            if constexpr (P::there) pairs.multiply_rows(pairs.panel, a.width, norm);
            else for (int64_t r = 0; r < rows; ++r) norm[r] = dot(r, row[r]);
        } else if (a.loss == Loss::cross_entropy && a.classes > tile_classes) {
            // u_y is needed before the first tile; with one tile it is picked from the products.
            for (int64_t q = 0; q < a.queries(); ++q) {
                const auto of_label = [&](int64_t r) { return a.query + (q * a.classes + a.labels[first + r]) * a.width; };
                if constexpr (P::there) {
                    pairs.fill([&](int64_t r) { return of_label(r < rows ? r : rows - 1); }, Storage::f32, a.width, pairs.labels);
                    pairs.multiply_rows(pairs.labels, a.width, label + q * kBlockRows);
                } else {
                    for (int64_t r = 0; r < rows; ++r) label[q * kBlockRows + r] = dot(r, of_label(r));
                }
            }
        }
    }
    // ⟨row r, w⟩ by the same arithmetic as the products, so that u_y − u_y is exactly zero.
    T dot(int64_t r, const T* w) const {
        T out[4];
        const T* same[4] = {row[r], row[r], row[r], row[r]};
        tile<V, 4, 1, 0, 0, false>(same, w, a.width, out, kInOrder, nullptr, nullptr);
        return out[0];
    }

    // The features that some mask drops, transposed: a dropped entry is then one multiply-add down a column. A few rows at a time,
    // [rows / lanes][feature][lanes]: whole columns would lie a power of two apart and drive each other out of the cache.
    void gather_columns() {
        const int64_t count = a.masks->features.size();
        const int32_t* feature = a.masks->features.data();
        for (int64_t r = 0; r < rows; ++r) {
            T* to = columns + r / V::lanes * count * V::lanes + r % V::lanes;
            for (int64_t i = 0; i < count; ++i) to[i * V::lanes] = row[r][feature[i]];
        }
    }
    // Logits of member m: rescale·(W h − D∘W h), from the dense product and the entries that the mask drops.
    T* member_logits(int64_t m, int64_t c0, int64_t tile) {
        if constexpr (P::there) {
            pairs.drop(a.pairs->members[m], c0, tile, V::set(a.masks->rescale), logits_of(0), masked);
            return masked;
        }
        const typename Masks<T>::Member& member = a.masks->members[m];
        const int64_t count = a.masks->features.size();
        for (int64_t r = 0; r < rows; r += V::lanes) {
            const T *dense = logits_of(0) + r, *group = columns + r * count;
            for (int64_t c = 0; c < tile; ++c) {
                V z = V::load(dense + c * kBlockRows);
                for (int64_t e = member.row_start[c0 + c]; e < member.row_start[c0 + c + 1]; ++e)
                    z = V::fma(V::set(member.negated[e]), V::load(group + member.column[e] * V::lanes), z);
                V::mul(z, V::set(a.masks->rescale)).store(masked + c * kBlockRows + r);
            }
        }
        return masked;
    }
    T* logits(int64_t set, int64_t c0, int64_t tile) {
        if (a.masks) return member_logits(set, c0, tile);
        if (a.weights > 1 || a.sets() == 1) return logits_of(set);
        for (int64_t i = 0; i < tile * kBlockRows; ++i) masked[i] = logits_of(0)[i];  // one product, several biases
        return masked;
    }

    // z += bias and the running maximum; returns the factor that brings old sums to the new maximum.
    V raise(T* z, const T* bias, T* maximum, int64_t c0, int64_t tile) {
        const V before = V::load(maximum);
        V m = before;
        for (int64_t c = 0; c < tile; ++c) {
            T* p = z + c * kBlockRows;
            const V logit = V::add(V::load(p), or_zero(bias, c0 + c));
            logit.store(p);
            m = V::max(m, logit);
        }
        m.store(maximum);
        return V::exp(V::sub(before, m));
    }

    // Sums over classes go in parts of 16: one chain of additions over a thousand classes would lose a decimal place.
    static int64_t part_end(int64_t c, int64_t tile) { return c + 16 < tile ? c + 16 : tile; }
    template <class Term>
    static V sum_over(int64_t tile, V total, const Term& term) {
        for (int64_t c = 0; c < tile;) {
            V part = V::set(0);
            for (const int64_t stop = part_end(c, tile); c < stop; ++c) part = term(c, part);
            total = V::add(total, part);
        }
        return total;
    }
    template <class Value>
    V lanes_of(int64_t r, const Value& value) const {
        T lane[V::lanes];
        for (int l = 0; l < V::lanes; ++l) lane[l] = r + l < rows ? value(first + r + l) : T(0);
        return V::load(lane);
    }
    V target_of(int64_t r, int64_t c) const {
        if (a.class_target) return V::set(a.class_target[c]);
        return lanes_of(r, [&](int64_t i) { return a.targets[i * a.classes + c]; });
    }

    void softmax_dot(int64_t set, int64_t c0, int64_t tile) {
        T* z = logits(set, c0, tile);
        const int64_t begin = a.sets() > 1 ? set : 0, end = a.sets() > 1 ? set + 1 : a.outputs;
        if (a.classes <= tile_classes)
            for (int64_t q = begin; q < end; ++q)
                for (int64_t r = 0; r < rows; ++r)
                    label[q * kBlockRows + r] = products_of(q)[a.labels[first + r] * kBlockRows + r];
        for (int64_t r = 0; r < rows; r += V::lanes) {
            T *maximum = top + set * kBlockRows + r, *total = sum + set * kBlockRows + r;
            const V shrink = raise(z + r, bias_of(set), maximum, c0, tile), m = V::load(maximum);
            const V s = sum_over(tile, V::mul(V::load(total), shrink), [&](int64_t c, V part) {
                const V p = V::exp(V::sub(V::load(z + c * kBlockRows + r), m));
                p.store(z + c * kBlockRows + r);
                return V::add(part, p);
            });
            s.store(total);
            for (int64_t q = begin; q < end; ++q) {
                const T *u = products_of(q) + r, *bias = query_bias_of(q);
                T *state = moment + q * kBlockRows + r, *targets = target + q * kBlockRows + r;
                V u_label = V::load(label + q * kBlockRows + r);
                if (bias) u_label = V::add(u_label, lanes_of(r, [&](int64_t i) { return bias[a.labels[i]]; }));
                const auto centred = [&](int64_t c) {
                    return V::sub(V::add(V::load(u + c * kBlockRows), or_zero(bias, c0 + c)), u_label);
                };
                sum_over(tile, V::mul(V::load(state), shrink), [&](int64_t c, V part) {
                    return V::fma(V::load(z + c * kBlockRows + r), centred(c), part);
                }).store(state);
                if (has_targets())
                    sum_over(tile, V::load(targets), [&](int64_t c, V part) {
                        return V::fma(target_of(r, c0 + c), centred(c), part);
                    }).store(targets);
            }
        }
    }

    // Squared norms, in head_norms.hpp.
    void softmax_norm(int64_t c0, int64_t tile);
    void softmax_total(int64_t c0, int64_t tile);
    void softmax_residual(int64_t c0, int64_t tile);
    void norm_with_targets();

    V factor_of(int64_t r) const {
        if (!a.row_factor) return V::set(1);
        return lanes_of(r, [&](int64_t i) { return a.row_factor[i]; });
    }

    V residual(V logit, V target, int64_t c) const {
        if (a.loss == Loss::mse) return V::mul(V::set(T(2) / T(a.classes)), V::sub(logit, target));
        // (1 − y)σ(z) − π yσ(−z): no cancellation for y = 0 and y = 1
        const V one = V::set(1), e = V::exp(V::sub(V::set(0), V::abs(logit)));
        const V high = V::div(one, V::add(one, e)), low = V::mul(e, high);
        const V on = V::if_negative(logit, low, high), off = V::if_negative(logit, high, low);
        const V positive = a.pos_weight ? V::mul(V::set(a.pos_weight[c]), target) : target;
        return V::sub(V::mul(V::sub(one, target), on), V::mul(positive, off));
    }

    void elementwise(int64_t set, int64_t c0, int64_t tile) {
        T* z = logits(set, c0, tile);
        const int64_t begin = a.sets() > 1 ? set : 0, end = a.sets() > 1 ? set + 1 : a.outputs;
        for (int64_t r = 0; r < rows; r += V::lanes) {
            for (int64_t c = 0; c < tile; ++c) {
                T* p = z + c * kBlockRows + r;
                const V y = lanes_of(r, [&](int64_t i) { return a.targets[i * a.classes + c0 + c]; });
                V g = residual(V::add(V::load(p), or_zero(bias_of(set), c0 + c)), y, c0 + c);
                if (a.output_weight) g = V::mul(g, V::set(a.output_weight[c0 + c]));
                g.store(p);
            }
            for (int64_t q = begin; q < end; ++q) {
                T* state = moment + q * kBlockRows + r;
                const T *u = products_of(q) + r, *bias = query_bias_of(q);
                sum_over(tile, V::load(state), [&](int64_t c, V part) {
                    const V g = V::load(z + c * kBlockRows + r);
                    return V::fma(g, a.query ? V::add(V::load(u + c * kBlockRows), or_zero(bias, c0 + c)) : g, part);
                }).store(state);
            }
        }
    }

    V finished(int64_t output, int64_t r) const {
        V value = V::load(moment + output * kBlockRows + r);
        if (a.loss == Loss::cross_entropy) {
            const V s = V::load(sum + (a.sets() > 1 ? output : 0) * kBlockRows + r);
            if (a.query) {
                value = V::div(value, s);
                if (a.row_factor) value = V::mul(value, factor_of(r));
                if (has_targets()) value = V::sub(value, V::load(target + output * kBlockRows + r));
            } else if (has_targets()) {
                const V others = V::load(target + r);
                value = V::fma(others, others, value);
            } else {
                value = V::fma(s, s, value);
                const V every = V::add(s, V::exp(V::sub(V::load(label + r), V::load(top + r))));
                value = V::div(value, V::mul(every, every));
                if (a.row_factor) value = V::mul(value, V::mul(factor_of(r), factor_of(r)));
            }
        }
        if (!a.query) value = V::mul(value, V::add(V::load(norm + r), V::set(a.include_bias ? T(1) : T(0))));
        return V::mul(value, V::set(a.scale));
    }

    template <class Pass>
    void for_tiles(const Pass& pass) {
        for (int64_t c0 = 0; c0 < a.classes; c0 += tile_classes) {
            const int64_t tile = a.classes - c0 < tile_classes ? a.classes - c0 : tile_classes;
            if (c0 > 0 || a.classes > tile_classes) multiply(c0, tile);
            pass(c0, tile);
        }
    }

    void score(int64_t begin, int64_t count) {
        point_at(begin, count);
        begin_rows();
        if (a.classes <= tile_classes) multiply(0, a.classes);
        const auto all = [&](auto pass) {
            for_tiles([&](int64_t c0, int64_t tile) {
                for (int64_t set = 0; set < a.sets(); ++set) pass(set, c0, tile);
            });
        };
        if (a.loss != Loss::cross_entropy) all([&](int64_t set, int64_t c0, int64_t tile) { elementwise(set, c0, tile); });
        else if (a.query) all([&](int64_t set, int64_t c0, int64_t tile) { softmax_dot(set, c0, tile); });
        else if (!has_targets()) all([&](int64_t, int64_t c0, int64_t tile) { softmax_norm(c0, tile); });
        else norm_with_targets();
        for (int64_t output = 0; output < a.outputs; ++output)
            for (int64_t r = 0; r < rows; r += V::lanes) {
                T lane[V::lanes];
                finished(output, r).store(lane);
                for (int64_t l = 0; l < V::lanes && r + l < rows; ++l) a.out[(first + r + l) * a.outputs + output] = lane[l];
            }
    }
};

#include "head_norms.hpp"

template <class V, class P>
static void head_range(const HeadArguments<typename V::T>& arguments, int64_t begin, int64_t end, typename V::T* workspace) {
    HeadBlock<V, P> block(arguments, workspace);
    for (int64_t i = begin; i < end; i += kBlockRows) block.score(i, end - i < kBlockRows ? end - i : kBlockRows);
}

static inline HeadKernels head_kernels() {
    return {{VectorF32::lanes, VectorF32::columns, VectorF32::stream_columns},
            {VectorF64::lanes, VectorF64::columns, VectorF64::stream_columns},
            &head_range<VectorF32, NoPairs>,
            &head_range<VectorF64, NoPairs>};
}
