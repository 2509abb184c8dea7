// Which entries of a parameter an ensemble member drops: pointers and sizes, no Python and no torch. Meaning and every detail
// that fixes a bit: ipfast/ops/dropout_mask.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ipfast {

struct MaskArguments {
    std::string name;  // of the parameter, UTF-8
    int64_t elements;  // 0 .. 2^44
    double rate;       // [0, 1)
    uint64_t seed;
    uint32_t member;
};

// The dropped entries. Two steps, because their number is known only after the first: construct, then write `count()` indices.
class DropoutMask {
  public:
    DropoutMask(const MaskArguments& arguments, int threads);
    int64_t count() const { return offsets_.back(); }
    // Sorted flat indices, `count()` of them.
    void write(int64_t* out, int threads) const;

  private:
    int64_t elements_;
    bool kept_;                                 // whether `drawn_` holds the kept entries: of rates above one half
    std::vector<std::vector<uint16_t>> drawn_;  // for each range of kRangeElements, positions within it in order
    std::vector<int64_t> offsets_;              // [ranges + 1] dropped entries before each range
};

constexpr int64_t kMaskBlock = 4096;                 // elements that share a Philox counter word c1
constexpr int64_t kRangeElements = 16 * kMaskBlock;  // positions within a range fit 16 bits

}  // namespace ipfast
