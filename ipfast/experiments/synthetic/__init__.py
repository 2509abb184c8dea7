"""Sections 3 and 4: when the inner product orders samples as influence does, and what leaving a sample out really does.

toys.py        two blobs and two moons, with flipped labels
models.py      what is trained on them, many copies at once
objectives.py  utility, fairness and robustness as functions of logits
oracle.py      Eq. (1) with the whole Hessian, by plain autograd
toy_run.py     one toy: trained, left out one by one, and scored
order.py       Table 3: which pairs of gradients keep their order
experiment.py  the cells and tables; figures.py draws them
"""

from .experiment import Synthetic

EXPERIMENT = Synthetic

__all__ = ["EXPERIMENT"]
