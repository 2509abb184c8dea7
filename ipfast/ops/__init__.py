"""The operations: arrays in, arrays out, no model. A documented contract for other front ends.

Each operation is one file here (meaning, checks, plain-torch reference), one in csrc/ (CPU) and one in kernels/ (GPU), all
with the same signature; layer_dot and layer_norm_sq have no C++, since on the CPU the library's products do their work.
CONTRACT_VERSION grows by one whenever an existing call would change its meaning.
"""

from ._head import BLOCK_ROWS
from ._layer import RouteChoice
from .affine_tangent import affine_tangent
from .dropout_mask import dropout_mask
from .head_dot import head_dot
from .head_norm import head_norm
from .layer_dot import layer_dot, select_dot_route
from .layer_norm_sq import layer_norm_sq, select_norm_route
from .token_norm import token_norm

CONTRACT_VERSION = 1

__all__ = [
    "BLOCK_ROWS",
    "CONTRACT_VERSION",
    "RouteChoice",
    "affine_tangent",
    "dropout_mask",
    "head_dot",
    "head_norm",
    "layer_dot",
    "layer_norm_sq",
    "select_dot_route",
    "select_norm_route",
    "token_norm",
]
