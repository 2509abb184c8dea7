"""Section 5: images under the labels that people gave them. Train once, score, remove the lowest, train again.

problem.py     CIFAR-10N and CIFAR-100N with a clean hold-out, Animal-10N with one as people labelled it
networks.py    what is trained        training.py   how        architectures.py   how ViT and MLP-Mixer are
base_model.py  the network that is scored, with its checkpoints and features
scoring.py     every method on it     detection.py  how well scores find wrong labels
experiment.py  the cells; report.py their tables, paper.py what is beside them, figures.py their pictures
"""

from .experiment import Vision

EXPERIMENT = Vision

__all__ = ["EXPERIMENT"]
