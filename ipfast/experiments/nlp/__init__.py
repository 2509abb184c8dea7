"""Section 6: texts, and the same about other people. Fine-tune once, score for utility and fairness, remove, fine-tune again.

word_lists.py  words and their counterparts   rewriting.py  what is done with them
problem.py     a task of GLUE in its parts    texts.py      as tokens
classifier.py  what is fine-tuned             training.py   how
fairness.py    accuracy and fair score        base_model.py the classifier that is scored
scoring.py     every method on it
experiment.py  the cells; report.py their tables, figures.py their pictures
"""

from .experiment import Nlp

EXPERIMENT = Nlp

__all__ = ["EXPERIMENT"]
