"""Convolutions of more samples than are unfolded at once: the buffer that their patches share changes no score."""

import pytest
import torch
from networks import gradient_loop, images, products
from tolerances import FLOAT64_RELATIVE, assert_relative

from ipfast.engines.ghost import GhostEngine
from ipfast.engines.network import Network
from ipfast.layers import convolution
from ipfast.losses import CrossEntropy


@pytest.mark.parametrize("elements", [1, 5000])
def test_blocks_of_patches_give_the_scores_and_norms_of_autograd(elements, monkeypatch):
    model, x, y = images(7)
    monkeypatch.setattr(convolution, "PATCH_ELEMENTS", elements)
    network = Network("test", model, CrossEntropy(), params=["stem", "grouped", "point"])
    torch.manual_seed(1)
    q = {name: torch.randn(9, *value.shape).to(value) for name, value in network.parameters.items()}
    gradients = {name: g for name, g in gradient_loop(model, x, y).items() if name in q}
    engine = GhostEngine(network)
    assert_relative(engine.dot(x, y, q), products(gradients, q), FLOAT64_RELATIVE)
    truth = sum(g.flatten(1).square().sum(dim=1) for g in gradients.values())
    assert_relative(engine.norm_sq(x, y), truth, FLOAT64_RELATIVE)
