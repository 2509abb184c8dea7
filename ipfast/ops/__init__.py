"""The operations: arrays in, arrays out, no model. A documented contract for other front ends.

Each operation is one file here (meaning, checks, plain-torch reference), one in csrc/ (CPU) and one in kernels/ (GPU), all
with the same signature. CONTRACT_VERSION grows by one whenever an existing call would change its meaning.
"""

from ._head import BLOCK_ROWS
from .dropout_mask import dropout_mask
from .head_dot import head_dot
from .head_norm import head_norm
from .token_norm import token_norm

CONTRACT_VERSION = 1

__all__ = ["BLOCK_ROWS", "CONTRACT_VERSION", "dropout_mask", "head_dot", "head_norm", "token_norm"]
