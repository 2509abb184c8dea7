"""Every error that ipfast raises on purpose. Each says: where; what was expected; what came; what to do.

They also inherit the built-in error a Python user would expect, so `except ValueError` keeps working.
"""


class IpfastError(Exception):
    """Base of all errors that ipfast raises on purpose."""


class InputError(IpfastError, ValueError):
    """An argument has the right type and a wrong value, shape or content."""


class InputTypeError(IpfastError, TypeError):
    """An argument has a type that ipfast cannot use."""


class MissingFileError(IpfastError, FileNotFoundError):
    """A file or folder that an argument names is not there."""


class UnavailableError(IpfastError, RuntimeError):
    """Something that was asked for by name (a backend, an optional package) is not installed or cannot run here."""


class NonFiniteError(InputError):
    """The scoring pass met NaN or infinite features; the message names the row."""


class IpfastWarning(UserWarning):
    """Something that usually makes influence scores meaningless, though it can be computed."""
