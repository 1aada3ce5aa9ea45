"""Arrow schemas of the files that pass between the jobs.

A prepared data folder holds `rows.parquet` (one row a text), `label_sets.parquet` (one row
a label set) and `manifest.json`. A label set is *seen* when it has rows in the split
"train" and *unseen* when it has none; nothing else marks it.
"""

import pyarrow as pa

SPLITS = ("train", "validation", "test")

_ROW_COLUMNS = ("row_id", "dataset", "split", "text", "label", "label_set")
ROWS = pa.schema(
    [pa.field(name, pa.string(), nullable=name == "label") for name in _ROW_COLUMNS]
    + [pa.field("labels", pa.list_(pa.string()))]
)
"""A row has one right `label`, or any number of right `labels`; the other is null. The column
`labels` is missing where no row has several, as in data of versions that did not know it."""

LABEL = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("synonyms", pa.list_(pa.string())),
        pa.field("description", pa.string()),
        pa.field("examples", pa.list_(pa.string())),
    ]
)

LABEL_SETS = pa.schema(
    [
        pa.field("label_set", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("labels", pa.list_(LABEL), nullable=False),
    ]
)
