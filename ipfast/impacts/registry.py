"""The table of impacts."""

from __future__ import annotations

from ..registry import Registry
from .base import Impact

IMPACTS: Registry[type[Impact]] = Registry("impact")
