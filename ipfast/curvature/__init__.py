"""What stands for the inverse Hessian between the query and the training gradients."""

from .identity import Identity

__all__ = ["Identity"]
