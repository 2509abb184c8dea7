"""Networks of the vision experiment: bytes in, features and a linear layer at the end."""

from functools import partial

import pytest
import torch
from tolerances import FLOAT64_RELATIVE, assert_relative, assert_same_rounding

from ipfast.experiments.vision import networks

SIZES = {
    "convnet": 1.1e6,
    "resnet34": 21.3e6,
    "vit-4x128": 0.81e6,
    "mixer-4x128": 0.58e6,
    "vit-6x512": 19.0e6,
    "mixer-6x512": 12.8e6,
}


@pytest.fixture(autouse=True)
def _first_parameters():
    torch.manual_seed(0)


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("name", SIZES)
def test_networks_take_bytes_and_end_in_a_linear_layer(name, side):
    made = networks.NETWORKS[name](10, side).eval()
    assert sum(parameter.numel() for parameter in made.parameters()) == pytest.approx(SIZES[name], rel=0.03)
    x = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    before = x.clone()
    z = made(x)
    assert z.shape == (2, 10)
    assert torch.equal(x, before)
    assert isinstance(made[-1], torch.nn.Linear)
    assert torch.equal(made[-1](made[:-1](x)), z)
    assert_same_rounding(made(x[1:]), z[1:])  # a sample does not depend on the others


@pytest.mark.parametrize("make", [partial(networks.vit, heads=2), networks.mixer])
def test_networks_of_patches_learn_a_batch_by_heart(make):
    made = make(10, depth=2, width=32)
    x, y = torch.randint(0, 256, (32, 32, 32, 3), dtype=torch.uint8), torch.arange(32) % 10
    optimizer = torch.optim.AdamW(made.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(made(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in made.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("side", [32, 64])
def test_a_token_is_a_linear_map_of_one_patch(side):
    tokens = networks._Tokens(5, side).double()
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    found = tokens(x)
    assert found.shape == (2, 64, 5)
    patch = side // 8
    for place in (0, 9, 63):
        row, column = divmod(place, 8)
        part = x[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        truth = (part[:, None] * tokens.patches.weight[None]).sum(dim=(2, 3, 4)) + tokens.patches.bias
        assert_relative(found[:, place], truth, FLOAT64_RELATIVE)


def test_attention_is_its_formula():
    attention = networks._Attention(6, heads=2).double()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    q, k, v = (x @ w.T + b for w, b in zip(attention.inputs.weight.chunk(3), attention.inputs.bias.chunk(3), strict=True))
    mixed = torch.zeros_like(x)
    for sample in range(2):
        for head in (slice(0, 3), slice(3, 6)):
            for token in range(4):
                weights = torch.exp(k[sample, :, head] @ q[sample, token, head] / 3**0.5)
                mixed[sample, token, head] = (weights / weights.sum()) @ v[sample, :, head]
    assert_relative(attention(x), mixed @ attention.outputs.weight.T + attention.outputs.bias, FLOAT64_RELATIVE)


def test_a_mixer_mixes_places_alike_in_every_channel():
    mixing = networks._AcrossTokens(7).double()
    x = torch.randn(2, 64, 3, dtype=torch.float64)
    for channel in range(3):
        assert_relative(mixing(x)[:, :, channel], mixing.inside(x[:, :, channel]), FLOAT64_RELATIVE)


def test_positions_tell_patches_apart():
    """Without them the order of the patches makes no difference to a ViT."""
    made = networks.vit(10, depth=1, width=32, heads=2).eval()
    x = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    with pytest.raises(AssertionError, match="largest difference"):
        assert_same_rounding(made(x.roll(4, dims=1)), made(x))
    torch.nn.init.zeros_(made[2].of_place)
    assert_same_rounding(made(x.roll(4, dims=1)), made(x))
