"""Sources whose rows have any number of right labels: read, refused, written and read again."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sce.datasets.prepare import prepare
from sce.datasets.prepared import PreparedData
from sce.datasets.settings import DataConfig
from sce.errors import DataError

FINGERPRINT = "c3dbb6b43b5504f0a378bd2b1f87919a48536ebcee5da32395c341208b0b9013"
"""Of the twenty rows below, by the version before a row could have several labels."""
ROWS = [
    {"text": "the parcel is late and broken", "labels": ["damage", "delivery"]},
    {"text": "just hello", "labels": []},
    {"text": "where is it", "labels": ["delivery"]},
    {"text": "thanks", "labels": ["praise", "delivery"]},
] + [{"text": f"text number {i}", "labels": ["praise"]} for i in range(12)]


def config(path, **more):
    source = {"dataset": "custom", "path": str(path), "several_labels": True, **more}
    return DataConfig(sources=[source])


def by_text(data):
    table = data.rows.select(["text", "label", "labels"]).to_pylist()
    return {row["text"]: (row["label"], row["labels"]) for row in table}


def test_json_csv_and_parquet_give_the_same_rows(tmp_path, jsonl):
    lists = jsonl(ROWS)
    csv = tmp_path / "rows.csv"
    lines = [f'"{row["text"]}",{"; ".join(row["labels"])}' for row in ROWS]
    csv.write_text("\n".join(["text,labels", *lines]) + "\n")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    found = []
    for name in (lists, csv, tmp_path / "rows.parquet"):
        data, _ = prepare(config(name), tmp_path / f"out-{name.suffix[1:]}", seed=0)
        found.append(by_text(data))
        assert data.label_sets["custom"].names == ["damage", "delivery", "praise"]
        again = PreparedData.load(tmp_path / f"out-{name.suffix[1:]}")
        assert again.rows.equals(data.rows)
    assert found[0] == found[1] == found[2]
    assert found[0]["the parcel is late and broken"] == (None, ["damage", "delivery"])
    assert found[0]["just hello"] == (None, [])
    counted = data.manifest["label_counts"]["custom"]
    assert sum(split.get("delivery", 0) for split in counted.values()) == 3
    train = data.select("train")
    assert len(data.select("train", several=True)) == len(train)
    assert len(data.select("train", several=False)) == 0
    _, unchanged = prepare(config(lists), tmp_path / "out-jsonl", seed=0)
    assert unchanged


def test_rows_with_one_label_are_written_as_they_were_before(tmp_path, jsonl):
    path = jsonl([{"text": f"about {i}", "label": "ab"[i % 2]} for i in range(20)])
    data, _ = prepare(
        DataConfig(sources=[{"dataset": "custom", "path": str(path)}]), tmp_path / "o", 0
    )
    names = ["row_id", "dataset", "split", "text", "label", "label_set"]
    assert pq.read_schema(tmp_path / "o" / "rows.parquet").names == names
    assert data.rows["labels"].null_count == 20
    assert data.fingerprint == FINGERPRINT


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"labels": ["a", "a"]}, "'labels' names 'a' twice"),
        ({"labels": ["a"], "label": "a"}, "it has both 'label' and 'labels'"),
        ({"labels": None}, "'labels' is null; a list of names is needed, [] where no label fits"),
        ({"labels": ["a", "c"]}, "the label 'c' is not in the label set: 'a', 'b'"),
        ({"labels": ["a", " "]}, "'labels' is empty; a label's name is needed"),
        ({"labels": 3}, "'labels' is a int; a list"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_line(jsonl, tmp_path, row, said):
    path = jsonl([{"text": "fine", "labels": ["b"]}, {"text": "bad", **row}])
    with pytest.raises(DataError) as refused:
        prepare(config(path, labels=["a", "b"]), tmp_path / "out", seed=0)
    assert f"{path}:2: " in str(refused.value)
    assert said in str(refused.value)


def test_without_the_setting_two_labels_are_refused_with_its_name(jsonl, tmp_path):
    path = jsonl([{"text": "fine", "labels": ["b", "a"]}])
    with pytest.raises(DataError, match=r"exactly one is needed, unless .*several_labels: true"):
        prepare(config(path, several_labels=False), tmp_path / "out", seed=0)


def test_candidates_of_a_row_hold_its_labels(jsonl, tmp_path):
    rows = [
        {"text": f"t {i}", "labels": ["x", "y"], "all_labels": ["x", "y", "z"]} for i in range(9)
    ]
    path = jsonl([*rows, {"text": "u", "labels": ["w"], "all_labels": ["x", "y"]}])
    with pytest.raises(DataError, match=r"rows\.jsonl:10: the label 'w' is not in the label set"):
        prepare(config(path), tmp_path / "out", seed=0)
