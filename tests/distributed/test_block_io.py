"""What Ray writes of our rows."""

import base64
import datetime
import io
import json

import pyarrow as pa
from ray.data.block import BlockAccessor

from sce.distributed.block_io import JSONLinesSink


def written(table, json_columns=()):
    sink = JSONLinesSink.__new__(JSONLinesSink)
    sink._json_columns = json_columns
    file = io.BytesIO()
    sink.write_block_to_file(BlockAccessor.for_block(table), file)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = file.getvalue().decode().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_every_line_is_json():
    day = datetime.date(2026, 3, 1)
    table = pa.table(
        {
            "amount": [1.5, float("nan"), float("inf"), None],
            "nested": [{"a": [float("-inf"), 1.0]}, None, {"a": []}, {"a": None}],
            "raw": [b"\x00\xff", None, b"", b"abc"],
            "day": [day] * 4,
            "said": ['{"x": 1}', None, "NaN", '"ä"'],
        }
    )
    rows = written(table, ["said"])
    assert [row["amount"] for row in rows] == [1.5, None, None, None]
    assert [row["nested"] for row in rows] == [{"a": [None, 1.0]}, None, {"a": []}, {"a": None}]
    assert [row["raw"] for row in rows] == [
        base64.b64encode(b"\x00\xff").decode(),
        None,
        "",
        "YWJj",
    ]
    assert {row["day"] for row in rows} == {"2026-03-01"}
    assert [row["said"] for row in rows] == [{"x": 1}, None, None, "ä"]
