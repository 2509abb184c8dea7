"""Scores of one batch by all parameters of a network, against inference on the same batch; queries are given."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ipfast.engines.explicit import ExplicitEngine
from ipfast.engines.forward import ForwardEngine
from ipfast.engines.ghost import GhostEngine
from ipfast.engines.network import Network
from ipfast.losses import CrossEntropy

from .. import gate
from ..bounds import Bound
from ..contender import Contender
from ..memory import Call
from ..networks import Samples, make_network
from ..record import Row

NAME = "model"
STANDARD_ROWS = {"cpu": {"resnet": 64, "minilm": 16, "gpt2": 16}, "cuda": {"resnet": 512, "minilm": 256, "gpt2": 128}}
QUERIES = 8
CHECKED = 4
"""Rows whose gradients the gate takes in float64."""

INFERENCE, JVP, FORWARD = "inference", "torch.func.jvp", "forward"
GHOST, GHOST_8, EIGHT, EXPLICIT = "ghost, 1 query", "ghost, 8 queries", "8 forward passes", "explicit"
GHOST_NORM, EXPLICIT_NORM = "ghost norm", "explicit norm"
MEANING = {
    INFERENCE: "model(x) under inference_mode, in eval mode",
    JVP: "torch.func.jvp of functional_call, attention in the form that has a forward derivative",
    FORWARD: "the forward engine, one query",
    GHOST: "the ghost engine, one query",
    GHOST_8: "the ghost engine, eight queries",
    EIGHT: "the forward engine, a pass for each of eight queries",
    EXPLICIT: "per-sample gradients by vmap(grad), or one by one where vmap does not take the network, times one query",
    GHOST_NORM: "‖∇ℓ_i‖² by the ghost engine",
    EXPLICIT_NORM: "‖∇ℓ_i‖² of per-sample gradients",
}


class Problem:
    """A network, a batch, and eight random queries, in which every layer counts.

    Args:
        name: of the network. samples: of the batch. sizes: of the network, where they are not the standard ones.
    """

    def __init__(self, name: str, samples: int, device: torch.device, **sizes: object) -> None:
        torch.backends.cudnn.allow_tf32 = False  # the gate is for float32, and torch's products are exact already
        model, batch = make_network(name, samples, **sizes)
        self.name, self.model, self.batch = name, model.to(device), batch.to(device)
        generator = torch.Generator().manual_seed(1)
        self.queries = {
            key: torch.empty(QUERIES, *value.shape).normal_(generator=generator).to(device)
            for key, value in model.named_parameters()
        }
        self.network = Network("bench", self.model, CrossEntropy(), params="all")

    def first(self, rows: int) -> Problem:
        """The same problem with the first samples only."""
        part = copy.copy(self)
        part.batch = self.batch[:rows]
        return part


def make_contenders(p: Problem) -> list[Contender]:
    """Everything that is timed. One engine a contender, so that each keeps its own plan."""
    single = {name: query[:1] for name, query in p.queries.items()}
    inputs: Tensor | tuple[Tensor, ...] = p.batch.inputs if len(p.batch.inputs) > 1 else p.batch.inputs[0]
    labels = p.network.prepare("bench", inputs, p.batch.labels, len(p.batch))
    theta = {name: value.detach() for name, value in p.model.named_parameters()}
    direction = {name: query[0] for name, query in p.queries.items()}
    forward, explicit = ForwardEngine(p.network), ExplicitEngine(p.network)
    ghost, ghost_8, ghost_norm = (GhostEngine(p.network) for _ in range(3))

    def inference() -> Tensor:
        with torch.inference_mode():
            z: Tensor = p.model(*p.batch.inputs)
        return z

    def losses(parameters: Mapping[str, Tensor]) -> Tensor:
        return p.batch.losses(lambda *given: torch.func.functional_call(p.model, dict(parameters), given))

    def jvp() -> Tensor:
        with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
            tangent: Tensor = torch.func.jvp(losses, (theta,), (direction,))[1]
        return tangent.unsqueeze(1)

    def one_pass() -> Tensor:
        return forward.dot(inputs, labels, single)

    return [
        Contender(INFERENCE, inference, memory=True),
        Contender(JVP, jvp, scores=True, memory=True),
        Contender(FORWARD, one_pass, scores=True, memory=True),
        Contender(GHOST, lambda: ghost.dot(inputs, labels, single), scores=True, memory=True),
        Contender(GHOST_8, lambda: ghost_8.dot(inputs, labels, p.queries), scores=True),
        Contender(EIGHT, one_pass, share=1 / QUERIES),
        Contender(EXPLICIT, lambda: explicit.dot(inputs, labels, single), scores=True, memory=True),
        Contender(GHOST_NORM, lambda: ghost_norm.norm_sq(inputs, labels).unsqueeze(1), scores=True, memory=True),
        Contender(EXPLICIT_NORM, lambda: explicit.norm_sq(inputs, labels).unsqueeze(1), scores=True),
    ]


class Truth:
    """Of a few samples and each parameter, in float64 from one backward pass a sample: ⟨q, ∇ℓ_i⟩ and Σ|q||∇ℓ_i| for each
    query and, last, for ∇ℓ_i itself.

    Args:
        queries: each [Q, *shape].
    """

    def __init__(self, model: nn.Module, samples: Samples, queries: Mapping[str, Tensor]) -> None:
        count = len(samples)
        self.rows = torch.linspace(0, count - 1, min(CHECKED, count)).long()  # the first, the last, and some in between
        exact, wide = copy.deepcopy(model).cpu().double(), samples.to(torch.device("cpu")).to(torch.float64)
        named = dict(exact.named_parameters())
        self.parts: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in named}
        for row in self.rows.tolist():
            gradients = torch.autograd.grad(wide[row : row + 1].losses(exact).sum(), list(named.values()))
            for name, gradient in zip(named, gradients, strict=True):
                against = [*queries[name].cpu(), gradient]
                terms = (query * gradient for query in against)
                dots, sizes = zip(*((term.sum(), term.abs().sum()) for term in terms), strict=True)
                self.parts[name][0].append(torch.stack(dots))
                self.parts[name][1].append(torch.stack(sizes))

    def of(self, names: list[str] | None = None) -> tuple[Tensor, Tensor]:
        """(scores, magnitudes) [rows, Q + 1] by these parameters; None: by all."""
        chosen = [self.parts[name] for name in (self.parts if names is None else names)]
        scores = torch.stack([torch.stack(dots) for dots, _ in chosen]).sum(dim=0)
        return scores, torch.stack([torch.stack(sizes) for _, sizes in chosen]).sum(dim=0)


def check_scores(p: Problem, truth: Truth, contender: Contender) -> None:
    """Raise gate.GateError if the scores of some samples are wrong."""
    got = contender.call()
    scores, magnitudes = truth.of()
    columns = [QUERIES] if contender.name in (GHOST_NORM, EXPLICIT_NORM) else list(range(got.shape[1]))
    for column, wanted in enumerate(columns):
        where = f"{NAME}, {p.name}, {contender.name}, query {column}"
        gate.check(where, got[:, column], truth.rows, scores[:, wanted], magnitudes[:, wanted])


def prepare_memory(contender: str, name: str, samples: int, threads: int) -> tuple[Call, Call]:
    """For memory.extra_peak_bytes: (the call on one sample, the call) of a contender."""
    torch.set_num_threads(threads)
    problem = Problem(name, samples, torch.device("cpu"))
    few, all_ = ({c.name: c.call for c in make_contenders(part)} for part in (problem.first(1), problem))
    return few[contender], all_[contender]


def bounds(rows: dict[str, Row]) -> list[Bound]:
    """What must hold on two CPU threads at the standard sizes."""
    sizes, first = rows[FORWARD].sizes, rows[FORWARD]
    name = sizes["network"]
    if sizes["rows"] != STANDARD_ROWS["cpu"][name] or first.device != "cpu" or first.threads != 2:
        return []

    def ratio(above: str, below: str) -> tuple[str, float]:
        return f"{above} / {below}", rows[above].seconds.p50 / rows[below].seconds.p50

    found = [
        Bound(*ratio(JVP, FORWARD), 1.1, "at least"),
        Bound(*ratio(EXPLICIT, FORWARD), 3, "at least"),
        Bound(*ratio(EXPLICIT_NORM, GHOST_NORM), 3, "at least"),
    ]
    most, least = {"resnet": 3.6, "minilm": 4.0}, {"resnet": 2.5, "minilm": 4}
    if name in most:
        found.insert(0, Bound(*ratio(FORWARD, INFERENCE), most[name], "at most"))
        found.append(Bound(*ratio(EIGHT, GHOST_8), least[name], "at least"))
    base, extra = rows[INFERENCE].extra_bytes, first.extra_bytes
    if base and extra is not None:
        found.append(Bound(f"extra memory of {FORWARD} / {INFERENCE}", extra / base, 3, "at most"))
    return found
