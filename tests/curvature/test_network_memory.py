"""A curvature of a network of a million parameters holds vectors of them and a batch, and no gradient for each sample."""

import subprocess
import sys

import pytest
from tolerances import VECTORS_MEMORY

SAMPLES, PARAMETERS = 256, 1_000_000
"""Of a batch, and of the networks at least."""
CASES = [*(f"mlp-{name}" for name in ("datainf", "ekfac", "lissa", "cg", "self_ekfac")), "conv-datainf", "conv-ekfac"]

PROGRAM = """
import sys
import torch
from torch import nn
import ipfast
from ipfast import CG, EKFAC, DataInf, LiSSA, Method

samples, parameters = int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
torch.set_num_threads(1)
if sys.argv[1].startswith("conv"):
    sizes = [(3, 128), (128, 208), (208, 208), (208, 208)]
    layers = [layer for size in sizes for layer in (nn.Conv2d(*size, 3, stride=2, padding=1), nn.ReLU())]
    model, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(208, 10)).eval(), torch.randn(samples, 3, 16, 16)
else:
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)).eval()
    x = torch.randn(samples, 512)
assert sum(p.numel() for p in model.parameters()) >= parameters
y = torch.randint(0, 10, (samples,))
method = {
    "datainf": Method(curvature=DataInf()),
    "ekfac": Method(curvature=EKFAC()),
    "lissa": Method(curvature=LiSSA(steps=2, operator="ggn", damping=0.1, scale=100.0)),
    "cg": Method(curvature=CG(steps=2, ggn=True, damping=0.1)),
    "self_ekfac": Method(curvature=EKFAC(), target="self"),
}[sys.argv[1].split("-")[1]]


def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


val = (x[:32], y[:32])
data = ((x, y),) if method.target == "self" else ((x, y), val)
# What the libraries take when they are first used is not the curvature's.
few = ((x[:2], y[:2]),) if method.target == "self" else ((x[:2], y[:2]), val)
ipfast.score(model, *few, method="ip" if method.target == "val" else "self_tracin", params="all", progress=False)
before = peak()
scores = ipfast.score(model, *data, method=method, params="all", batch_size=samples, progress=False)
assert torch.isfinite(scores.values).all()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("case", CASES)
def test_no_gradients_of_samples_are_held(case):
    assert 4 * SAMPLES * PARAMETERS > 2 * VECTORS_MEMORY, "gradients of a batch must be larger, or the test cannot fail"
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, case, str(SAMPLES), str(PARAMETERS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < VECTORS_MEMORY, f"{int(done.stdout) / 2**20:.0f} MiB"
