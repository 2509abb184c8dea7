"""An experiment that counts: it notes every cell that it starts, and kills its process where it is told. Run by test_run.py."""

import os
import signal
import sys
from typing import ClassVar

from ipfast.experiments import run as runs
from ipfast.experiments.base import Experiment
from ipfast.experiments.cells import Cell


class Counting(Experiment):
    name = "synthetic"
    methods = ("ip", "loss", "random")
    seeds: ClassVar = {"small": (0, 1), "paper": (0,)}
    kill_at = None  # a cell
    version = 1

    @property
    def recipe(self):
        return {"version": self.version}

    def cells(self, methods, seeds):
        for seed in seeds:
            for setting in ("a", "b"):
                yield from (Cell("count", setting, method, seed) for method in methods)

    def check(self, cells):
        pass

    def run(self, cell):
        with open(self.surroundings.folder / "started", "a") as stream:
            stream.write(f"{cell}\n")
        if str(cell) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"value": len(cell.method) + cell.seed, "missing": float("nan")}

    def tables(self, records):
        yield f"{len(records)} cells"

    def draw(self, records, folder):
        yield from ()


def count(out, **options):
    """Run it in this process."""
    original, runs._experiment = runs._experiment, lambda _: Counting
    try:
        return runs.run_experiment("synthetic", out=out, progress=False, **{"echo": lambda _: None, **options})
    finally:
        runs._experiment = original


if __name__ == "__main__":
    Counting.kill_at = sys.argv[2] if len(sys.argv) > 2 else None
    count(sys.argv[1])
