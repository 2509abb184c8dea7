from typing import Any

def instruction_sets() -> list[str]: ...
def head_dot(
    features: Any,
    labels: Any,
    weight: Any,
    bias: Any | None,
    query_weight: Any,
    query_bias: Any | None,
    out: Any,
    *,
    loss: str,
    row_factor: Any | None = None,
    class_target: Any | None = None,
    targets: Any | None = None,
    pos_weight: Any | None = None,
    dropped: list[Any] | None = None,
    rescale: float = 1.0,
    bf16: bool = False,
    scale: float,
    threads: int,
    isa: str = "auto",
) -> None: ...
def head_norm(
    features: Any,
    labels: Any,
    weight: Any,
    bias: Any | None,
    out: Any,
    *,
    loss: str,
    row_factor: Any | None = None,
    class_target: Any | None = None,
    targets: Any | None = None,
    pos_weight: Any | None = None,
    output_weight: Any | None = None,
    bf16: bool = False,
    include_bias: bool,
    scale: float,
    threads: int,
    isa: str = "auto",
) -> None: ...
def dropout_mask(name: bytes, elements: int, *, rate: float, seed: int, member: int, threads: int) -> Any: ...
def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]: ...
def affine_tangent(
    x: Any, dx: Any | None, scale: Any, shift: Any, dscale: Any, dshift: Any, y: Any, dy: Any, *, threads: int
) -> None: ...
