"""Where data lies: a path of this machine, or a URI that `pyarrow.fs` knows (`s3://bucket/prefix`).

A local place is a `pathlib.Path`. A remote one is a `RemotePath`, which has as much of a path's
interface as is used here, so that most code takes either. Endpoint and credentials of a store come
from where its own tools look for them (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, an instance's role).

Object stores show whole files only and cannot rename. So what belongs together is written first,
and the file that names it or makes it whole (a manifest, a `config.json`) last.

What must not leave a folder, whoever else writes in it, is a *rooted* place: `rooted_place` names
it by a URI of our own, every file of which is opened below the root and through no link.
"""

from sce.storage.cache import absolute_model, cached_folder, fetch, fetch_model
from sce.storage.places import (
    ROOTED,
    SCHEMES,
    Place,
    RemotePath,
    filesystem_of,
    open_input,
    parquet_source,
    readable,
    relative,
    rooted_place,
    to_place,
)
from sce.storage.regular_files import open_regular
from sce.storage.writing import put, remove, replace_folder, write_text

__all__ = [
    "ROOTED",
    "SCHEMES",
    "Place",
    "RemotePath",
    "absolute_model",
    "cached_folder",
    "fetch",
    "fetch_model",
    "filesystem_of",
    "open_input",
    "open_regular",
    "parquet_source",
    "put",
    "readable",
    "relative",
    "remove",
    "replace_folder",
    "rooted_place",
    "to_place",
    "write_text",
]
