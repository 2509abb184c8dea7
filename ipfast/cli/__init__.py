"""The command line: ipfast score, query, curate, doctor, demo and experiment."""

from .app import app
from .curate import curate
from .programs import demo, doctor, experiment
from .query import query
from .score import score

__all__ = ["app", "curate", "demo", "doctor", "experiment", "query", "score"]
