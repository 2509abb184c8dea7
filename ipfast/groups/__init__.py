"""Points met by engines: their queries from passes over V, and their scores from a pass over the data.

`head`, `head_query`: points that share features, at the last layer. `network`, `network_query`: one point of a whole network
after another.
"""

from .head import Group, GroupScorer, groups
from .head_query import HeadQueryMaker, validation_rows
from .network import NetworkGroup, NetworkJob, NetworkScorer, network_groups, require_array_labels
from .network_query import NetworkQueryMaker
from .validation import Validation, open_validation, validation_sets, with_impact

__all__ = [
    "Group",
    "GroupScorer",
    "HeadQueryMaker",
    "NetworkGroup",
    "NetworkJob",
    "NetworkQueryMaker",
    "NetworkScorer",
    "Validation",
    "groups",
    "network_groups",
    "open_validation",
    "require_array_labels",
    "validation_rows",
    "validation_sets",
    "with_impact",
]
