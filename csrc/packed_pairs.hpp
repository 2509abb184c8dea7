// A head of bf16 numbers laid out for products of pairs: features 2i and 2i + 1 of a column are one 32-bit word.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "masks.hpp"

namespace ipfast {

constexpr int64_t kPairColumns = 6;  // of a group: 6 columns × 4 vectors of rows = 24 accumulators of 32 registers

inline int64_t pair_count(int64_t width) { return (width + 1) / 2; }

// The upper half of a float whose lower half is zero, as the bits of a bf16.
inline uint32_t bf16_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits >> 16;
}

struct PackedPairs {
    struct Group {
        int64_t start, first, count;  // place of its words in `words` and of its columns in `place`, and how many these are
    };
    struct Entry {
        int64_t pair;
        uint32_t negated;  // −w of the dropped feature, zero for the other one of the pair
    };
    struct Member {
        std::vector<int64_t> row_start;  // [classes + 1]
        std::vector<Entry> entries;
    };
    std::vector<uint32_t> words;      // of each group [pair][column]
    std::vector<int64_t> place;       // of a column in the buffer of products: matrix·tile + class in the tile
    std::vector<Group> groups;        // tile after tile, of all matrices
    std::vector<size_t> tiles;        // first group of each tile of classes, and the number of groups
    std::vector<Member> members;

    // weight [weights, classes, width], query [queries, classes, width] or null: floats that bf16 holds. masks: or null
    PackedPairs(const float* weight, int64_t weights, const float* query, int64_t queries, const Masks<float>* masks,
                int64_t classes, int64_t width, int64_t tile) {
        words.reserve(static_cast<size_t>((weights + queries) * classes * pair_count(width)));
        for (int64_t c0 = 0; c0 < classes; c0 += tile) {
            std::vector<const float*> columns;
            const auto first = static_cast<int64_t>(place.size());
            for (int64_t m = 0; m < weights + queries; ++m) {
                const float* matrix = m < weights ? weight + m * classes * width : query + (m - weights) * classes * width;
                for (int64_t c = c0; c < std::min(c0 + tile, classes); ++c) {
                    columns.push_back(matrix + c * width);
                    place.push_back(m * tile + c - c0);
                }
            }
            tiles.push_back(groups.size());
            const auto count = static_cast<int64_t>(columns.size()), parts = (count + kPairColumns - 1) / kPairColumns;
            for (int64_t j = 0; j < parts; ++j) {
                const int64_t k = j * count / parts, next = (j + 1) * count / parts;
                groups.push_back({static_cast<int64_t>(words.size()), first + k, next - k});
                for (int64_t i = 0; i < width; i += 2)
                    for (int64_t l = k; l < next; ++l) words.push_back(pair(columns[l], i, width));
            }
        }
        tiles.push_back(groups.size());
        if (masks)
            for (const auto& member : masks->members) members.push_back(with_pairs(member, masks->features));
    }

private:
    static uint32_t pair(const float* w, int64_t i, int64_t width) {
        return bf16_bits(w[i]) | (i + 1 < width ? bf16_bits(w[i + 1]) << 16 : 0);
    }
    static Member with_pairs(const Masks<float>::Member& member, const std::vector<int32_t>& features) {
        Member result{member.row_start, {}};
        for (size_t e = 0; e < member.column.size(); ++e) {
            const int32_t feature = features[static_cast<size_t>(member.column[e])];
            result.entries.push_back({feature / 2, bf16_bits(member.negated[e]) << (feature % 2 ? 16 : 0)});
        }
        return result;
    }
};

}  // namespace ipfast
