// A small head laid out for the inner loop: [W; G] in chunks of columns, each interleaved so that one pointer walks through it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace ipfast {

struct Tile {
    int64_t lanes, columns, stream_columns;  // of the register tiles of an instruction set: rows in the cache, rows from memory
};

constexpr int64_t kInOrder[8] = {0, 1, 2, 3, 4, 5, 6, 7};

inline int64_t packed_steps(int64_t width, int64_t lanes) { return (width + lanes - 1) / lanes; }

// out[step][k][lane] = w[k·width + step·lanes + lane], zero past the end.
template <class T>
inline void pack_columns(const T* w, int64_t columns, int64_t width, int64_t lanes, T* out) {
    const int64_t whole = width / lanes, rest = width % lanes;
    for (int64_t k = 0; k < columns; ++k) {
        const T* from = w + k * width;
        T* to = out + k * lanes;
        for (int64_t i = 0; i < whole; ++i, from += lanes, to += columns * lanes) std::memcpy(to, from, lanes * sizeof(T));
        if (rest) {
            std::fill(to, to + lanes, T(0));
            std::memcpy(to, from, rest * sizeof(T));
        }
    }
}

// For softmax only differences of logits matter, so one class, the reference, can be subtracted from the others: a column of
// products a matrix is saved, which for two classes is half of the work. The class of the smallest norm, since the rounding of
// w_c − w_ref is then no larger than that of the products with w_c themselves. Every weight has its own, shared with the queries
// that meet it, so that a query's bits do not depend on its company.
template <class T>
struct PackedHead {
    std::vector<T> columns, bias, query_bias;
    std::vector<int64_t> place;   // of a column in the buffer of products: matrix·classes + class, weights before queries
    std::vector<int64_t> chunks;  // first column of each chunk, and the number of columns
    std::vector<int64_t> reference;  // of each matrix; empty without differences

    // weight [weights, classes, width], query [queries, classes, width] or null, biases [·, classes] or null
    PackedHead(const T* weight, int64_t weights, const T* query, int64_t queries, const T* b, int64_t bias_sets, const T* gb,
               int64_t classes, int64_t width, bool differences, Tile tile) {
        if (differences)
            for (int64_t m = 0; m < weights + queries; ++m) {
                const int64_t l = m < weights ? m : weights > 1 ? m - weights : 0;
                reference.push_back(m < weights ? smallest(weight + l * classes * width, classes, width) : reference[l]);
            }
        std::vector<T> plain;
        plain.reserve(static_cast<size_t>((weights + queries) * classes * width));
        for (int64_t m = 0; m < weights + queries; ++m) {
            const T* matrix = m < weights ? weight + m * classes * width : query + (m - weights) * classes * width;
            for (int64_t c = 0; c < classes; ++c) {
                if (differences && c == reference[m]) continue;
                place.push_back(m * classes + c);
                for (int64_t i = 0; i < width; ++i)
                    plain.push_back(matrix[c * width + i] - (differences ? matrix[reference[m] * width + i] : T(0)));
            }
        }
        subtract(b, bias_sets, classes, 0, weights, bias);
        subtract(gb, queries, classes, weights, queries, query_bias);
        const int64_t count = static_cast<int64_t>(place.size()), parts = (count + tile.stream_columns - 1) / tile.stream_columns;
        columns.resize(count * packed_steps(width, tile.lanes) * tile.lanes);
        T* out = columns.data();
        for (int64_t j = 0; j < parts; ++j) {
            const int64_t k = j * count / parts, next = (j + 1) * count / parts;
            chunks.push_back(k);
            pack_columns(plain.data() + k * width, next - k, width, tile.lanes, out);
            out += (next - k) * packed_steps(width, tile.lanes) * tile.lanes;
        }
        chunks.push_back(count);
    }

private:
    static int64_t smallest(const T* weight, int64_t classes, int64_t width) {
        int64_t best = 0;
        double least = INFINITY;
        for (int64_t c = 0; c < classes; ++c) {
            double norm = 0;
            for (int64_t i = 0; i < width; ++i) norm += double(weight[c * width + i]) * double(weight[c * width + i]);
            if (norm < least) least = norm, best = c;
        }
        return best;
    }
    // The references of vectors [sets, classes] are those of the matrices first .. first + count.
    void subtract(const T* from, int64_t sets, int64_t classes, int64_t first, int64_t count, std::vector<T>& to) const {
        if (!from) return;
        to.assign(from, from + sets * classes);
        if (reference.empty()) return;
        for (int64_t s = 0; s < sets; ++s) {
            const int64_t r = reference[first + (count > 1 ? s : 0)];
            for (int64_t c = 0; c < classes; ++c) to[s * classes + c] -= from[s * classes + r];
        }
    }
};

}  // namespace ipfast
