"""Logits of a linear head, by which samples are relabelled."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_finite_parameters
from ..data.files import read_head
from ..errors import InputTypeError
from .head_outputs import head_outputs


@torch.no_grad()
def head_logits(head: Any, features: Any) -> Tensor:
    """Logits z = W h + b of each sample, for `relabel` by "runner_up" and "rdia_soft".

    Args:
        head: a linear layer, or the path of an .npz or .safetensors file with `weight` [C, d] and, if there, `bias` [C].
        features: h [N, d], its inputs: an array, a tensor, or the path of an .npy file, or of an .npz or .safetensors file that
            holds `features`.

    Returns:
        [N, C], float64 for float64 features, else float32.

    Raises:
        InputError, InputTypeError: head is no linear layer, or of another width. NonFiniteError: a sample has NaN or infinite
            features.

    >>> head = torch.nn.Linear(2, 3)
    >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])), head.bias.data.copy_(torch.arange(3))
    >>> head_logits(head, torch.tensor([[4.0, 5.0]])).tolist()
    [[4.0, 6.0, 11.0]]
    """
    where = "head_logits"
    linear = read_head(where, head) if isinstance(head, (str, os.PathLike)) else head
    if not isinstance(linear, nn.Linear):
        raise InputTypeError(
            f"{where}: expected head to be an nn.Linear, or the path of one; got {type(head).__name__}. Of a "
            "scikit-learn classifier take the decision_function of the features in place of these logits."
        )
    check_finite_parameters(where, weight=linear.weight, bias=linear.bias)
    weight, bias = linear.weight, linear.bias

    def logits(h: Tensor) -> Tensor:
        return nn.functional.linear(h, weight.to(h), None if bias is None else bias.to(h))

    return head_outputs(where, features, linear.in_features, linear.out_features, logits)
