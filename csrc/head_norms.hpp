// Squared norms of the residuals of cross-entropy: epilogues of HeadBlock, where its queries are absent. Included with it, inside
// an instruction set's namespace.

// The label's own logit is set aside and its place emptied, so that the sums run over the other classes.
template <class V, class P>
void HeadBlock<V, P>::softmax_norm(int64_t c0, int64_t tile) {
    T* z = logits_of(0);
    for (int64_t r = 0; r < rows; r += V::lanes) {
        const V shrink = raise(z + r, bias_of(0), top + r, c0, tile), m = V::load(top + r);
        for (int64_t l = r; l < r + V::lanes && l < rows; ++l) {
            const int64_t c = a.labels[first + l] - c0;
            if (c < 0 || c >= tile) continue;
            label[l] = z[c * kBlockRows + l];
            z[c * kBlockRows + l] = -INFINITY;
        }
        sum_over(tile, V::mul(V::load(moment + r), V::mul(shrink, shrink)), [&](int64_t c, V part) {
            const V p = V::exp(V::sub(V::load(z + c * kBlockRows + r), m));
            p.store(z + c * kBlockRows + r);
            return V::fma(p, p, part);
        }).store(moment + r);
        sum_over(tile, V::mul(V::load(sum + r), shrink), [&](int64_t c, V part) {
            return V::add(part, V::load(z + c * kBlockRows + r));
        }).store(sum + r);
    }
}

// With targets beside the label, r_c = a p_c − t_c needs the whole Σe first: one pass for it, one for Σr² and Σr over c ≠ y.
template <class V, class P>
void HeadBlock<V, P>::softmax_total(int64_t c0, int64_t tile) {
    T* z = logits_of(0);
    for (int64_t r = 0; r < rows; r += V::lanes) {
        const V shrink = raise(z + r, bias_of(0), top + r, c0, tile), m = V::load(top + r);
        sum_over(tile, V::mul(V::load(sum + r), shrink), [&](int64_t c, V part) {
            return V::add(part, V::exp(V::sub(V::load(z + c * kBlockRows + r), m)));
        }).store(sum + r);
    }
}

template <class V, class P>
void HeadBlock<V, P>::softmax_residual(int64_t c0, int64_t tile) {
    T* z = logits_of(0);
    for (int64_t r = 0; r < rows; r += V::lanes) {
        const V m = V::load(top + r), factor = V::div(factor_of(r), V::load(sum + r));
        for (int64_t c = 0; c < tile; ++c) {
            T* p = z + c * kBlockRows + r;
            V::sub(V::mul(factor, V::exp(V::sub(V::load(p), m))), target_of(r, c0 + c)).store(p);
        }
        for (int64_t l = r; l < r + V::lanes && l < rows; ++l) {
            const int64_t c = a.labels[first + l] - c0;
            if (c >= 0 && c < tile) z[c * kBlockRows + l] = 0;
        }
        const auto value = [&](int64_t c) { return V::load(z + c * kBlockRows + r); };
        sum_over(tile, V::load(moment + r), [&](int64_t c, V part) { return V::fma(value(c), value(c), part); }).store(moment + r);
        sum_over(tile, V::load(target + r), [&](int64_t c, V part) { return V::add(part, value(c)); }).store(target + r);
    }
}

template <class V, class P>
void HeadBlock<V, P>::norm_with_targets() {
    for_tiles([&](int64_t c0, int64_t tile) { softmax_total(c0, tile); });
    for_tiles([&](int64_t c0, int64_t tile) {
        if (a.classes > tile_classes)  // the products were made anew
            for (int64_t r = 0; r < rows; r += V::lanes)
                for (int64_t c = 0; c < tile; ++c) {
                    T* p = logits_of(0) + c * kBlockRows + r;
                    V::add(V::load(p), or_zero(bias_of(0), c0 + c)).store(p);
                }
        softmax_residual(c0, tile);
    });
}
