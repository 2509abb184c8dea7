"""From scores to a training set: drop, relabel or reweight samples, and tell what changed."""

from .changes import report
from .combining import combine
from .curated import ACTIONS, Curated, apply
from .head_logits import head_logits
from .relabelling import label_scores, relabel
from .reports import Report
from .reweighting import reweight
from .training import WithLabels, sampler, subset
from .trimming import trim

__all__ = [
    "ACTIONS",
    "Curated",
    "Report",
    "WithLabels",
    "apply",
    "combine",
    "head_logits",
    "label_scores",
    "relabel",
    "report",
    "reweight",
    "sampler",
    "subset",
    "trim",
]
