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
    include_bias: bool,
    scale: float,
    threads: int,
    isa: str = "auto",
) -> None: ...
