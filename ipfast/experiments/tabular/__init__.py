"""Section 7: an adversary moves test samples across the boundary of a logistic regression, and training data are curated.

bank.py, celeba.py, jigsaw.py, qnli.py   readers; files.py what is said of missing files, embeddings.py texts as numbers
problem.py     a data set in three parts        model.py   logistic regression
attack.py      which test samples are moved, and where to
defence.py     scores under attack, and training on what they leave
paper.py       the paper's numbers
experiment.py  the cells; report.py their tables, figures.py their pictures
"""

from .experiment import Tabular

EXPERIMENT = Tabular

__all__ = ["EXPERIMENT"]
