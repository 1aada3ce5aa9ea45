"""Rows of a corpus against rows of a store, without Ray: what is known, what is pending."""

import json

import numpy as np
import pytest

from sce.bulk.corpus import Columns, join_plans, open_corpus, plan_files
from sce.bulk.pending import (
    KEY,
    KnownRows,
    RowFacts,
    StorePart,
    scan_shard,
)
from sce.bulk.reading import read_shard
from sce.errors import DataError

COLUMNS = Columns(id="id", keep=("topic", "text"))
ROWS = [{"id": f"r{i}", "text": f"text {i}", "topic": "a"} for i in range(3)]


def shard_of(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (shard,) = join_plans(plan_files([(open_corpus([str(path)]).files[0], 0)], COLUMNS))
    return shard


def store_of(tmp_path, rows):
    (block,) = read_shard(shard_of(tmp_path, rows), COLUMNS)
    return KnownRows([StorePart("p", RowFacts.of(block, COLUMNS).keys(block, COLUMNS), 1)])


@pytest.mark.parametrize(
    ("change", "pending"),
    [
        ({}, []),
        ({"text": "new"}, [0]),
        ({"topic": "new"}, [0]),
        ({"id": "new"}, [0]),
        ({"text": None}, [0]),
        ({"text": ""}, [0]),
    ],
)
def test_what_makes_a_row_another(tmp_path, change, pending):
    known = store_of(tmp_path, ROWS)
    shard = shard_of(tmp_path, [ROWS[0] | change, *ROWS[1:]])
    found_N, id_hashes_N = scan_shard(shard, COLUMNS, known.keys_K, False)
    assert np.flatnonzero(known.claim(found_N)).tolist() == pending
    assert len(set(id_hashes_N.tolist())) == 3
    ((_, live_N),) = known.live()
    assert live_N.tolist() == [not pending, True, True]


def test_a_row_of_the_store_stands_for_one_row(tmp_path):
    known = store_of(tmp_path, ROWS)
    found_N, _ = scan_shard(shard_of(tmp_path, [*ROWS, ROWS[1]]), COLUMNS, known.keys_K, False)
    assert known.claim(found_N).tolist() == [False, False, False, True]
    assert known.claim(found_N).all(), "another shard with the same rows"


def test_the_pending_rows_of_a_shard_are_read_with_places_of_their_own(tmp_path):
    shard = shard_of(tmp_path, ROWS)
    chosen = shard.only(np.array([True, False, True]), file_number=5)
    assert chosen.rows == 2
    (block,) = read_shard(chosen, COLUMNS)
    assert block["id"].to_pylist() == ["r0", "r2"]
    assert block["place"].to_pylist() == [5 << 40, (5 << 40) + 2]
    assert next(read_shard(shard, COLUMNS)).num_rows == 3


def test_a_row_with_an_error_is_named_where_it_is_refused(tmp_path):
    shard = shard_of(tmp_path, [*ROWS, {"id": "bad", "text": " "}])
    with pytest.raises(DataError, match=r"row 3 \('bad'\) .* empty or blank; 1 row\(s\) of 4"):
        scan_shard(shard, COLUMNS, np.empty(0, KEY), True)
