"""Options that several commands have, and what they say about them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Head = Annotated[Path, typer.Option(help=".safetensors or .npz with weight [C, d] and bias [C].")]
Features = Annotated[Path | None, typer.Option(help=".npy [N, d], of tokens [N, T, d]: inputs of the head; memory-mapped.")]
Labels = Annotated[Path | None, typer.Option(help=".npy [N], of tokens [N, T]: class indices; or targets [..., C].")]
Train = Annotated[Path | None, typer.Option(help=".npz or .safetensors with both, features and labels.")]
Val = Annotated[Path | None, typer.Option(help=".npz or .safetensors with trusted features and labels.")]
Loss = Annotated[str, typer.Option(help="auto (cross_entropy), bce_with_logits or mse.")]
Impact = Annotated[
    str,
    typer.Option(
        help="utility, adversarial; with --groups demographic_parity, equal_opportunity; with --pairs counterfactual."
    ),
]
Groups = Annotated[Path | None, typer.Option(help=".npy [M], the sensitive group of each row of --val.")]
Positive = Annotated[int | None, typer.Option(help="Of groups: number of the positive class; default: 1 of two.")]
Pairs = Annotated[Path | None, typer.Option(help=".npy [M, d], the counterpart of each row of --val.")]
ImpactOption = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE, once or more: gamma=1.3; signed=true, of=probability of groups; kind=logit_sq of pairs."),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE, once or more: members=10, rate=0.1, seed=1 of ip_ensemble; damping=0.01 of a curvature."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: cpu.")]
Tokens = Annotated[str, typer.Option(help="Of token data: mean or sum over a sequence, or each token.")]
