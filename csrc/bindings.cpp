// The Python face of the C++ backend: checks dtypes and shapes of NumPy arrays, releases the GIL, calls head_scores.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>

#include "affine_tangent.hpp"
#include "dropout_mask.hpp"
#include "head_dot.hpp"
#include "philox.hpp"

namespace py = pybind11;
using namespace ipfast;

namespace {

template <class T>
using Dense = py::array_t<T, py::array::c_style>;

Loss loss_of(const std::string& name) {
    if (name == "cross_entropy") return Loss::cross_entropy;
    if (name == "bce_with_logits") return Loss::bce_with_logits;
    if (name == "mse") return Loss::mse;
    throw py::value_error("loss: expected cross_entropy, bce_with_logits or mse; got " + name);
}

void require(bool condition, const char* message) {
    if (!condition) throw py::value_error(message);
}

// A C-contiguous array of exactly T, without a conversion that would copy silently.
template <class T>
Dense<T> dense(const py::object& value, const char* name) {
    if (!py::isinstance<Dense<T>>(value))
        throw py::type_error(std::string(name) + ": expected a C-contiguous array in the dtype of the computation");
    return py::reinterpret_borrow<Dense<T>>(value);
}

template <class T>
const T* data(const py::object& value, const char* name, std::initializer_list<int64_t> shape) {
    if (value.is_none()) return nullptr;
    const auto array = dense<T>(value, name);
    bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
    py::ssize_t axis = 0;
    for (const int64_t size : shape) fits = fits && array.shape(axis++) == size;
    if (!fits) throw py::value_error(std::string(name) + ": its shape does not fit the features and the weight");
    return array.data();
}

// What a head operation takes beside the features; None is an absent array.
struct HeadInput {
    py::object labels, weight, bias, query, query_bias, out, row_factor, class_target, targets, pos_weight, output_weight, dropped;
    std::string loss;
    bool bf16, include_bias;
    double rescale, scale;
    int threads;
    std::string isa;
};

std::vector<std::pair<const int64_t*, int64_t>> dropped_entries(const py::object& dropped, int64_t members, int64_t elements) {
    std::vector<std::pair<const int64_t*, int64_t>> result;
    for (const py::handle item : py::cast<py::list>(dropped)) {
        const auto index = dense<int64_t>(py::reinterpret_borrow<py::object>(item), "dropped");
        require(index.ndim() == 1, "dropped: expected flat indices");
        const int64_t *begin = index.data(), count = index.shape(0);
        for (int64_t e = 0; e < count; ++e)
            require(begin[e] >= 0 && begin[e] < elements && (e == 0 || begin[e - 1] < begin[e]), "dropped: expected ascending indices");
        result.emplace_back(begin, count);
    }
    require(static_cast<int64_t>(result.size()) == members, "dropped: expected one mask a query");
    return result;
}

template <class T>
void score(const py::array& features, Storage storage, const HeadInput& in) {
    HeadArguments<T> a{};
    a.rows = features.shape(0);
    a.width = features.shape(1);
    a.features = features.data();
    a.storage = storage;
    a.bf16 = in.bf16;
    require(a.width <= 1 || features.strides(1) == features.itemsize(), "features: expected a unit column stride");
    require(features.strides(0) % features.itemsize() == 0, "features: expected a row stride in whole elements");
    a.row_stride = features.strides(0) / features.itemsize();
    const auto w = dense<T>(in.weight, "weight");
    require(w.ndim() == 3 && w.shape(2) == a.width && w.shape(0) > 0 && w.shape(1) > 0, "weight: expected [L, C, d]");
    a.weights = w.shape(0);
    a.classes = w.shape(1);
    a.weight = w.data();
    const auto result = dense<T>(in.out, "out");
    require(result.ndim() == 2 && result.shape(0) == a.rows && result.shape(1) > 0 && result.writeable(), "out: expected [N, Q]");
    a.outputs = result.shape(1);
    a.out = const_cast<T*>(result.data());
    require(a.weights == 1 || a.weights == a.outputs, "weight: expected one, or one a query");
    a.query = data<T>(in.query, "query_weight", {a.outputs, a.classes, a.width});
    a.query_bias = data<T>(in.query_bias, "query_bias", {a.outputs, a.classes});
    a.bias_sets = in.bias.is_none() ? 1 : dense<T>(in.bias, "bias").shape(0);
    require(a.bias_sets == 1 || a.bias_sets == a.outputs, "bias: expected one, or one a query");
    a.bias = data<T>(in.bias, "bias", {a.bias_sets, a.classes});
    a.loss = loss_of(in.loss);
    if (a.loss == Loss::cross_entropy) {
        a.labels = data<int64_t>(in.labels, "labels", {a.rows});
        require(a.labels != nullptr, "labels: expected an array");
        for (int64_t i = 0; i < a.rows; ++i)
            if (a.labels[i] < 0 || a.labels[i] >= a.classes) throw py::value_error("labels: expected classes in 0..C-1");
        a.targets = data<T>(in.targets, "targets", {a.rows, a.classes});
        a.class_target = data<T>(in.class_target, "class_target", {a.classes});
        a.row_factor = data<T>(in.row_factor, "row_factor", {a.rows});
    } else {
        a.targets = data<T>(in.labels, "labels", {a.rows, a.classes});
        require(a.targets != nullptr, "labels: expected an array");
        a.pos_weight = data<T>(in.pos_weight, "pos_weight", {a.classes});
        a.output_weight = data<T>(in.output_weight, "output_weight", {a.classes});
    }
    a.include_bias = in.include_bias;
    a.scale = static_cast<T>(in.scale);
    std::unique_ptr<const Masks<T>> masks;
    if (!in.dropped.is_none()) {
        require(a.weights == 1 && a.query, "dropped: expected one weight and queries");
        const auto entries = dropped_entries(in.dropped, a.outputs, a.classes * a.width);
        masks = std::make_unique<Masks<T>>(entries, a.weight, a.classes, a.width, static_cast<T>(in.rescale));
        a.masks = masks.get();
    }
    py::gil_scoped_release release;
    head_scores(a, in.threads, in.isa);
}

void dispatch(const py::array& features, const HeadInput& in) {
    require(features.ndim() == 2, "features: expected [N, d]");
    const auto type = features.dtype();
    require(!in.bf16 || type.itemsize() < 8, "bf16: expected features of fewer than 64 bits");
    if (type.kind() == 'f' && type.itemsize() == 8) return score<double>(features, Storage::f64, in);
    if (type.kind() == 'f' && type.itemsize() == 4) return score<float>(features, Storage::f32, in);
    if (type.kind() == 'f' && type.itemsize() == 2) return score<float>(features, Storage::f16, in);
    if (type.kind() == 'u' && type.itemsize() == 2) return score<float>(features, Storage::bf16, in);
    throw py::type_error("features: expected float64, float32, float16, or bfloat16 as uint16");
}

// dropout_mask: no arrays come in, one goes out.
py::array_t<int64_t> dropout_mask(const std::string& name, int64_t elements, double rate, uint64_t seed, uint32_t member,
                                  int threads) {
    std::unique_ptr<const DropoutMask> mask;
    {
        py::gil_scoped_release release;
        mask = std::make_unique<DropoutMask>(MaskArguments{name, elements, rate, seed, member}, threads);
    }
    py::array_t<int64_t> out(mask->count());
    int64_t* const to = out.mutable_data();
    {
        py::gil_scoped_release release;
        mask->write(to, threads);
        mask.reset();
    }
    return out;
}

// Words of kPhiloxLanes counters from this one on, as the masks draw them.
std::vector<uint32_t> philox_words(const std::array<uint32_t, 4>& c, const std::array<uint32_t, 2>& key) {
    std::vector<uint32_t> words(kPhiloxWords);
    philox4x32(c[0], c[1], c[2], c[3], {key[0], key[1]}, words.data());
    return words;
}

void bind_dropout_mask(py::module_& m) {
    m.def("dropout_mask", &dropout_mask, py::arg("name"), py::arg("elements"), py::kw_only(), py::arg("rate"), py::arg("seed"),
          py::arg("member"), py::arg("threads"));
    m.def("philox4x32", &philox_words, py::arg("counter"), py::arg("key"));
}

template <class T>
void affine_tangent_of(const py::array& x, const py::object& dx, const py::object& scale, const py::object& shift,
                       const py::object& dscale, const py::object& dshift, const py::object& y, const py::object& dy, int threads) {
    require(x.ndim() == 3, "x: expected [B, C, positions]");
    const int64_t samples = x.shape(0), channels = x.shape(1), inner = x.shape(2);
    AffineTangent<T> in{samples * channels, channels, inner};
    in.x = data<T>(x, "x", {samples, channels, inner});
    in.dx = data<T>(dx, "dx", {samples, channels, inner});
    in.scale = data<T>(scale, "scale", {channels});
    in.shift = data<T>(shift, "shift", {channels});
    in.dscale = data<T>(dscale, "dscale", {channels});
    in.dshift = data<T>(dshift, "dshift", {channels});
    in.y = const_cast<T*>(data<T>(y, "y", {samples, channels, inner}));
    in.dy = const_cast<T*>(data<T>(dy, "dy", {samples, channels, inner}));
    require(in.scale && in.shift && in.dscale && in.dshift && in.y && in.dy, "affine_tangent: expected arrays");
    py::gil_scoped_release release;
    affine_tangent(in, threads);
}

void bind_affine_tangent(py::module_& m) {
    m.def(
        "affine_tangent",
        [](const py::array& x, const py::object& dx, const py::object& scale, const py::object& shift, const py::object& dscale,
           const py::object& dshift, const py::object& y, const py::object& dy, int threads) {
            const auto type = x.dtype();
            require(type.kind() == 'f' && (type.itemsize() == 4 || type.itemsize() == 8), "x: expected float32 or float64");
            auto* const run = type.itemsize() == 8 ? &affine_tangent_of<double> : &affine_tangent_of<float>;
            run(x, dx, scale, shift, dscale, dshift, y, dy, threads);
        },
        py::arg("x"), py::arg("dx"), py::arg("scale"), py::arg("shift"), py::arg("dscale"), py::arg("dshift"), py::arg("y"),
        py::arg("dy"), py::kw_only(), py::arg("threads"));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU kernels of ipfast; see ipfast.ops for their meaning and checks";
    m.def("instruction_sets", &instruction_sets, "Instruction sets this processor can run, best first.");
    m.def(
        "head_dot",
        [](const py::array& features, const py::object& labels, const py::object& weight, const py::object& bias,
           const py::object& query_weight, const py::object& query_bias, const py::object& out, const std::string& loss,
           const py::object& row_factor, const py::object& class_target, const py::object& targets, const py::object& pos_weight,
           const py::object& dropped, double rescale, bool bf16, double scale, int threads, const std::string& isa) {
            require(!query_weight.is_none(), "query_weight: expected an array");
            dispatch(features, {labels, weight, bias, query_weight, query_bias, out, row_factor, class_target, targets, pos_weight,
                                py::none(), dropped, loss, bf16, false, rescale, scale, threads, isa});
        },
        py::arg("features"), py::arg("labels"), py::arg("weight"), py::arg("bias"), py::arg("query_weight"),
        py::arg("query_bias"), py::arg("out"), py::kw_only(), py::arg("loss"), py::arg("row_factor") = py::none(),
        py::arg("class_target") = py::none(), py::arg("targets") = py::none(), py::arg("pos_weight") = py::none(),
        py::arg("dropped") = py::none(), py::arg("rescale") = 1.0, py::arg("bf16") = false, py::arg("scale"),
        py::arg("threads"), py::arg("isa") = "auto");
    m.def(
        "head_norm",
        [](const py::array& features, const py::object& labels, const py::object& weight, const py::object& bias,
           const py::object& out, const std::string& loss, const py::object& row_factor, const py::object& class_target,
           const py::object& targets, const py::object& pos_weight, const py::object& output_weight, bool bf16, bool include_bias,
           double scale, int threads, const std::string& isa) {
            dispatch(features, {labels, weight, bias, py::none(), py::none(), out, row_factor, class_target, targets, pos_weight,
                                output_weight, py::none(), loss, bf16, include_bias, 1.0, scale, threads, isa});
        },
        py::arg("features"), py::arg("labels"), py::arg("weight"), py::arg("bias"), py::arg("out"), py::kw_only(),
        py::arg("loss"), py::arg("row_factor") = py::none(), py::arg("class_target") = py::none(),
        py::arg("targets") = py::none(), py::arg("pos_weight") = py::none(), py::arg("output_weight") = py::none(),
        py::arg("bf16") = false, py::arg("include_bias"), py::arg("scale"), py::arg("threads"), py::arg("isa") = "auto");
    bind_dropout_mask(m);
    bind_affine_tangent(m);
}
