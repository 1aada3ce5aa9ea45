"""The embedding store: a folder of Parquet parts and a manifest that says what they hold.

The manifest is written last and atomically, and names its parts: what it does not name is
not in the store, so an interrupted run leaves the store as it was. One writer at a time. Parts
never change: one of which some rows go is written anew, and takes the old one's place when the
manifest names it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from sce.embedding.fingerprint import EmbedderFingerprint, check_fingerprint
from sce.errors import DataError
from sce.model.pooling import ChunkVectors
from sce.storage import Place, RemotePath, parquet_source, remove, to_place, write_text

FORMAT_VERSION = 1
MANIFEST = "_manifest.json"
"""Readers of folders of Parquet leave names with "_" out."""
OLD_MANIFEST = "manifest.json"
"""What earlier versions called it."""
CHUNK_VECTORS, CHUNK_SPANS = "chunk_vectors", "chunk_spans"
"""Of a store of texts in chunks: a list of vectors a row, and their places in the text."""
STORE_COLUMNS = ("row_id", "text_hash", "embedding", "truncated", "error", "place")
"""Columns that are a store's own; those that the user keeps follow them."""
STORE_NAMES = (*STORE_COLUMNS, CHUNK_VECTORS, CHUNK_SPANS)
"""That no column has which the user keeps."""


@dataclass(frozen=True)
class Manifest:
    """What a finished store holds.

    Attributes:
        embedder: fingerprint of the embedder, `EmbedderFingerprint.to_dict()` and its "id".
        source: hash of the request: of the rows that were embedded and of how.
        truncated: rows whose text was longer than the embedder reads.
        embed_seconds, texts_per_second: of the last run that embedded anything, start-up left out.
        created: UTC, ISO 8601.
        parts: Parquet files, relative to the folder.
        chunks: how texts were cut into chunks (`chunking`), of which a row's `embedding` is the
            mean then; None where it is of the text's beginning.
    """

    embedder: dict[str, Any]
    source: str
    rows: int
    truncated: int
    embed_seconds: float
    texts_per_second: float
    created: str
    parts: list[str]
    format_version: int = FORMAT_VERSION
    chunks: dict[str, Any] | None = None


_MANIFEST = TypeAdapter(Manifest)
_DTYPE = b"dtype"
"""Key of a part's Parquet metadata."""
_PART = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)?\.parquet")
"""A file of the store's folder, or of one below, as it once was."""


class EmbeddingStore:
    """A finished store. Open one with `EmbeddingStore.open`."""

    def __init__(self, folder: Place, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Place) -> EmbeddingStore:
        """Read the manifest of a store. Raises `DataError`: no store there, one that was never
        finished, or of another version."""
        folder = to_place(folder)
        if not folder.is_dir():
            raise DataError(f"no embedding store at {str(folder)!r}. Run jobs/embed.py first.")
        manifest = manifest_of(folder)
        if manifest is None:
            raise DataError(
                f"the embedding store {str(folder)!r} is unfinished: it has no {MANIFEST}. "
                "Run the job that writes it again."
            )
        try:
            content = json.loads(manifest.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{manifest}: not JSON ({error}).") from None
        if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
            found = content.get("format_version") if isinstance(content, dict) else content
            raise DataError(
                f"{manifest}: another format; this software reads {FORMAT_VERSION}. Embed into a "
                "new folder.",
                f"It is {str(found)[:200]!r}.",
            )
        try:
            held = _MANIFEST.validate_python(content)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise DataError(f"{manifest}: damaged, at {where}. Embed again.") from None
        for part in held.parts:
            if not _PART.fullmatch(part):
                raise DataError(
                    f"{manifest}: a part is no file of this folder. Embed again.",
                    f"It is {part[:200]!r}.",
                )
        return cls(folder, held)

    @property
    def paths(self) -> list[str]:
        """The Parquet files, for any reader of Parquet."""
        return [str(self.folder / part) for part in self.manifest.parts]

    def require(self, fingerprint: EmbedderFingerprint | dict[str, Any]) -> EmbeddingStore:
        """Return self if `fingerprint`'s embedder made the store. Raises `FingerprintMismatch`:
        names both embedders."""
        check_fingerprint(self.manifest.embedder, fingerprint, f"the store {str(self.folder)!r}")
        return self

    def require_chunks(self) -> EmbeddingStore:
        """Return self if it holds the vectors of chunks. Raises `DataError`."""
        if self.manifest.chunks is None:
            raise DataError(
                f"the store {str(self.folder)!r} has one vector a text, of its beginning. Embed "
                "the texts into a new folder with --long-text chunk."
            )
        return self

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, in no particular order; `STORE_COLUMNS` and the columns kept. Raises
        `DataError`: a part is missing or unreadable, or lacks one of `columns`."""
        return pa.concat_tables([self.read_part(part, columns) for part in self.manifest.parts])

    def to_numpy(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids, object array [N], and the vectors, float32 [N, D], of all rows in the order of
        the input. A row that could not be embedded has a vector of zeros, which `Predictor.predict`
        answers with an error. Raises `DataError` like `read`."""
        table = self.read()
        if "place" in table.column_names:
            order_N = pc.sort_indices(table["place"]).to_numpy()
            if (order_N != np.arange(len(order_N))).any():
                table = table.take(order_N)
        ids_N = table["row_id"].to_numpy(zero_copy_only=False)
        return ids_N, embedding_matrix(table["embedding"])

    def read_part(self, part: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of one part. Raises `DataError` like `read`."""
        with self._open_part(part) as file:
            names = file.schema_arrow.names
            missing = [name for name in columns or () if name not in names]
            if missing:
                raise DataError(f"{self.folder / part}: has no column {missing[0]!r}, but {names}.")
            return file.read(None if columns is None else list(columns))

    def column_names(self, part: str | None = None) -> list[str]:
        """Columns of a part, by default of the first. Raises `DataError` like `read`."""
        with self._open_part(part or self.manifest.parts[0]) as file:
            return list(file.schema_arrow.names)

    @contextmanager
    def _open_part(self, part: str) -> Iterator[pq.ParquetFile]:
        path = self.folder / part
        try:
            with pq.ParquetFile(parquet_source(path)) as file:
                yield file
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read ({error}). Embed again.") from None

    def vectors_for(self, row_ids: Sequence[str] | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Vectors of the rows with these ids, in this order: float32 [N, D]. The ids and vectors of
        the whole store are read once and kept. Raises `DataError` with the first id that is not in
        the store, and how many are not."""
        wanted_N = pa.array(row_ids, pa.string()) if isinstance(row_ids, Sequence) else row_ids
        ids, vectors_MD = self._vectors
        places_N = pc.index_in(wanted_N, value_set=ids)
        if places_N.null_count:
            first = wanted_N.filter(pc.is_null(places_N))[0].as_py()
            raise DataError(
                f"the store {str(self.folder)!r} lacks {places_N.null_count} of {len(wanted_N)} "
                f"rows, {first!r} first. Run jobs/embed.py again on this data."
            )
        return vectors_MD[places_N.to_numpy(zero_copy_only=False)]

    @cached_property
    def _vectors(self) -> tuple[pa.Array, np.ndarray]:
        table = self.read(["row_id", "embedding"])
        return table["row_id"].combine_chunks(), embedding_matrix(table["embedding"])


def embedding_matrix(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A fixed-size-list column of float32 as a matrix [N, D]; a view where it is one chunk."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)


def chunk_columns(chunks: ChunkVectors, good_N: np.ndarray) -> dict[str, pa.Array]:
    """The columns `CHUNK_VECTORS` and `CHUNK_SPANS` of N rows, of which the good ones have chunks,
    and the others none."""
    counts_N = np.zeros(len(good_N), np.int64)
    counts_N[good_N] = chunks.counts_N
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts_N)]), pa.int32())
    ends = [pa.array(ends_C, pa.int32()) for ends_C in chunks.spans_C2.T]
    spans = pa.StructArray.from_arrays(ends, ["start", "end"])
    return {
        CHUNK_VECTORS: pa.ListArray.from_arrays(offsets, embedding_column(chunks.vectors_CD)),
        CHUNK_SPANS: pa.ListArray.from_arrays(offsets, spans),
    }


def chunks_of(vectors: pa.ChunkedArray, spans: pa.ChunkedArray) -> ChunkVectors:
    """Inverse of `chunk_columns` for rows that all have chunks."""
    lists, places = vectors.combine_chunks(), spans.combine_chunks().flatten()
    matrix_CD = embedding_matrix(lists.flatten())
    ends = [places.field(name).to_numpy(zero_copy_only=False) for name in ("start", "end")]
    counts_N = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return ChunkVectors(matrix_CD, counts_N, np.stack(ends, axis=1).astype(np.int64))


def computed_in(table: pa.Table, dtype: str) -> pa.Table:
    """The table of a store's part that says what its vectors were computed in."""
    return table.replace_schema_metadata({_DTYPE: dtype})


def dtypes_of(parts: Iterable[str]) -> set[str]:
    """What the vectors of Parquet files were computed in, as far as they say so."""
    found = (pq.read_schema(parquet_source(to_place(part))).metadata or {} for part in parts)
    return {one[_DTYPE].decode() for one in found if _DTYPE in one}


def embedding_column(vectors_ND: np.ndarray) -> pa.FixedSizeListArray:
    """A C-contiguous float32 matrix [N, D] as a fixed-size-list column, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), vectors_ND.shape[1])


def text_hash(text: str) -> str:
    """BLAKE2b with 64 bits of a text, 16 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def part_options(columns: Sequence[str]) -> dict[str, Any]:
    """How a part is written: vectors do not compress, so only the others have dictionaries."""
    others = [name for name in columns if name not in ("embedding", CHUNK_VECTORS, CHUNK_SPANS)]
    return {"use_dictionary": others, "write_statistics": others, "compression": "none"}


def manifest_of(folder: Place) -> Place | None:
    """The manifest of the store that lies there, if one does."""
    if (folder / MANIFEST).is_file():
        return folder / MANIFEST
    old = folder / OLD_MANIFEST  # prepared data has one of that name too
    try:
        return old if old.is_file() and '"embedder"' in old.read_text(encoding="utf-8") else None
    except (OSError, ValueError):
        return None


def write_manifest(folder: Place, manifest: Manifest) -> None:
    """Commit a store: from here on, readers see the parts that the manifest names."""
    old = manifest_of(folder)
    write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=2, ensure_ascii=False))
    if old is not None and old.name == OLD_MANIFEST:
        old.unlink()


def rewrite_part(source: Place, target: Place, live_N: np.ndarray, first_place: int) -> None:
    """Write the rows of a part that stay, `live_N` bool [N], row group by row group. In a part from
    before stores had places and errors, the first row's place is `first_place`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        pq.ParquetFile(parquet_source(source)) as file,
        target.open_output() if isinstance(target, RemotePath) else nullcontext(target) as output,
    ):
        schema, first = _with_places(file.schema_arrow.empty_table(), 0).schema, 0
        with pq.ParquetWriter(output, schema, **part_options(schema.names)) as writer:
            for group in range(file.num_row_groups):
                table = _with_places(file.read_row_group(group), first_place + first)
                place = table.column_names.index("error")
                table = table.set_column(place, "error", null_where_none(table["error"]))
                live_G = live_N[first : first + table.num_rows]
                first += table.num_rows
                writer.write_table(table.filter(pa.array(live_G)))


def null_where_none(errors: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of errors as it is written: null where there is none, which is "" in memory and was
    "" in the files of earlier versions."""
    return pc.if_else(pc.equal(errors, ""), pa.scalar(None, pa.string()), errors)


def discard_unnamed(folder: Place) -> None:
    """Remove the parts that the manifest does not name, and what an earlier version staged."""
    remove(folder / "_staging")
    named = EmbeddingStore.open(folder).manifest.parts if manifest_of(folder) else []
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.startswith("part-") or path.name in named:
            continue
        if path.suffix == ".parquet":
            path.unlink()
        elif not any(part.startswith(f"{path.name}/") for part in named):
            remove(path)
        else:
            for file in path.iterdir():
                if f"{path.name}/{file.name}" not in named:
                    file.unlink()


def _with_places(table: pa.Table, first_place: int) -> pa.Table:
    """The schema that every part has now; rows without places had no errors, or there would be no
    store."""
    if "place" in table.column_names:
        return table
    own = {name: table[name] for name in table.column_names if name in STORE_COLUMNS}
    own["error"] = pa.nulls(table.num_rows, pa.string())
    own["place"] = pa.array(np.arange(first_place, first_place + table.num_rows))
    return pa.table(own | {n: table[n] for n in table.column_names if n not in own})
