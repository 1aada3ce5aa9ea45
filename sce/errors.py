"""Errors that users can cause. Each message says what, where, and what is allowed.

A job turns any `InputError` into exit code 2; every other exception is a bug or a
broken machine and ends with exit code 1 and a traceback.
"""


class SCEError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(SCEError):
    """The user's input or configuration is wrong; running again will not help."""


class ConfigError(InputError):
    """A setting is unknown, missing or out of range."""


class LabelError(InputError):
    """A label set is empty, has duplicates, or holds something that is not a label."""


class DataError(InputError):
    """A data file cannot be read, or a row of it breaks the contract."""


class EmbedderError(InputError):
    """The text embedder cannot be loaded (unknown, not reachable, damaged)."""


class FingerprintMismatch(InputError):
    """Vectors or a model were made by another embedder than the one in use."""
