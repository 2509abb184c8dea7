"""What stands for the inverse Hessian between the query and the training gradients.

`base`: what a curvature needs of a model and its data, and what it gives; `head_problem`: that of a last layer; one file for
each curvature.
"""

from .arnoldi import Arnoldi
from .base import Curvature, Factors, Gradients, Problem
from .conjugate_gradients import CG
from .datainf import DataInf
from .ekfac import EKFAC
from .exact import Exact
from .head_problem import HeadProblem
from .identity import Identity
from .lissa import LiSSA
from .source import Source

__all__ = [
    "CG",
    "EKFAC",
    "Arnoldi",
    "Curvature",
    "DataInf",
    "Exact",
    "Factors",
    "Gradients",
    "HeadProblem",
    "Identity",
    "LiSSA",
    "Problem",
    "Source",
]
