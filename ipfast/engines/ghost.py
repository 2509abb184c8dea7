"""The ghost engine: scores from one forward pass and one backward pass to the layers' outputs; no weight gradient is formed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import InputError, UnavailableError
from ..layers import Kept, Shared, shared_norm_sq, wide
from ..losses import Loss
from .explicit import ExplicitEngine
from .forward import ForwardEngine
from .layer_plan import ELSEWHERE, Plan, Use, input_of, make_plan, sizes_of
from .network import Network, Parameters
from .outputs import rows_of, samples
from .running import without_fast_path
from .watch import ORDER, Watch

CHECKED = 4.0
"""Roots of eps by which a plan may differ from forward mode: far more than rounding, far less than a mistake."""
CHECKED_SAMPLES = 8

OTHERS = "other parameters"
"""In `by_layer`: all that is not taken layer by layer, where it is not asked for by layer."""

Visit = Callable[[Use, Kept, Tensor], None]


@dataclass(frozen=True)
class Captured:
    """One call of a layer: what was kept of its input, and the cotangents b of its output.

    Attributes:
        names: its own parameter names -> those of the network, of the parameters that are taken layer by layer.
    """

    use: Use
    names: dict[str, str]
    kept: Kept
    b: Tensor


class GhostEngine:
    """⟨q, ∇ℓ_i⟩ = Σ_layers ⟨V, Σ_t b_it a_itᵀ⟩ from the inputs a of the layers and the cotangents b of their outputs.

    The contraction of a layer is done inside the backward pass, which then drops a and b. Nothing before the first scored
    layer is differentiated. Cost: two products where inference takes one, and one more for any number of queries that is small
    beside the number of positions. Parameters without a rule go through forward mode (for norms, through explicit gradients).

    Args:
        network: the losses as a function of the scored parameters.
        by: "layer" also takes the remaining parameters layer by layer, each in one forward-mode pass a query; None: together.
            "token" keeps apart what is at the positions of sequences [B, T], in `by_token`; scores only.

    Attributes:
        by_layer: the last batch's scores [B, Q] of the parameters of each layer; they add up to the scores, with those of
        by_token: [B, T, Q] of the layers that work position by position, which are left out of by_layer.
    """

    name = "ghost"

    def __init__(self, network: Network, *, by: str | None = None) -> None:
        self.network, self.by = network, by
        self.by_layer: dict[str, Tensor] = {}
        self.by_token: Tensor | None = None
        self._plan: Plan | None = None
        self._seen = 0  # samples that the plan was made from
        self._narrow: torch.dtype | None = None  # of a layer's output, where it is narrower than its parameters
        self._held: dict[str, tuple[int, int]] = {}  # shortest and longest that each dimension was when the plan was checked

    def plan(self, inputs: Any, labels: Any) -> Plan:
        """How each parameter is taken, found by running the network on one sample and on two.

        A batch that shows what these did not (a layer called again, or on something else than the samples, samples in another
        order, a parameter used elsewhere) amends it, and one whose samples are longer or shorter than all before holds it to
        forward mode again.
        """
        count = samples(inputs) or 1
        few = slice(0, min(2, count))
        if self._plan is None or self._seen < min(2, count):
            self._seen, self._held = min(2, count), {}
            self._plan = make_plan(self.network, rows_of(inputs, few, count), rows_of(labels, few, count))
        if self._widened(inputs):
            # Backwards too: what brings samples into an order of its own may leave them as they are in one of the two.
            some = torch.arange(min(CHECKED_SAMPLES, count))
            for rows in (some, some.flip(0)) if count > 1 else (some,):
                self._check(rows_of(inputs, rows, count), rows_of(labels, rows, count))
        return self._plan

    def _widened(self, inputs: Any) -> bool:
        """Whether a dimension of a batch is longer or shorter than it was in all before; it is counted in from then on.

        Few batches are, so that a check of each costs little: of n lengths in random order about 2·log n.
        """
        widened = False
        for place, size in _dimensions(inputs):
            low, high = self._held.get(place, (size, size))
            widened |= place not in self._held or not low <= size <= high
            self._held[place] = min(low, size), max(high, size)
        return widened

    def _check(self, inputs: Any, labels: Any) -> None:
        """Hold the plan to forward mode on a few samples, or to explicit gradients where that has no formula.

        What a network does between its layers cannot be seen from them, so a plan that is wrong (samples mixed or not in the
        first dimension) is replaced by forward mode. Compared in full precision, where a difference is a mistake.
        """
        plan, network = self._plan, copy.copy(self.network)
        assert plan is not None
        network.precision = None
        engine = GhostEngine(network)
        engine._plan, engine._seen, engine._held = plan, self._seen, self._held
        generator = torch.Generator().manual_seed(0)
        for suspects in ([use for use in plan.uses if use.spread], plan.uses):
            taken = [full for use in plan.uses for full in use.names.values()]
            query = {
                name: torch.randn(value.shape, generator=generator).to(value)[None] * value.square().mean().sqrt()
                for name, value in network.parameters.items()
                if name in taken
            }
            if not query:
                return
            try:
                expected = ForwardEngine(network).dot(inputs, labels, query)
            except UnavailableError:
                expected = ExplicitEngine(network.only(list(query)), loop=True).dot(inputs, labels, query)
            try:
                found = engine.dot(inputs, labels, query)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # such as of a layer that is called on another number of samples each time
                found, sizes = torch.full_like(expected, torch.nan), torch.zeros_like(expected)
            else:
                sizes = engine._summed(inputs, 1, absolute=True)
            share = torch.finfo(next(iter(query.values())).dtype).eps ** 0.5
            if engine._narrow is not None:  # the network enters autocast by itself, and rounds alike in both
                share = max(share, torch.finfo(engine._narrow).eps)
            allowed = CHECKED * share * sizes
            if bool(((found - expected).abs() <= allowed).all()):
                return
            why = "its layer's part of the score is not the derivative along the query"
            plan.remainder |= {full: why for use in suspects for full in use.names.values()}
            plan.uses = [use for use in plan.uses if use not in suspects]

    def captured(self, inputs: Any, labels: Any, *, at: Parameters | None = None) -> list[Captured]:
        """The calls of all layers with scored parameters in a batch, the last one first; parameters of the plan's remainder are
        not among them."""
        plan = self.plan(inputs, labels)
        found: list[Captured] = []

        def visit(use: Use, kept: Kept, b: Tensor) -> None:
            names = {short: full for short, full in use.names.items() if full not in plan.remainder}
            if names:
                found.append(Captured(use, names, kept, b))

        taken = set(self.network.parameters) - set(plan.remainder)
        self._backward(plan, taken, inputs, labels, at or {}, visit, found.clear)
        return found

    def over(self, network: Network) -> GhostEngine:
        """An engine by the same plan for the network with another loss."""
        other = GhostEngine(network)
        other._plan, other._seen = self._plan, self._seen
        return other

    def dot(self, inputs: Any, labels: Any, queries: Mapping[str, Tensor], *, at: Parameters | None = None) -> Tensor:
        """Scores [B, Q] of a batch; arguments as those of ForwardEngine.dot."""
        plan = self.plan(inputs, labels)
        self._restart()
        positions = _positions(inputs) if self.by == "token" else None

        def visit(use: Use, kept: Kept, b: Tensor) -> None:
            taken = [name for name, full in use.names.items() if full in queries and full not in plan.remainder]
            for layer, names in _by_layer(taken, use.names):
                own = {name: queries[use.names[name]] for name in names}
                if positions is not None and _by_position(use, kept, b, positions):
                    each = use.rule.dot(use.module, (kept[0].flatten(0, 1), *kept[1:]), b.flatten(0, 1), own)
                    part = each.view(*positions, -1)
                    self.by_token = part if self.by_token is None else self.by_token + part
                else:
                    self._add(layer, use.rule.dot(use.module, kept, b, own))

        self._backward(plan, set(queries) - set(plan.remainder), inputs, labels, at or {}, visit, self._restart)
        rest = {name: query for name, query in queries.items() if name in plan.remainder}
        for layer, names in self._apart(list(rest)):
            self._add(layer, self._otherwise(inputs, labels, {name: rest[name] for name in names}, at))
        return self._summed(inputs, len(next(iter(queries.values()))))

    def norm_sq(self, inputs: Any, labels: Any, *, at: Parameters | None = None) -> Tensor:
        """‖∇ℓ_i‖² [B]"""
        plan = self.plan(inputs, labels)
        self._restart()

        shared: dict[str, list[Shared]] = {}

        def visit(use: Use, kept: Kept, b: Tensor) -> None:
            own = {name: full for name, full in use.names.items() if full not in plan.remainder and not plan.forms(full)}
            for name, full in own.items():
                if full in plan.repeated:
                    shared.setdefault(full, []).append(Shared(use.rule, use.module, name, kept, b))
            for layer, names in _by_layer([name for name, full in own.items() if full not in plan.repeated], own):
                self._add(layer, use.rule.norm_sq(use.module, kept, b, names))

        def restart() -> None:
            self._restart()
            shared.clear()

        taken = {name for name in self.network.parameters if name not in plan.remainder and not plan.forms(name)}
        self._backward(plan, taken, inputs, labels, at or {}, visit, restart)
        with torch.no_grad():
            for full, uses in shared.items():
                self._add(layer_of(full), shared_norm_sq(uses))
        rest = [name for name in self.network.parameters if name in plan.remainder or plan.forms(name)]
        for layer, names in self._apart(rest):
            self._add(layer, ExplicitEngine(self.network.only(names)).norm_sq(inputs, labels, at=at))
        return self._summed(inputs)

    @property
    def layers(self) -> list[str]:
        """Names of the layers that hold scored parameters, in the model's order; of tied ones, the first that does."""
        return list(dict.fromkeys(map(layer_of, self.network.parameters)))

    def layered(self, inputs: Any, *queries: int) -> Tensor:
        """by_layer as one tensor [B, L, *queries], with zeros for layers that take no part in these losses."""
        nothing = torch.zeros(samples(inputs) or 1, *queries, dtype=self.network.dtype, device=self.network.device)
        return torch.stack([wide(self.by_layer.get(layer, nothing)) for layer in self.layers], dim=1)

    def tokenwise(self, inputs: Any, *queries: int) -> Tensor:
        """[B, 1 + T, *queries]: what is at no position, then by_token. They add up to the scores."""
        positions = _positions(inputs)
        if positions is None or self.by_token is None:
            given = "no inputs [B, T]" if positions is None else f"none among the scored ones, of T={positions[1]}"
            raise InputError(
                f"{self.network.where}: expected layers that work position by position on sequences [B, T], with by='token'; "
                f"got {given}. Leave by out."
            )
        rest = self._summed_layers(inputs, *queries)
        return torch.cat([rest[:, None], wide(self.by_token)], dim=1)

    @property
    def elsewhere(self) -> list[str]:
        """Names of the layers whose part in the last scores is at no position."""
        found = [name for name in self.by_layer if name != OTHERS]
        if OTHERS in self.by_layer and self._plan is not None:
            found += map(layer_of, self._plan.remainder)
        return [layer for layer in self.layers if layer in found]

    def _restart(self) -> None:
        self.by_layer, self.by_token = {}, None

    def _add(self, layer: str, part: Tensor) -> None:
        before = self.by_layer.get(layer)
        self.by_layer[layer] = part if before is None else before + part

    def _apart(self, names: list[str]) -> Iterable[tuple[str, list[str]]]:
        """Parameters that are not taken by rules, in the parts that they are taken in."""
        if self.by == "layer":
            return _by_layer(names)
        return [(OTHERS, names)] if names else []

    def _summed(self, inputs: Any, *queries: int, absolute: bool = False) -> Tensor:
        """The sum of all parts."""
        total = self._summed_layers(inputs, *queries, absolute=absolute)
        return total if self.by_token is None else total + wide(self.by_token).sum(dim=1)

    def _summed_layers(self, inputs: Any, *queries: int, absolute: bool = False) -> Tensor:
        """The sum of by_layer; zeros [B, *queries] where there is none."""
        parts = [wide(part) for part in self.by_layer.values()]
        if not parts:
            return torch.zeros(samples(inputs) or 1, *queries, dtype=self.network.dtype, device=self.network.device)
        return torch.stack([part.abs() if absolute else part for part in parts]).sum(dim=0)

    def _otherwise(self, inputs: Any, labels: Any, queries: Mapping[str, Tensor], at: Parameters | None) -> Tensor:
        try:
            return ForwardEngine(self.network).dot(inputs, labels, queries, at=at)
        except UnavailableError as error:
            raise UnavailableError(
                f"{self.network.where}, engine='ghost': expected layers with a rule, or with a forward derivative; "
                f"{', '.join(queries)} have neither. Leave them out of params, or use engine='explicit'."
            ) from error

    def _backward(
        self,
        plan: Plan,
        names: Set[str],
        inputs: Any,
        labels: Any,
        at: Parameters,
        visit: Visit,
        restart: Callable[[], None],
    ) -> None:
        """Visit every use of a layer that has parameters of these `names` with its input and the cotangent of its output."""
        while uses := [use for use in plan.uses if not names.isdisjoint(use.names.values())]:
            changed: list[Use] = []
            # The caller's autocast is not the network's precision, and would narrow the products of the layers' rules.
            plain = torch.autocast(self.network.device.type, enabled=False)
            with without_fast_path(), torch.enable_grad(), plain:
                self._pass(plan, uses, inputs, labels, at, visit, changed)
            if not changed:
                return
            for use in changed:
                use.copy_input = True
            restart()

    def _pass(
        self, plan: Plan, uses: list[Use], inputs: Any, labels: Any, at: Parameters, visit: Visit, changed: list[Use]
    ) -> None:
        network, count = self.network, samples(inputs) or 1
        theta = {**{name: value.detach() for name, value in network.every().items()}, **at}
        anchors: list[Tensor] = []
        called: set[str] = set()
        own = [full for use in uses for full in use.names.values() if full not in plan.remainder]
        watch = Watch({id(theta[full]): full for full in own}, count)

        def reached(use: Use, kept: Kept, version: int, b: Tensor) -> None:
            if kept[0]._version != version:
                changed.append(use)
            elif not changed:
                with torch.no_grad():
                    visit(use, kept, b)

        def before(use: Use, _module: nn.Module, _arguments: Any) -> None:
            watch.inside.append(set(use.names.values()))

        def after(use: Use, module: nn.Module, arguments: Any, keywords: Any, output: Tensor) -> Tensor:
            watch.inside.pop()
            if not torch.is_grad_enabled():  # the network takes this output as constant
                return output
            plan.repeated.update(called.intersection(use.names.values()))
            called.update(use.names.values())
            if output.dtype in (torch.bfloat16, torch.float16):
                self._narrow = output.dtype
            a, sizes = input_of(arguments, keywords).detach(), sizes_of(arguments, keywords, output)
            if sizes != [count, count] and not (use.spread and sizes == [1, 1]):
                plan.remainder |= dict.fromkeys(use.names.values(), ELSEWHERE)
                return output
            if sizes != [count, count]:  # one for all samples, as of position embeddings: give it to each
                a, output = a.expand(count, *a.shape[1:]), output.expand(count, *output.shape[1:])
            kept = use.rule.capture(module, a.clone() if use.copy_input else a)
            if not output.requires_grad:
                anchors.append(torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True))
                output = output + anchors[-1]
            # A hook that is there before a change in place gets the gradient with respect to the value before it.
            output.register_hook(partial(reached, use, kept, kept[0]._version))  # type: ignore[no-untyped-call]
            return output

        # Before hooks of the model's own, which may change the output.
        handles = [use.module.register_forward_hook(partial(after, use), with_kwargs=True, prepend=True) for use in uses]
        handles += [use.module.register_forward_pre_hook(partial(before, use)) for use in uses]
        try:
            # The library's own losses look up weights of classes, and no samples.
            with watch.over(network.structure) if isinstance(network.loss, Loss) else watch:
                losses = network.losses(theta, inputs, labels)
            plan.remainder |= {full: f"used by {function}, outside of its layer" for full, function in watch.outside.items()}
            if watch.reordered:
                plan.remainder |= dict.fromkeys(own, ORDER)
            if anchors and losses.requires_grad:
                torch.autograd.grad(losses.sum(), anchors, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()


def layer_of(name: str) -> str:
    """The layer that holds a parameter, as `named_modules` calls it: "" is the model itself."""
    return name.rpartition(".")[0]


def _by_layer(names: list[str], full: Mapping[str, str] | None = None) -> Iterable[tuple[str, list[str]]]:
    """The names in parts, one for each layer that holds the parameters; `full` gives them their names in the network."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(layer_of(name if full is None else full[name]), []).append(name)
    return found.items()


def _dimensions(inputs: Any) -> Iterable[tuple[str, int]]:
    """A name and the length of each dimension of the samples in a batch, and of how many tensors there are."""
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    yield "tensors", len(leaves)
    for index, leaf in enumerate(leaves):
        yield f"dimensions of {index}", leaf.dim()
        yield from ((f"{axis} of {index}", size) for axis, size in enumerate(leaf.shape[1:], 1))


def _positions(inputs: Any) -> tuple[int, int] | None:
    """(B, T) of a batch of sequences, [B, T] or [B, T, d]: the first two dimensions of its first tensor that has them."""
    first = next((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim() > 1), None)
    return None if first is None else (first.shape[0], first.shape[1])


def _by_position(use: Use, kept: Kept, b: Tensor, positions: tuple[int, int]) -> bool:
    """Whether a layer works position by position on the sequences: on [B, T] or [B, T, d], and gives [B, T, d]."""
    return b.dim() == 3 and use.rule.by_position(use.module) and kept[0].shape[:2] == b.shape[:2] == positions
