"""affine_tangent against its definition in float64, written out element by element."""

import pytest
import torch
from tolerances import assert_within_rule

from ipfast import dispatch, ops
from ipfast.errors import InputError

BACKENDS = ("reference", *(("cpp",) if dispatch.has_extension() else ()))


def case(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    return [random(*shape), random(*shape), *(random(shape[1]) for _ in range(4))]


def truth(x, dx, *factors):
    a, c, da, dc = (f.double().reshape(1, -1, *[1] * (x.dim() - 2)) for f in factors)
    x, dx = x.double(), torch.zeros_like(x).double() if dx is None else dx.double()
    return (a * x + c, a * dx + da * x + dc), (
        (a * x).abs() + c.abs(),
        (a * dx).abs() + (da * x).abs() + dc.abs(),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (1, 1, 1), (2, 7, 13), (5, 3, 4, 9), (2, 2, 300, 301), (0, 3, 2), (4, 3, 0)])
@pytest.mark.parametrize("moves", [True, False])
def test_values_and_derivatives_are_those_of_the_definition(backend, dtype, shape, moves):
    x, dx, *factors = case(shape, dtype)
    dx = dx if moves else None
    values, sizes = truth(x, dx, *factors)
    for got, plain, value, size in zip(
        ops.affine_tangent(x, dx, *factors, backend=backend),
        ops.affine_tangent(x, dx, *factors, backend="reference"),
        values,
        sizes,
        strict=True,
    ):
        assert got.shape == x.shape
        if got.numel():
            assert_within_rule(got.flatten(), value.flatten(), plain.flatten(), size.flatten(), torch.finfo(dtype).eps)


def test_other_layouts_and_dtypes_are_computed_by_torch():
    x, dx, *factors = case((2, 4, 6, 5), torch.float32)
    turned = x.to(memory_format=torch.channels_last)
    assert torch.equal(ops.affine_tangent(turned, dx, *factors)[1], ops.affine_tangent(x, dx, *factors, backend="reference")[1])
    half = [t.bfloat16() for t in (x, dx, *factors)]
    assert ops.affine_tangent(*half)[0].dtype == torch.bfloat16


def test_what_does_not_fit_is_refused():
    x, dx, *factors = case((2, 4, 6), torch.float32)
    with pytest.raises(InputError, match=r"Put the channels second"):
        ops.affine_tangent(x.transpose(1, 2), dx, *factors)
    with pytest.raises(InputError, match="backend='auto'"):
        ops.affine_tangent(x.half(), dx, *factors, backend="cpp")
