// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): a counter and a key to four random words, without a state. Integers only,
// so the words are the same on every platform.
#pragma once

#include <cstdint>

namespace ipfast {

struct PhiloxKey {
    uint32_t low, high;
};

constexpr int kPhiloxLanes = 16;                 // counters computed at once: enough for the compiler to vectorise over them
constexpr int kPhiloxWords = 4 * kPhiloxLanes;

// words[4·l + w] = word w of the counter (c0 + l, c1, c2, c3), l < kPhiloxLanes.
inline void philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, PhiloxKey key, uint32_t* words) {
    uint32_t x0[kPhiloxLanes], x1[kPhiloxLanes], x2[kPhiloxLanes], x3[kPhiloxLanes];
    for (int l = 0; l < kPhiloxLanes; ++l) {
        x0[l] = c0 + static_cast<uint32_t>(l);
        x1[l] = c1;
        x2[l] = c2;
        x3[l] = c3;
    }
    uint32_t k0 = key.low, k1 = key.high;
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
        for (int l = 0; l < kPhiloxLanes; ++l) {
            const uint64_t a = uint64_t{0xD2511F53u} * x0[l], b = uint64_t{0xCD9E8D57u} * x2[l];
            x0[l] = static_cast<uint32_t>(b >> 32) ^ x1[l] ^ k0;
            x1[l] = static_cast<uint32_t>(b);
            x2[l] = static_cast<uint32_t>(a >> 32) ^ x3[l] ^ k1;
            x3[l] = static_cast<uint32_t>(a);
        }
    for (int l = 0; l < kPhiloxLanes; ++l) {
        words[4 * l] = x0[l];
        words[4 * l + 1] = x1[l];
        words[4 * l + 2] = x2[l];
        words[4 * l + 3] = x3[l];
    }
}

}  // namespace ipfast
