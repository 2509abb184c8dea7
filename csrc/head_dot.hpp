// head_dot and head_norm on the CPU: pointers and sizes, no Python and no torch. Meaning: ipfast/ops/head_dot.py, head_norm.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "masks.hpp"
#include "packed_head.hpp"
#include "packed_pairs.hpp"

namespace ipfast {

enum class Loss { cross_entropy, bce_with_logits, mse };
enum class Storage { f64, f32, f16, bf16 };  // of the features; f64 is computed in double, the others in float

// T: type of the computation. Pointers may be null where it says so.
template <class T>
struct HeadArguments {
    const void* features;         // [rows, width] of `storage`, row stride `row_stride` elements, unit column stride
    Storage storage;
    bool bf16;                    // whether features are rounded to bf16; weight and query then hold numbers that bf16 holds
    int64_t row_stride;
    const int64_t* labels;        // [rows], cross_entropy only: the class in whose products the others are centred
    const T* targets;             // [rows, classes]: of an elementwise loss, or the soft targets of cross_entropy; else null
    const T* class_target;        // [classes] or null: targets that all rows share (label smoothing)
    const T* row_factor;          // [rows] or null: Σt
    const T* pos_weight;          // [classes] or null: of bce_with_logits
    const T* output_weight;       // [classes] or null: factors of an elementwise residual
    const T* weight;              // [weights, classes, width]
    const T* bias;                // [bias_sets, classes] or null
    const T* query;               // [outputs, classes, width]; null asks for head_norm
    const T* query_bias;          // [outputs, classes] or null
    const PackedHead<T>* packed;  // set by head_scores where the head is small enough to stay in cache, else null
    const PackedPairs* pairs;     // set by head_scores where bf16 numbers are multiplied in pairs, else null
    const Masks<T>* masks;        // one member an output, or null
    T* out;                       // [rows, outputs]
    int64_t rows, width, classes;
    int64_t weights, bias_sets, outputs;  // weights, bias_sets: 1 or outputs
    Loss loss;
    bool include_bias;            // head_norm: whether the bias gradient counts
    T scale;

    int64_t queries() const { return query ? outputs : 0; }
    int64_t sets() const { return masks || weights > 1 || bias_sets > 1 ? outputs : 1; }  // of logits
};

// Instruction sets that this processor can run, best first; "portable" is always the last.
std::vector<std::string> instruction_sets();

// Throws std::invalid_argument for an instruction set that is unknown or cannot run here; "auto" takes the best.
void head_scores(const HeadArguments<float>& arguments, int threads, const std::string& isa);
void head_scores(const HeadArguments<double>& arguments, int threads, const std::string& isa);

constexpr int64_t kBlockRows = 64;          // rows whose logits are held at once
constexpr int64_t kClassTile = 64;          // classes whose products are held at once
constexpr int64_t kPackBytes = 96 * 1024;   // matrices up to this size are packed; a few of them stay in the second-level cache
constexpr int64_t kPackClasses = 256;       // and of at most so many classes, whose products are all held at once
constexpr int64_t kPairClasses = 128;       // of bf16 pairs: heads of at most so many classes are one tile
constexpr int64_t kRowsAhead = 16;          // distance of the software prefetch

// Classes whose products are held at once. It does not depend on the number of queries: a query has the same bits in any company.
inline int64_t pair_tile(int64_t classes) { return classes <= kPairClasses ? classes : kClassTile; }
template <class T>
inline int64_t head_tile(const HeadArguments<T>& a) {
    if (a.pairs) return pair_tile(a.classes);
    return a.packed || a.classes < kClassTile ? a.classes : kClassTile;
}

// Scores of rows [begin, end) on one instruction set. `workspace` belongs to one thread; head_scores knows its size.
struct HeadKernels {
    Tile tile_f32, tile_f64;
    void (*f32)(const HeadArguments<float>&, int64_t begin, int64_t end, float* workspace);
    void (*f64)(const HeadArguments<double>&, int64_t begin, int64_t end, double* workspace);
    // Of bf16 numbers multiplied in pairs, or null; and the elements of a block of rows of that width in its workspace.
    void (*bf16)(const HeadArguments<float>&, int64_t begin, int64_t end, float* workspace) = nullptr;
    int64_t (*bf16_elements)(int64_t width) = nullptr;
};
HeadKernels head_kernels_portable();
HeadKernels head_kernels_avx2();
HeadKernels head_kernels_avx512();
HeadKernels head_kernels_avx512bf16();

}  // namespace ipfast
