"""ipfast demo: wrong labels in real images are found, trimmed, and the model trained again.

problem.py   features and labels, given and true
digits.py    scikit-learn's handwritten digits with flipped labels
cifar.py     CIFAR-10 with the labels that people gave it (CIFAR-10N)
compare.py   every method against the controls on such a problem
report.py    the table and the page
run.py       all of it
"""

from .run import run_demo

__all__ = ["run_demo"]
