// head_dot and head_norm on the CPU: pointers and sizes, no Python and no torch. Meaning: ipfast/ops/head_dot.py, head_norm.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "packed_head.hpp"

namespace ipfast {

enum class Loss { cross_entropy, bce_with_logits, mse };
enum class Storage { f64, f32, f16, bf16 };  // of the features; f64 is computed in double, the others in float

// T: type of the computation. Pointers may be null where it says so.
template <class T>
struct HeadArguments {
    const void* features;     // [rows, width] of `storage`, row stride `row_stride` elements, unit column stride
    Storage storage;
    int64_t row_stride;
    const int64_t* labels;    // [rows], cross_entropy only
    const T* targets;         // [rows, classes], elementwise losses only
    const T* weight;          // [classes, width]
    const T* bias;            // [classes] or null
    const T* query;           // [classes, width]; null asks for head_norm
    const T* query_bias;      // [classes] or null
    const PackedHead<T>* packed;  // set by head_scores where the head is small enough to stay in cache, else null
    T* out;                   // [rows]
    int64_t rows, width, classes;
    Loss loss;
    bool include_bias;        // head_norm: whether the bias gradient counts
    T scale;
};

// Instruction sets that this processor can run, best first; "portable" is always the last.
std::vector<std::string> instruction_sets();

// Throws std::invalid_argument for an instruction set that is unknown or cannot run here; "auto" takes the best.
void head_scores(const HeadArguments<float>& arguments, int threads, const std::string& isa);
void head_scores(const HeadArguments<double>& arguments, int threads, const std::string& isa);

// Scores of rows [begin, end) on one instruction set. `workspace` belongs to one thread: (2·tile + 5)·kBlockRows elements, tile =
// min(classes, kClassTile), and kBlockRows·width more where half-precision features are converted.
struct HeadKernels {
    Tile tile_f32, tile_f64;
    void (*f32)(const HeadArguments<float>&, int64_t begin, int64_t end, float* workspace);
    void (*f64)(const HeadArguments<double>&, int64_t begin, int64_t end, double* workspace);
};
HeadKernels head_kernels_portable();
HeadKernels head_kernels_avx2();
HeadKernels head_kernels_avx512();

constexpr int64_t kBlockRows = 64;     // rows whose logits are held at once
constexpr int64_t kClassTile = 256;    // classes whose logits are held at once
constexpr int64_t kPackBytes = 192 * 1024;  // a stacked [W; G] up to this size stays in the second-level cache
constexpr int64_t kRowsAhead = 16;     // distance of the software prefetch

}  // namespace ipfast
