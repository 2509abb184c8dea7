"""The command line: ipfast score, curate, doctor, demo and experiment."""

from .app import app
from .curate import curate
from .programs import demo, doctor, experiment
from .score import score

__all__ = ["app", "curate", "demo", "doctor", "experiment", "score"]
