"""ipfast: which training samples help a model and which hurt it, from exact gradient inner products.

>>> import ipfast
>>> # scores = ipfast.score(model, train, val)           IP at the last layer, cross-entropy
>>> # scores.lowest(0.05)                                the 5 % most detrimental samples
>>> # keep = ipfast.curate.trim(scores, 0.05)            indices to train on again
"""

from . import curate, impacts, losses, ops
from .curvature import CG, EKFAC, Arnoldi, DataInf, Exact, Fitted, Identity, LiSSA, Source
from .dispatch import select_backend
from .engines import LayerShape, select_engine, select_ensemble
from .errors import (
    InputError,
    InputTypeError,
    IpfastError,
    IpfastWarning,
    MissingFileError,
    NonFiniteError,
    UnavailableError,
)
from .fit import fit
from .impacts import Adversarial, Counterfactual, DemographicParity, EqualOpportunity
from .methods import Control, Method, combinations
from .ops import dropout_mask
from .points import Checkpoints, Dropout, ExtraSGD, Final, Segments
from .query import query
from .query_file import Query
from .score import score
from .scorer import Scorer
from .scores import Scores

__version__ = "0.1.0"

__all__ = [
    "CG",
    "EKFAC",
    "Adversarial",
    "Arnoldi",
    "Checkpoints",
    "Control",
    "Counterfactual",
    "DataInf",
    "DemographicParity",
    "Dropout",
    "EqualOpportunity",
    "Exact",
    "ExtraSGD",
    "Final",
    "Fitted",
    "Identity",
    "InputError",
    "InputTypeError",
    "IpfastError",
    "IpfastWarning",
    "LayerShape",
    "LiSSA",
    "Method",
    "MissingFileError",
    "NonFiniteError",
    "Query",
    "Scorer",
    "Scores",
    "Segments",
    "Source",
    "UnavailableError",
    "__version__",
    "combinations",
    "curate",
    "dropout_mask",
    "fit",
    "impacts",
    "losses",
    "ops",
    "query",
    "score",
    "select_backend",
    "select_engine",
    "select_ensemble",
]
