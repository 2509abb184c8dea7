"""The table of losses."""

from __future__ import annotations

from ..registry import Registry
from .base import Loss

LOSSES: Registry[type[Loss]] = Registry("loss")
