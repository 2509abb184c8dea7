// Geometric skips from one dropped entry to the next: about rate·elements draws, none for the entries between.
#include "dropout_mask.hpp"

#include <algorithm>
#include <cfloat>
#include <stdexcept>

#include "parallel.hpp"
#include "philox.hpp"

namespace ipfast {
namespace {

static_assert(FLT_EVAL_METHOD != 2, "the thresholds need products rounded to double, which x87 arithmetic does not give");

constexpr int64_t kGrainRanges = 8;  // ranges that one thread takes at a time

uint32_t fnv1a32(const std::string& text) {
    uint32_t hash = 0x811C9DC5u;
    for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x01000193u;
    return hash;
}

// gap(U) = the largest k ≤ K with U < T_k, where T_k = floor((1 − rate)^k · 2^32) and K is the last k with T_k ≥ 1.
class GapTable {
  public:
    explicit GapTable(double rate) {
        // A gap of a whole block or more ends the block, however long it is, so the table need not go further.
        for (double q = 1 - rate; static_cast<int64_t>(threshold_.size()) < kMaskBlock; q *= 1 - rate) {
            const auto t = static_cast<uint32_t>(q * 4294967296.0);  // q < 1: below 2^32
            if (t == 0) break;
            threshold_.push_back(t);
        }
        longest_ = static_cast<uint32_t>(threshold_.size());
        threshold_.push_back(0);  // no U is below it: a search ends here
        uint32_t k = 0;
        for (int64_t bucket = kBuckets - 1; bucket >= 0; --bucket) {
            const auto largest = static_cast<uint32_t>(((bucket + 1) << kShift) - 1);
            while (threshold_[k] > largest) ++k;
            shortest_[bucket] = static_cast<uint16_t>(k);
        }
    }

    uint32_t longest() const { return longest_; }

    uint32_t gap(uint32_t u) const {
        const uint32_t* t = threshold_.data();
        uint32_t k = shortest_[u >> kShift];
        k += t[k] > u;  // nearly always all that is left, and no branch to mispredict
        while (t[k] > u) ++k;
        return k;
    }

  private:
    static constexpr int kShift = 20;
    static constexpr int64_t kBuckets = int64_t{1} << (32 - kShift);
    std::vector<uint32_t> threshold_;  // [k] = T_{k+1}, descending
    uint16_t shortest_[kBuckets];      // gap of the largest U with these upper bits
    uint32_t longest_;                 // K
};

// Positions of the drawn entries of one block, plus `base`, into `out` [size]; their number.
int64_t draw_block(const GapTable& table, PhiloxKey key, uint32_t block, uint32_t member, uint32_t name, uint32_t size,
                   uint32_t base, uint16_t* out) {
    uint32_t words[kPhiloxWords];
    int64_t count = 0;
    uint32_t position = 0;
    for (uint32_t counter = 0;; counter += kPhiloxLanes) {
        philox4x32(counter, block, member, name, key, words);
        for (const uint32_t u : words) {
            const uint32_t gap = table.gap(u);
            position += gap;
            if (position >= size) return count;
            if (gap == table.longest()) continue;  // at least that long: the next word says how much longer
            out[count++] = static_cast<uint16_t>(base + position++);
        }
    }
}

}  // namespace

DropoutMask::DropoutMask(const MaskArguments& a, int threads) : elements_(a.elements), kept_(a.rate > 0.5) {
    if (!(a.rate >= 0 && a.rate < 1)) throw std::invalid_argument("rate: expected a number from 0 to below 1");
    if (a.elements < 0 || a.elements > (int64_t{1} << 44))
        throw std::invalid_argument("elements: expected 0 .. 2^44, so that the block's number fits 32 bits");
    const double rate = kept_ ? 1 - a.rate : a.rate;
    // Below 2^-54 the step 1 − rate is 1 in double precision, and nothing is ever dropped.
    const int64_t ranges = 1 - rate < 1 ? (elements_ + kRangeElements - 1) / kRangeElements : 0;
    drawn_.resize(static_cast<size_t>(ranges));
    offsets_.assign(static_cast<size_t>(ranges) + 1, 0);
    if (ranges == 0) return;
    const GapTable table(rate);
    const PhiloxKey key{static_cast<uint32_t>(a.seed), static_cast<uint32_t>(a.seed >> 32)};
    const uint32_t name = fnv1a32(a.name);
    parallel_rows(ranges, kGrainRanges, threads, [&](int64_t begin, int64_t end) {
        uint16_t positions[kMaskBlock];
        std::vector<uint16_t> range;
        for (int64_t r = begin; r < end; ++r) {
            range.clear();
            const int64_t start = r * kRangeElements, stop = std::min(elements_, start + kRangeElements);
            for (int64_t first = start; first < stop; first += kMaskBlock) {
                const int64_t size = std::min(stop - first, kMaskBlock);
                const int64_t count =
                    draw_block(table, key, static_cast<uint32_t>(first / kMaskBlock), a.member, name,
                               static_cast<uint32_t>(size), static_cast<uint32_t>(first - start), positions);
                range.insert(range.end(), positions, positions + count);
            }
            drawn_[r].assign(range.begin(), range.end());  // without the room that a growing vector keeps
        }
    });
    for (int64_t r = 0; r < ranges; ++r) {
        const auto drawn = static_cast<int64_t>(drawn_[r].size());
        const int64_t size = std::min(elements_ - r * kRangeElements, kRangeElements);
        offsets_[r + 1] = offsets_[r] + (kept_ ? size - drawn : drawn);
    }
}

void DropoutMask::write(int64_t* out, int threads) const {
    parallel_rows(static_cast<int64_t>(drawn_.size()), kGrainRanges, threads, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t start = r * kRangeElements, size = std::min(elements_ - start, kRangeElements);
            int64_t* to = out + offsets_[r];
            if (!kept_) {
                for (const uint16_t position : drawn_[r]) *to++ = start + position;
                continue;
            }
            int64_t next = 0;
            for (const uint16_t position : drawn_[r]) {
                for (; next < position; ++next) *to++ = start + next;
                ++next;
            }
            for (; next < size; ++next) *to++ = start + next;
        }
    });
}

}  // namespace ipfast
