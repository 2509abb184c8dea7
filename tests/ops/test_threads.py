"""Threads of the C++ backend that the system does not give."""

import subprocess
import sys

import pytest

from ipfast import dispatch

WITHOUT_ROOM = """
import resource
import numpy as np
import importlib
_C = importlib.import_module("ipfast._C")
rng = np.random.default_rng(0)
h, y = rng.normal(size=(20000, 8)).astype(np.float32), np.zeros(20000, np.int64)
w = rng.normal(size=(1, 2, 8)).astype(np.float32)
out = np.empty((2, 20000, 1), np.float32)

def scores(into, threads):
    _C.head_dot(h, y, w, None, w, None, into, loss="cross_entropy", scale=1.0, threads=threads)

scores(out[0], 1)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 12 * 2**20,) * 2)  # a stack or two
scores(out[1], 64)
assert np.array_equal(out[0], out[1])
print("same scores")
"""


@pytest.mark.skipif(not dispatch.instruction_sets(), reason="needs the C++ extension")
@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of a process as Linux tells it")
def test_the_threads_that_there_are_do_the_work(tmp_path):
    # Elsewhere, where the installed package is found.
    done = subprocess.run([sys.executable, "-c", WITHOUT_ROOM], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same scores\n"
