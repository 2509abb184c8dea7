"""What `train` and `val` may be (readers), and where scores go (writers)."""

from .batch import Batch, BatchForm, split_batch
from .files import file_hash, read_arrays, read_head, read_pair, read_state
from .rows import Rows
from .sources import ArraySource, LoaderSource, Source, open_source, same_data
from .writers import check_output, write_table

__all__ = [
    "ArraySource",
    "Batch",
    "BatchForm",
    "LoaderSource",
    "Rows",
    "Source",
    "check_output",
    "file_hash",
    "open_source",
    "read_arrays",
    "read_head",
    "read_pair",
    "read_state",
    "same_data",
    "split_batch",
    "write_table",
]
