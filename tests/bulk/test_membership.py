"""Sets of labels a row, before and after: by hand and against plain Python sets."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sce.bulk import membership
from sce.bulk.changes import MatchedOutputs
from sce.bulk.display import comparison_markdown
from sce.bulk.output import TOP, PartCounts, count_part, list_of_names
from sce.bulk.table_csv import write_csv
from sce.workflows.answer_changes import report_changes


def write(folder, rows, kind="parquet", mode="multi"):
    """An output in mode multi, of {id: labels}; None is a row with an error."""
    folder.mkdir(parents=True)
    lists = [None if one is None else [{"label": n, "score": 0.7} for n in one]
             for one in rows.values()]  # fmt: skip
    best = [one[0] if one else None for one in rows.values()]
    table = pa.table(
        {
            "id": list(rows),
            "label": pa.array(best, pa.string()),
            "score": pa.array([0.7] * len(rows), pa.float32()),
            "labels": pa.array(lists, TOP),
            "error": pa.array([None if one is not None else "text_null" for one in rows.values()],
                              pa.string()),
            "truncated": [False] * len(rows),
            "place": np.arange(len(rows)),
        }
    )  # fmt: skip
    if mode == "single":
        table = table.drop_columns(["labels"])
    path = folder / f"part-00000.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "csv":
        with path.open("wb") as file:
            write_csv(table, file, None)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    request = {"columns": {}, "mode": mode}
    run = {"request": request, "parts": {}, "flat": True, "summary": None, "seconds": 0}
    (folder / "_run.json").write_text(json.dumps(run))
    return folder


BEFORE = {"a": ["x", "y"], "b": ["y"], "c": [], "d": None, "e": ["z", "x"], "f": ["x"]}
AFTER = {"f": ["x"], "e": ["x", "z"], "b": ["y", "w"], "a": ["y"], "c": ["z"], "d": ["x"], "g": []}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_added_and_removed_labels_by_hand(tmp_path, kind):
    folders = write(tmp_path / "old", BEFORE, kind), write(tmp_path / "new", AFTER, kind)
    sets = MatchedOutputs.read(*folders).sets()
    found = sets.compared()
    assert (found.rows, found.rows_changed) == (5, 3)  # e has the same labels in another order
    assert found.added == {"w": 1, "z": 1}
    assert found.removed == {"x": 1}
    assert found.before == {"x": 3, "y": 2, "z": 1}
    assert found.after == {"y": 2, "z": 2, "x": 2, "w": 1}


def test_the_report_of_a_job_counts_every_label(tmp_path):
    old = write(tmp_path / "old", {k: [{"x": "X"}.get(n, n) for n in v or []] for k, v in
                                   BEFORE.items() if v is not None})  # fmt: skip
    new = write(tmp_path / "new", AFTER)
    found, report, said = report_changes(
        (str(old), None, {"X": "x"}), (str(new), None), lambda ids: {}, None
    )
    assert said["compare/rows_with_other_labels"] == 3
    assert said["compare/labels_added"] == 2
    assert "3 of 5 rows have other labels (60.0 %): 2 labels were added, 1 removed" in report
    rows = {row["id"]: row for row in pq.read_table(said["changed_labels"]).to_pylist()}
    assert rows == {
        "b": {"id": "b", "labels_added": ["w"], "labels_removed": []},
        "a": {"id": "a", "labels_added": [], "labels_removed": ["x"]},
        "c": {"id": "c", "labels_added": ["z"], "labels_removed": []},
    }
    assert comparison_markdown(found) in report or report.startswith("# Compared")


def test_a_run_of_one_label_counts_as_a_set_of_it(tmp_path):
    old = write(tmp_path / "old", BEFORE, mode="single")
    found = MatchedOutputs.read(old, write(tmp_path / "new", AFTER)).sets().compared()
    assert found.before == {"x": 2, "y": 1, "z": 1}  # each row's best label
    assert MatchedOutputs.read(old, old).sets() is None


def test_a_run_of_one_label_is_not_divided_at_its_semicolon(tmp_path):
    one = {key: None if key == "f" else ["refund; exchange"] for key in BEFORE}
    old = write(tmp_path / "old", one, mode="single")
    found = MatchedOutputs.read(old, write(tmp_path / "new", AFTER)).sets().compared()
    assert set(found.before) == {"refund; exchange"}


def test_any_outputs_in_small_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(membership, "BLOCK_ROWS", 7)
    rng, names = np.random.default_rng(0), list("abcde")
    old, new = (
        {f"r{i}": [n for n in names if rng.random() < 0.4] for i in rng.permutation(60)}
        for _ in range(2)
    )
    folders = write(tmp_path / "old", old), write(tmp_path / "new", new, "jsonl")
    found = MatchedOutputs.read(*folders).sets().compared()
    for name in names:
        added = sum(name in new[i] and name not in old[i] for i in old)
        assert found.added.get(name, 0) == added
        assert found.after.get(name, 0) == sum(name in one for one in new.values())
    assert found.rows_changed == sum(set(old[i]) != set(new[i]) for i in old)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_a_part_in_mode_multi_counts_all_labels_of_its_rows(tmp_path, kind):
    file = write(tmp_path / "out", BEFORE, kind) / f"part-00000.{kind}"
    found = count_part([str(file)], kind, "labels")
    assert found.labels == {"x": 3, "y": 2, "z": 1}
    assert (found.rows, found.null_labels) == (6, 1)
    assert count_part([str(file)], kind).labels == {"x": 2, "y": 1, "z": 1}


def test_lists_with_nulls_before_others():
    column = pa.array([None, [{"label": "a", "score": 1.0}], [], None], TOP)
    assert list_of_names(column).to_pylist() == [[], ["a"], [], []]
    assert list_of_names(column.slice(1)).to_pylist() == [["a"], [], []]
    batch = pa.RecordBatch.from_pydict(
        {
            "error": pa.nulls(4, pa.string()),
            "label": pa.array(["a", None, None, None]),
            "labels": column,
            "truncated": pa.array([False] * 4),
        }
    )
    assert PartCounts.of(batch).labels == {"a": 1}
