// The dropout masks of an ensemble at the head, laid out for the inner loop.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace ipfast {

// The dropped entries of W in compressed rows: entry e of class c drops feature features[column[e]] and negated[e] is −W there.
template <class T>
struct Masks {
    struct Member {
        std::vector<int64_t> row_start;  // [classes + 1]
        std::vector<int32_t> column;
        std::vector<T> negated;
    };
    std::vector<int32_t> features;  // that any member drops, ascending
    std::vector<Member> members;
    T rescale;

    // dropped: for each member (ascending flat indices into W [classes, width], their number)
    Masks(const std::vector<std::pair<const int64_t*, int64_t>>& dropped, const T* weight, int64_t classes, int64_t width, T factor)
        : members(dropped.size()), rescale(factor) {
        std::vector<int32_t> place(static_cast<size_t>(width), 0);
        for (const auto& [index, count] : dropped)
            for (int64_t e = 0; e < count; ++e) place[static_cast<size_t>(index[e] % width)] = 1;
        for (int64_t k = 0; k < width; ++k)
            if (place[static_cast<size_t>(k)]) {
                place[static_cast<size_t>(k)] = static_cast<int32_t>(features.size());
                features.push_back(static_cast<int32_t>(k));
            }
        for (size_t m = 0; m < dropped.size(); ++m) {
            const auto& [index, count] = dropped[m];
            Member& member = members[m];
            for (int64_t c = 0; c <= classes; ++c)
                member.row_start.push_back(std::lower_bound(index, index + count, c * width) - index);
            for (int64_t e = 0; e < count; ++e) {
                member.column.push_back(place[static_cast<size_t>(index[e] % width)]);
                member.negated.push_back(-weight[index[e]]);
            }
        }
    }
};

}  // namespace ipfast
