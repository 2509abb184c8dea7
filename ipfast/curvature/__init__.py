"""What stands for the inverse Hessian between the query and the training gradients.

`base`: what a curvature needs of a model and its data, and what it gives; `head_problem`: that of a last layer;
`network_problem`: that of a whole network; one file for each curvature. `passes`: progress, and what an interrupted fit leaves;
`fitted`: factors that are kept.
"""

from .arnoldi import Arnoldi
from .base import Curvature, Factors, Gradients, PointCurvature, Problem, QuadraticFactors, StoredFactors
from .conjugate_gradients import CG
from .datainf import DataInf
from .ekfac import EKFAC, EKFACFactors
from .exact import Exact
from .features import TrainRows
from .fitted import Fitted, Kept
from .head_problem import HeadProblem, refuse_tokens
from .identity import Identity
from .lissa import LiSSA
from .network_problem import NetworkProblem
from .passes import Journal, Passes
from .source import Source

__all__ = [
    "CG",
    "EKFAC",
    "Arnoldi",
    "Curvature",
    "DataInf",
    "EKFACFactors",
    "Exact",
    "Factors",
    "Fitted",
    "Gradients",
    "HeadProblem",
    "Identity",
    "Journal",
    "Kept",
    "LiSSA",
    "NetworkProblem",
    "Passes",
    "PointCurvature",
    "Problem",
    "QuadraticFactors",
    "Source",
    "StoredFactors",
    "TrainRows",
    "refuse_tokens",
]
