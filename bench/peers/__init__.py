"""Other libraries that compute gradient inner products, one file each: the whole job as their users write it."""

from __future__ import annotations

from . import captum, dattri, kronfluence
from .base import Job, Peer, missing

PEERS = (kronfluence.PEER, captum.PEER, dattri.PEER)

__all__ = ["PEERS", "Job", "Peer", "missing"]
