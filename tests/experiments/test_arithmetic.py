"""In what networks are trained."""

import pytest
import torch

from ipfast.experiments import arithmetic

CUDA = torch.device("cuda")


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cards_that_emulate_bfloat16_do_not_train_in_it(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert arithmetic.narrow(CUDA) is expected


def test_on_a_gpu_float32_is_float32_and_convolutions_are_the_same_in_every_run():
    flags = torch.backends.cudnn
    before = flags.allow_tf32, flags.deterministic
    with arithmetic.exact(CUDA):
        assert (flags.allow_tf32, flags.deterministic, flags.benchmark) == (False, True, False)
    assert (flags.allow_tf32, flags.deterministic) == before
    with arithmetic.exact(torch.device("cpu")):
        assert (flags.allow_tf32, flags.deterministic) == before
