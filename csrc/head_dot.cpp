// Choice of the instruction set, packing of small heads, threads.
#include "head_dot.hpp"

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "instruction_set.hpp"
#include "parallel.hpp"

namespace ipfast {
namespace {

// Rows that one thread takes at a time: enough to make the draw cheap, few enough to share out evenly.
constexpr int64_t kGrainRows = 16 * kBlockRows;

HeadKernels kernels(const std::string& isa) {
    const auto available = instruction_sets();
    const std::string name = isa == "auto" ? available.front() : isa;
    if (std::find(available.begin(), available.end(), name) == available.end()) {
        std::string names;
        for (const auto& other : available) names += (names.empty() ? "" : ", ") + other;
        throw std::invalid_argument("isa: expected \"auto\" or one of " + names + "; got " + isa +
                                    ", which this processor or build does not have");
    }
#if IPFAST_X86_VECTORS
    if (name == "avx512bf16") return head_kernels_avx512bf16();
    if (name == "avx512") return head_kernels_avx512();
    if (name == "avx2") return head_kernels_avx2();
#endif
    return head_kernels_portable();
}

void run(const HeadKernels& kernels, const HeadArguments<float>& a, int64_t begin, int64_t end, float* w) {
    (a.pairs ? kernels.bf16 : kernels.f32)(a, begin, end, w);
}
void run(const HeadKernels& kernels, const HeadArguments<double>& a, int64_t begin, int64_t end, double* w) { kernels.f64(a, begin, end, w); }

Tile shape(const HeadKernels& kernels, float) { return kernels.tile_f32; }
Tile shape(const HeadKernels& kernels, double) { return kernels.tile_f64; }

template <class T>
int64_t workspace_elements(const HeadArguments<T>& a, const HeadKernels& chosen, Tile shape) {
    const bool convert = a.storage == Storage::f16 || a.storage == Storage::bf16 || a.bf16;
    const int64_t buffers = (a.weights + a.queries() + 1) * head_tile(a) + 2 * a.sets() + 3 * a.outputs + 1;
    const int64_t dropped = a.masks ? static_cast<int64_t>(a.masks->features.size()) : 0;
    const int64_t panels = a.pairs ? 2 * chosen.bf16_elements(a.width) : convert ? a.width * kBlockRows : 0;
    return (buffers + dropped) * kBlockRows + panels + shape.columns * packed_steps(a.width, shape.lanes) * shape.lanes;
}

std::unique_ptr<const PackedPairs> packed_pairs(const HeadArguments<float>& a, const HeadKernels& chosen) {
    if (!a.bf16 || !chosen.bf16) return nullptr;
    return std::make_unique<PackedPairs>(a.weight, a.weights, a.query, a.queries(), a.masks, a.classes, a.width,
                                         pair_tile(a.classes));
}
std::unique_ptr<const PackedPairs> packed_pairs(const HeadArguments<double>&, const HeadKernels&) { return nullptr; }

template <class T>
void score(HeadArguments<T> a, int threads, const std::string& isa) {
    const HeadKernels chosen = kernels(isa);
    const Tile tile_shape = shape(chosen, T());
    std::unique_ptr<const PackedHead<T>> packed;
    const auto pairs = packed_pairs(a, chosen);
    a.pairs = pairs.get();
    if (!a.pairs && a.classes * a.width * static_cast<int64_t>(sizeof(T)) <= kPackBytes && a.classes <= kPackClasses) {
        const bool differences = a.loss == Loss::cross_entropy && a.classes > 1;
        packed = std::make_unique<PackedHead<T>>(a.weight, a.weights, a.query, a.queries(), a.bias, a.bias_sets, a.query_bias,
                                                 a.classes, a.width, differences, tile_shape);
        a.packed = packed.get();
        if (a.bias) a.bias = packed->bias.data();
        if (a.query_bias) a.query_bias = packed->query_bias.data();
    }
    const int64_t workspace = workspace_elements(a, chosen, tile_shape);
    parallel_rows(a.rows, kGrainRows, threads, [&](int64_t begin, int64_t end) {
        // Lanes past the last row of a short block are computed and thrown away; they must not be traps of uninitialised memory.
        thread_local std::vector<T> memory;
        if (static_cast<int64_t>(memory.size()) < workspace) memory.assign(static_cast<size_t>(workspace), T(0));
        run(chosen, a, begin, end, memory.data());
    });
}

}  // namespace

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
#if IPFAST_X86_VECTORS
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) names.emplace_back("avx512bf16");
    if (avx512) names.emplace_back("avx512");
    if (avx2) names.emplace_back("avx2");
#endif
    names.emplace_back("portable");
    return names;
}

void head_scores(const HeadArguments<float>& a, int threads, const std::string& isa) { score(a, threads, isa); }
void head_scores(const HeadArguments<double>& a, int threads, const std::string& isa) { score(a, threads, isa); }

}  // namespace ipfast
