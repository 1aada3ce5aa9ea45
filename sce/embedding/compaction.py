"""Rewrites parts of a store without the rows that its texts have lost, and clears up after it.

A store's parts never change. A part of which some rows go is written anew, row group by row
group, and takes the old one's place when the manifest names it.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sce.embedding.store import MANIFEST, STORE_COLUMNS, EmbeddingStore, part_options
from sce.storage import Place, RemotePath, parquet_source, remove


def rewrite_part(source: Place, target: Place, live_N: np.ndarray, first_place: int) -> None:
    """Write the rows of a part that stay.

    Args:
        live_N: bool [N], which do.
        first_place: of its first row, in a part from before stores had places and errors.
    """
    with ExitStack() as stack:
        file = stack.enter_context(pq.ParquetFile(parquet_source(source)))
        target.parent.mkdir(parents=True, exist_ok=True)
        output = target
        if isinstance(target, RemotePath):
            output = stack.enter_context(target.open_output())
        writer, first = None, 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            live_G = live_N[first : first + table.num_rows]
            if "place" not in table.column_names:
                table = _with_places(table, first_place + first)
            if writer is None:
                options = part_options(table.column_names)
                writer = stack.enter_context(pq.ParquetWriter(output, table.schema, **options))
            first += len(live_G)
            writer.write_table(table.filter(pa.array(live_G)))


def discard_unnamed(folder: Place) -> None:
    """Remove the parts that the manifest does not name, and what an earlier version staged."""
    remove(folder / "_staging")
    named = EmbeddingStore.open(folder).manifest.parts if (folder / MANIFEST).is_file() else []
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
    """The schema that every part has now; the rows had no errors, or there would be no store."""
    rows = table.num_rows
    own = {name: table[name] for name in table.column_names if name in STORE_COLUMNS}
    own["error"] = pa.repeat("", rows)
    own["place"] = pa.array(np.arange(first_place, first_place + rows))
    return pa.table(own | {n: table[n] for n in table.column_names if n not in own})
