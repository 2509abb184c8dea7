// The Python face of the C++ backend: checks dtypes and shapes of NumPy arrays, releases the GIL, calls head_scores.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "head_dot.hpp"

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

template <class T>
void score(const py::array& features, Storage storage, const py::object& labels, const py::object& weight,
           const py::object& bias, const py::object& query, const py::object& query_bias, const py::object& out, Loss loss,
           bool include_bias, double scale, int threads, const std::string& isa) {
    HeadArguments<T> a{};
    a.rows = features.shape(0);
    a.width = features.shape(1);
    const auto w = dense<T>(weight, "weight");
    require(w.ndim() == 2 && w.shape(1) == a.width && w.shape(0) > 0, "weight: expected [C, d] with the d of the features");
    a.classes = w.shape(0);
    a.features = features.data();
    a.storage = storage;
    require(a.width <= 1 || features.strides(1) == features.itemsize(), "features: expected a unit column stride");
    require(features.strides(0) % features.itemsize() == 0, "features: expected a row stride in whole elements");
    a.row_stride = features.strides(0) / features.itemsize();
    a.weight = w.data();
    a.bias = data<T>(bias, "bias", {a.classes});
    a.query = data<T>(query, "query_weight", {a.classes, a.width});
    a.query_bias = data<T>(query_bias, "query_bias", {a.classes});
    if (loss == Loss::cross_entropy) {
        a.labels = data<int64_t>(labels, "labels", {a.rows});
        require(a.labels != nullptr, "labels: expected an array");
        for (int64_t i = 0; i < a.rows; ++i)
            if (a.labels[i] < 0 || a.labels[i] >= a.classes) throw py::value_error("labels: expected classes in 0..C-1");
    } else {
        a.targets = data<T>(labels, "labels", {a.rows, a.classes});
        require(a.targets != nullptr, "labels: expected an array");
    }
    const auto result = dense<T>(out, "out");
    require(result.ndim() == 1 && result.shape(0) == a.rows && result.writeable(), "out: expected a writeable array [N]");
    a.out = const_cast<T*>(result.data());
    a.loss = loss;
    a.include_bias = include_bias;
    a.scale = static_cast<T>(scale);
    py::gil_scoped_release release;
    head_scores(a, threads, isa);
}

void dispatch(const py::array& features, const py::object& labels, const py::object& weight, const py::object& bias,
              const py::object& query, const py::object& query_bias, const py::object& out, const std::string& loss,
              bool include_bias, double scale, int threads, const std::string& isa) {
    require(features.ndim() == 2, "features: expected [N, d]");
    const auto type = features.dtype();
    const auto call = [&](auto zero, Storage storage) {
        score<decltype(zero)>(features, storage, labels, weight, bias, query, query_bias, out, loss_of(loss), include_bias,
                              scale, threads, isa);
    };
    if (type.kind() == 'f' && type.itemsize() == 8) return call(double{}, Storage::f64);
    if (type.kind() == 'f' && type.itemsize() == 4) return call(float{}, Storage::f32);
    if (type.kind() == 'f' && type.itemsize() == 2) return call(float{}, Storage::f16);
    if (type.kind() == 'u' && type.itemsize() == 2) return call(float{}, Storage::bf16);
    throw py::type_error("features: expected float64, float32, float16, or bfloat16 as uint16");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU kernels of ipfast; see ipfast.ops for their meaning and checks";
    m.def("instruction_sets", &instruction_sets, "Instruction sets this processor can run, best first.");
    m.def(
        "head_dot",
        [](const py::array& features, const py::object& labels, const py::object& weight, const py::object& bias,
           const py::object& query_weight, const py::object& query_bias, const py::object& out, const std::string& loss,
           double scale, int threads, const std::string& isa) {
            require(!query_weight.is_none(), "query_weight: expected an array");
            dispatch(features, labels, weight, bias, query_weight, query_bias, out, loss, false, scale, threads, isa);
        },
        py::arg("features"), py::arg("labels"), py::arg("weight"), py::arg("bias"), py::arg("query_weight"),
        py::arg("query_bias"), py::arg("out"), py::kw_only(), py::arg("loss"), py::arg("scale"), py::arg("threads"),
        py::arg("isa") = "auto");
    m.def(
        "head_norm",
        [](const py::array& features, const py::object& labels, const py::object& weight, const py::object& bias,
           const py::object& out, const std::string& loss, bool include_bias, double scale, int threads,
           const std::string& isa) {
            dispatch(features, labels, weight, bias, py::none(), py::none(), out, loss, include_bias, scale, threads, isa);
        },
        py::arg("features"), py::arg("labels"), py::arg("weight"), py::arg("bias"), py::arg("out"), py::kw_only(),
        py::arg("loss"), py::arg("include_bias"), py::arg("scale"), py::arg("threads"), py::arg("isa") = "auto");
}
