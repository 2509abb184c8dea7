"""The experiments of arXiv 2405.17490, each one command: ipfast experiment NAME.

cells.py      what is run: a cell is one method at one setting with one seed
ledger.py     what has been run: a line a cell, in a file that survives being killed
pins.py       what a folder of results belongs to: a recipe, methods, data
kept_files.py what lies there and is read again; kept_scores.py  scores of it
base.py       what an experiment is
run.py        a run from start to tables and figures
selection.py  which cells a command asks for
machine.py    on what they are run
arithmetic.py in what networks are trained
checkpoints.py  those of the models that are scored
chosen.py     methods by their names in tables, with what an experiment gives them
intervals.py  means, spreads and paired differences
tables.py     Markdown            figures.py    PNG
synthetic/    sections 3 and 4: order consistency, influence against leaving out, on toy data
vision/       section 5: images under labels that people gave, CIFAR-10N, CIFAR-100N and Animal-10N
nlp/          section 6: accuracy and fairness of classifiers of texts, on tasks of GLUE
tabular/      section 7: tables and embeddings under an adaptive evasion attack
minilm.py     pretrained weights without a download
"""

from .run import EXPERIMENTS, run_experiment

__all__ = ["EXPERIMENTS", "run_experiment"]
