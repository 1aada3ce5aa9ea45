"""The table files that a file, a folder, a glob or a URI stands for, and what was passed over."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch, fnmatchcase
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sce.bulk.output import RUN_FILE
from sce.datasets.diagnosis import likely_cause
from sce.datasets.prepared import LABEL_SETS_FILE
from sce.datasets.readers import ALLOWED_FILES, file_format, records_of
from sce.datasets.text_form import DAMAGED, FOUND_OUT, TextForm, compression_of, decompressed
from sce.embedding.store import MANIFEST, OLD_MANIFEST, manifest_of
from sce.errors import DataError
from sce.storage import ROOTED, filesystem_of, open_input, readable, to_place

PARQUET_BUFFER = 1 << 20
"""A column chunk is read by this many bytes rather than whole: vectors of a large row group would
be 100 MB."""
PASSED_OVER_SHOWN = 20
_OUR_FILES = {
    RUN_FILE: "in the output of a job",
    MANIFEST: "in an embedding store",
    LABEL_SETS_FILE: "in prepared data",
    "model.safetensors": "in a model",
    "adapter_model.safetensors": "in a model",
}
"""A file that shows what a folder below the one that was named is."""
_OUR_FOLDERS = {"mlruns": "MLflow's", "mlflow_artifacts": "MLflow's"}
_PARTITION = re.compile(r"([^=/]+)=([^/]*)\Z")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class InputFile:
    """One file of the input, of `size` bytes.

    Attributes:
        uri: path or URI as `pyarrow.fs` reads it.
        name: below the folder that the user gave; stands in ids made from places.
        modified: nanoseconds since the epoch, 0 where the store does not say.
        form: how its text is written, as far as it is known.
    """

    uri: str
    name: str
    size: int
    modified: int
    form: TextForm = FOUND_OUT

    @property
    def kind(self) -> str:
        """ ".parquet", ".jsonl", ".csv", ".tsv" or ".xlsx"; "" for what is no table file."""
        kind = file_format(PurePosixPath(self.uri)) or ""
        return ".jsonl" if kind in (".json", ".ndjson") else kind

    @property
    def partitions(self) -> dict[str, str | None]:
        """The columns that the folders above it name: `year=2024/month=3/part.parquet`."""
        parts = map(_PARTITION.match, PurePosixPath(self.name).parts[:-1])
        pairs = [(part[1], unquote(part[2])) for part in parts if part]
        return {name: None if value == _NO_VALUE else value for name, value in pairs}

    def likely_cause(self) -> str:
        """Why hardly a row of it can be read, in a sentence, or ""."""
        return likely_cause(self.uri, self.kind, self.open, self.form)

    def found_form(self) -> TextForm:
        """How its text is written. Raises `DataError`: it cannot be read."""
        return _found_form(self)

    def open(self) -> BinaryIO:
        """The bytes of the file, compression undone."""
        return decompressed(open_input(self.uri), PurePosixPath(self.uri))

    def records(self) -> Iterator[Any]:
        """The rows of a file other than Parquet, as `records_of` reads them."""
        return records_of(PurePosixPath(self.uri), self.open, form=self.found_form())

    def open_parquet(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(
                open_input(self.uri),
                buffer_size=PARQUET_BUFFER,
                pre_buffer=False,  # it would hold a whole row group, 100 MB of vectors
            )
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.uri}: not readable as Parquet ({error}).") from None


@lru_cache(maxsize=1024)
def _found_form(file: InputFile) -> TextForm:
    """Once a process: it may take reading the whole file."""
    if file.kind in (".parquet", ".xlsx"):
        return file.form
    try:
        return file.form.of(file.kind, file.open)
    except (OSError, *DAMAGED) as error:
        kind = compression_of(PurePosixPath(file.uri)).removeprefix(".")
        what = f"damaged {kind} file" if kind else "cannot be read"
        raise DataError(f"{file.uri}: {what} ({error}).") from None


@dataclass
class Listing:
    """The files to read, and of the others below a folder why each is none of them; the links that
    were followed, and where they lead."""

    files: list[InputFile] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The number of files passed over, how many for which reason, and some of their names."""
        return {
            "files": len(self.passed_over),
            "reasons": dict(Counter(self.passed_over.values()).most_common()),
            "names": list(islice(self.passed_over, PASSED_OVER_SHOWN)),
        }

    def __str__(self) -> str:
        """ "2 not a table file (a.md, b.bin), 1 in the output of a job (week1/_run.json)"."""
        found = []
        for reason, count in Counter(self.passed_over.values()).most_common():
            names = [name for name, why in self.passed_over.items() if why == reason]
            more = ", ..." if count > 3 else ""
            found.append(f"{count} {reason} ({', '.join(names[:3])}{more})")
        return ", ".join(found)


@dataclass(frozen=True)
class _Found:
    """A file below the root that is listed; `uri` is its whole path."""

    inside: str
    uri: str
    size: int
    modified: int


def list_files(item: str, what: str = "input") -> Listing:
    """The table files that a file, folder, glob or URI stands for, sorted by path.

    A folder is searched to the bottom, and so are the folders that links in it lead to, each once;
    not so of a rooted place, whose links are passed over. Passed over is what begins with "_" or
    ".", what is no table file, and what a job of ours or MLflow wrote below the folder: outputs,
    stores, models. A file that is named is read.

    Raises:
        DataError: names the setting `what`: nothing is there, or a file of another kind.
    """
    remote = "://" in item and not item.lower().startswith("file://")
    try:
        return _listed_remote(item, what) if remote else _listed_here(item, what)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{what}: {readable(item)!r} cannot be listed ({error}).") from None


def is_pattern(item: str) -> bool:
    """Whether it is a URI with wildcards, which stand for "/" as well in those of stores."""
    if "://" not in item or not any(c in item for c in "*?["):
        return False
    return not item.startswith(f"{ROOTED}://") or not to_place(item).exists()


def _listed_here(item: str, what: str) -> Listing:
    path = Path(str(to_place(item))).expanduser().absolute()
    if path.is_file():
        return _chosen(item, what, [_found(path, path.parent)], named=True)
    if path.is_dir():
        over: dict[str, str] = {}
        links: dict[str, str] = {}
        listing = _chosen(item, what, _walk(path, over, links), over=over)
        listing.links = links
        return listing
    matches = [Path(one) for one in glob.glob(str(path), recursive=True)]
    if not matches:
        raise DataError(f"{what}: nothing at {item!r}. Give a file, a folder, a glob or a URI.")
    base = Path(re.split(r"[*?[]", str(path))[0].rpartition("/")[0] or "/")
    files = [_found(match, base) for match in matches if match.is_file()]
    markers = [_found(file, base) for file in _markers_above(files, base)]
    others = (match for match in matches if not (match.is_file() or match.is_dir()))
    over = {str(match.relative_to(base)): "not a regular file" for match in others}
    return _chosen(item, what, files, markers, named=True, over=over)


def _listed_remote(item: str, what: str) -> Listing:
    pattern, rooted = is_pattern(item), item.startswith(f"{ROOTED}://")
    base = re.split(r"[*?[]", item)[0].rpartition("/")[0] if pattern else item
    filesystem, root = filesystem_of(base)
    prefix = base.removesuffix(root) if base.endswith(root) else f"{urlsplit(item).scheme}://"
    if rooted:
        prefix = "/".join([*base.split("/")[:3], ""])
    info = filesystem.get_file_info(root)
    if info.type == pafs.FileType.File:
        one = _Found(info.base_name, prefix + info.path, info.size, info.mtime_ns or 0)
        return _chosen(item, what, [one], named=True)
    found: list[_Found] = []
    others: list[_Found] = []
    for info in filesystem.get_file_info(pafs.FileSelector(root, recursive=True)):
        inside = info.path.removeprefix(root).strip("/")
        one = _Found(inside, prefix + info.path, info.size or 0, info.mtime_ns or 0)
        if info.type != pafs.FileType.Directory:
            (found if info.type == pafs.FileType.File else others).append(one)

    def is_meant(one: _Found) -> bool:
        if rooted:
            return _matches(one.uri.split("/"), item.split("/"))
        return fnmatch(one.uri, item)

    meant = list(filter(is_meant, found)) if pattern else found
    others = list(filter(is_meant, others)) if pattern else others
    over = {one.inside: "a link, or no regular file" for one in others}
    return _chosen(item, what, meant, found if pattern else (), named=pattern, over=over)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """As the glob of a shell: a wildcard stands for no "/", `**` for any number of folders, and
    what begins with "." is only matched by what does too."""
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        inner = parts[0][:1] != "." and _matches(parts[1:], pattern)
        return inner or _matches(parts, pattern[1:])
    is_hidden = parts[0][:1] == "." and pattern[0][:1] != "."
    matches = fnmatchcase(parts[0], pattern[0]) and not is_hidden
    return matches and _matches(parts[1:], pattern[1:])


def _found(path: Path, base: Path) -> _Found:
    stat = path.stat()
    return _Found(str(path.relative_to(base)), str(path), stat.st_size, stat.st_mtime_ns)


def _walk(root: Path, over: dict[str, str], followed: dict[str, str]) -> Iterator[_Found]:
    """Every file below a folder. What is passed over goes to `over`, such as a folder that is
    reached again: by a link to itself it would be reached for ever. Links come last, so that a
    folder has its own name where it is reached both ways; those that are followed, and where they
    lead, go to `followed`."""
    seen: set[tuple[int, int]] = set()
    folders, links = [root], deque[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        stat = folder.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            over[f"{folder.relative_to(root)}/"] = "a link to a folder that is read already"
            continue
        seen.add((stat.st_dev, stat.st_ino))
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.is_symlink() and path.exists():
                followed[str(path.relative_to(root))] = os.path.realpath(path)
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(path)
            elif entry.is_file():
                yield _found(path, root)
            else:
                broken = "a broken link" if entry.is_symlink() else "not a regular file"
                over[str(path.relative_to(root))] = broken


def _markers_above(files: Iterable[_Found], base: Path) -> Iterator[Path]:
    """The files of `_OUR_FILES` in the folders between a glob's base and what it matched."""
    folders = {base / folder for file in files for folder in _folders(file.inside)}
    for folder in folders:
        yield from filter(Path.is_file, (folder / name for name in (*_OUR_FILES, OLD_MANIFEST)))


def _chosen(
    item: str,
    what: str,
    found: Iterable[_Found],
    markers: Iterable[_Found] = (),
    named: bool = False,
    over: dict[str, str] | None = None,
) -> Listing:
    """What is to be read of the files found, by all that were seen. Those that are `named`, one by
    one or by a pattern, have to be table files; `over` was passed over before."""
    found = sorted(found, key=lambda one: one.uri)
    ours = dict(_our_folders([*found, *markers]))
    listing = Listing(passed_over=over or {})
    for one in found:
        file = InputFile(one.uri, one.inside, one.size, one.modified)
        reason = next(filter(None, map(ours.get, _folders(one.inside))), "")
        if not named and any(part[0] in "_." for part in PurePosixPath(one.inside).parts):
            reason = reason or 'named with a "_" or "." in front'
        if not file.kind:
            reason = reason or "not a table file"
            if named:
                raise DataError(
                    f"{one.uri}: not a table file that can be read. Allowed: {ALLOWED_FILES}."
                )
        if reason:
            listing.passed_over[one.inside] = reason
        else:
            listing.files.append(file)
    if not listing.files:
        said = f" Passed over: {listing}." if listing.passed_over else ""
        raise DataError(f"{what}: nothing to read at {item!r}.{said} Allowed: {ALLOWED_FILES}.")
    return listing


def _our_folders(found: Iterable[_Found]) -> Iterator[tuple[str, str]]:
    """The folders below the root that we or MLflow wrote, and what they are."""
    for one in found:
        folder, _, name = one.inside.rpartition("/")
        if folder and name in _OUR_FILES:
            yield folder, _OUR_FILES[name]
        elif folder and name == OLD_MANIFEST and manifest_of(to_place(one.uri).parent):
            yield folder, _OUR_FILES[MANIFEST]
        for above in _folders(one.inside):
            if (known := PurePosixPath(above).name) in _OUR_FOLDERS:
                yield above, _OUR_FOLDERS[known]


def _folders(inside: str) -> list[str]:
    """The folders that a path leads through, the outermost first."""
    return [str(folder) for folder in reversed(PurePosixPath(inside).parents)][1:]
