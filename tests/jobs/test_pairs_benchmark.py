"""The benchmark of mode multi: its sets, rows that it writes to train on, what it prints."""

import json

import pytest
import yaml

from jobs.benchmarks import pairs
from jobs.benchmarks.pairs import PairsBenchmark, benchmark_pairs, tagged_sets, write_training
from sce.datasets.settings import DataConfig
from sce.datasets.starter import read_starter
from sce.errors import ConfigError, DataError
from tests.tiny_bulk import build_models, embedder_of, text

PACKAGE = """Package: {name}
Source: {source}
Description: {text}
Tag: use::viewing, works-with::image:raster,
 {tag}, role::program
Size: 3

"""


def index(path, count):
    tags = ["use::editing", "works-with::audio", "use::TODO"]
    parts = [
        PACKAGE.format(name=f"p{i}", source=f"s{i} (1.{i})", text=f"text {i}", tag=tags[i % 3])
        for i in range(count)
    ]
    twin = PACKAGE.format(name="p0-data", source="s0", text="its data", tag="use::editing")
    untagged = "Package: other\nDescription: no tags\n\n"
    path.write_text("".join([*parts, twin, untagged]).rstrip("\n"))
    return path


def test_packages_are_rows_of_a_facet_one_a_source(tmp_path):
    (use, works_with) = tagged_sets(index(tmp_path / "Packages", 66), ["use", "works-with"])
    assert use.label_set.names == ["editing", "viewing"], "TODO is no label"
    assert len(use.texts) == len(works_with.texts) == 66
    assert use.labels[:3] == [["editing", "viewing"], ["viewing"], ["viewing"]]
    assert works_with.labels[1] == ["audio", "image, raster"]
    assert use.texts[3] == "text 3"


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(DataError, match="no index of packages"):
        tagged_sets(tmp_path / "nowhere", ["use"])
    (tmp_path / "empty").write_text("Package: a\nDescription: b\n")
    with pytest.raises(DataError, match="field `Tag`"):
        tagged_sets(tmp_path / "empty", ["use"])
    with pytest.raises(DataError, match="'sound' has no two tags"):
        tagged_sets(index(tmp_path / "Packages", 60), ["sound"])
    with pytest.raises(ConfigError, match="a trained model is needed"):
        benchmark_pairs(PairsBenchmark())


def test_rows_to_train_on_are_of_train_sets_and_can_be_prepared(tmp_path):
    count = write_training(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == count > 3000
    unseen = {one.name for one in read_starter() if one.unseen}
    assert not unseen & {row["label_set"] for row in rows}
    assert {row["split"] for row in rows} == {"train", "validation"}
    none = sum(not row["labels"] for row in rows) / count
    assert 0.05 < none < 0.15
    assert {len(row["labels"]) for row in rows} == {0, 1, 2}
    labels = json.loads((tmp_path / "labels.json").read_text())
    for row in rows:
        assert set(row["labels"]) <= {label["name"] for label in labels[row["label_set"]]}
    DataConfig(**yaml.safe_load((tmp_path / "pairs.yaml").read_text())["data"])


def test_figures_of_each_model_beside_cosine(tmp_path, monkeypatch):
    models = build_models(tmp_path, "sce", "other")
    names = ["stars", "sport", "late_parcel"]
    rows = [{"text": text(i), "label": [*names, "oos"][i % 4]} for i in range(80)]
    (tmp_path / "snips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"model": str(models / "sce"), "trained": str(models / "other"), "data": tmp_path}
    asked |= {"embedder": embedder_of(models), "starter": False, "rows": 40}
    measured = benchmark_pairs(PairsBenchmark(**asked))
    ((headline, sides),) = measured.figures.items()
    assert headline.startswith("snips: 3 labels, 40 rows, 1.")
    assert list(sides) == ["mode multi", "trained on several labels", "cosine similarity"]
    for figures in sides.values():
        assert list(figures) == [*pairs.FIGURES, "micro-F1 by default, %"]
        assert all(0 <= figure.median <= 100 for figure in figures.values())
    with pytest.raises(DataError, match="has none of"):
        benchmark_pairs(PairsBenchmark(**asked | {"sets": ["hwu64"]}))
