"""Settings of every job and of the server, and the files that users write them in.

`settings` is the one mechanism, `documents` reads YAML and JSON within bounds.
"""

from sce.config.settings import (
    Gpus,
    JobConfig,
    Section,
    Verbatim,
    check_writable,
    load_config,
    resolve_output,
)

VERSION = "0.1.0"
"""The version of this software."""

__all__ = [
    "VERSION",
    "Gpus",
    "JobConfig",
    "Section",
    "Verbatim",
    "check_writable",
    "load_config",
    "resolve_output",
]
