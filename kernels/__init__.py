"""The GPU kernels, in Triton. One kernel a file; each has the name, the meaning and the arguments of its twin in ipfast/ops/.

Launchers take arrays that ipfast.ops has checked: on one device, labels in range, dense but for the rows of the features, which
may lie any number of elements apart.
"""

if __name__ != "ipfast.kernels":
    raise ImportError(
        f"the Triton kernels of ipfast are the package ipfast.kernels; they were imported as {__name__!r}. Install ipfast and "
        "import it, rather than its source folder."
    )

from ._layer_tune import LayerConfig, default_layer_config
from ._tune import Config, default_config, default_precision, fits_large_tiles, members_config
from .head_dot import head_dot
from .head_norm import head_norm
from .layer_dot import layer_dot
from .layer_norm_sq import layer_norm_sq

__all__ = [
    "Config",
    "LayerConfig",
    "default_config",
    "default_layer_config",
    "default_precision",
    "fits_large_tiles",
    "head_dot",
    "head_norm",
    "layer_dot",
    "layer_norm_sq",
    "members_config",
]
