"""Rows of an output that fit no label, in groups: texts that a taxonomy has no label for.

Shapes: S sampled rows, D the embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sce.bulk.output import OutputFormat, read_rows
from sce.errors import clipped
from sce.evaluation.tables import escape_markdown

SAMPLE = 2000
"""Rows that are grouped, of however many."""
FEWEST = 20
"""With fewer there is nothing to group."""
MOST_GROUPS = 12
TYPICAL = 5
"""Texts of a group that are shown, those nearest to its mean."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Unlabelled:
    """Rows without a label and without an error: how many, and the ids of `SAMPLE` of them or all,
    the same ones however the output was written."""

    rows: int
    ids: list[str]

    @classmethod
    def read(cls, files: Sequence[str], output_format: OutputFormat, id_name: str) -> Unlabelled:
        """Of the files of an output; no more than the sample is held."""
        rows, keys, ids = 0, np.empty(0, np.uint64), np.empty(0, object)
        for file in files:
            for batch in read_rows(file, output_format, [id_name, "place", "label", "error"]):
                no_error = pc.equal(pc.fill_null(batch["error"], ""), "")
                none = batch.filter(pc.and_(pc.is_null(batch["label"]), no_error))
                if not none.num_rows:
                    continue
                rows += none.num_rows
                place_N = none["place"].to_numpy(zero_copy_only=False).astype(np.uint64)
                keys = np.concatenate([keys, (place_N + np.uint64(1)) * _SPREAD])
                found = pc.cast(none[id_name], pa.string()).to_numpy(zero_copy_only=False)
                ids = np.concatenate([ids, found])
                kept = np.argsort(keys, kind="stable")[:SAMPLE]
                keys, ids = keys[kept], ids[kept]
        return cls(rows, [one for one in ids.tolist() if one is not None])


def group(vectors_SD: np.ndarray) -> list[np.ndarray]:
    """Places of like rows, the largest group first, in each the most typical row first: k-means,
    with the square root of a twentieth of the rows as the number of groups, 2 to `MOST_GROUPS`."""
    from sklearn.cluster import KMeans  # a second

    count = int(np.clip(round((len(vectors_SD) / 20) ** 0.5), 2, MOST_GROUPS))
    fitted = KMeans(count, n_init=4, random_state=0).fit(vectors_SD)
    distance_S = fitted.transform(vectors_SD).min(axis=1)
    groups = [np.flatnonzero(fitted.labels_ == k) for k in range(count)]
    groups = [mine[np.argsort(distance_S[mine], kind="stable")] for mine in groups if len(mine)]
    return sorted(groups, key=lambda mine: (-len(mine), int(mine[0])))


def to_markdown(
    found: Unlabelled, all_rows: int, texts: Sequence[str], groups: Sequence[np.ndarray]
) -> str:
    """The groups with some texts each; `texts` are those that were grouped."""
    lines = [
        "# Texts that no label fits",
        "",
        f"{found.rows:,} of {all_rows:,} rows have no label: none fits, or the best one is below "
        f"its threshold. {len(texts):,} of them in {len(groups)} groups of like texts; for those "
        "that mean one thing the taxonomy may want a label.",
    ]
    for number, mine in enumerate(groups, 1):
        lines += ["", f"## Group {number}: {100 * len(mine) / len(texts):.0f} %", ""]
        shown = dict.fromkeys(clipped(" ".join(texts[s].split()), 200) for s in mine.tolist())
        lines += [f"- {escape_markdown(text)}" for text in list(shown)[:TYPICAL]]
    return "\n".join(lines) + "\n"


def to_table(ids: Sequence[str], groups: Sequence[np.ndarray]) -> pa.Table:
    """Each row that was grouped: its id and its group's number in the report."""
    number_S = np.zeros(len(ids), np.int32)
    for number, mine in enumerate(groups, 1):
        number_S[mine] = number
    return pa.table({"id": pa.array(ids, pa.string()), "group": number_S})
