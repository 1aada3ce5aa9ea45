"""Measuring "none of these" on rows of the user: which rows none fits, and beside what."""

import json

import pytest

from sce.errors import ConfigError, InputError
from sce.workflows.evaluate_embedders import evaluate_asked
from sce.workflows.evaluate_none import SHOWN, evaluate_none
from sce.workflows.experiment import Evaluation
from tests.tiny_bulk import build_models, embedder_of, text

LABELS = ["stars", "sport", "markets", "parcels"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return build_models(tmp_path_factory.mktemp("model"), "sce")


def experiment(models, folder, mode, rows, **asked) -> Evaluation:
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    column = "label" if mode == "single" else "labels"
    asked = {
        "model": models / "sce",
        "labelled": file,
        "mode": mode,
        "label_column": column,
    } | asked
    return Evaluation(
        run_dir=folder / "run",
        embedder=embedder_of(models),
        evaluate={"none_of_these": True, **asked},
    )


def several(count: int) -> list[dict]:
    """Rows without a label, with one and with two."""
    return [
        {"text": text(i), "labels": [LABELS[i % 4], LABELS[(i + i // 4) % 4]][: i % 3]}
        for i in range(count)
    ]


@pytest.mark.parametrize("mode", ["single", "multi"])
def test_what_is_written_of_each_mode(models, tmp_path, mode):
    rows = (
        several(60)
        if mode == "multi"
        else [{"text": text(i), "label": LABELS[i % 4]} for i in range(60)]
    )
    summary = evaluate_none(experiment(models, tmp_path, mode, rows))
    folder = tmp_path / "run" / "results-own" / "mine"
    (found,) = json.loads((folder / "none.json").read_text())
    assert found["rows"] == 60 == summary["rows"]
    assert found["label_count"] == 2
    share = found["none"] / 60
    for path, figures in found["paths"].items():
        assert 0 <= figures["ece"] <= 1
        assert summary["test"][f"ece/{path}"] == pytest.approx(figures["ece"], abs=1e-4)
    assert found["paths"]["corpus"]["mean_score"] == pytest.approx(share, abs=1e-5)
    assert found["paths"]["labelled"]["mean_score"] == pytest.approx(share, abs=0.05)
    assert "10 % assumed" in (folder / "none.md").read_text()
    for name, title in SHOWN[mode].items():
        assert 0 <= found[name]["auroc"] <= 1
        assert summary["test"][f"auroc/{name}"] == pytest.approx(found[name]["auroc"], abs=1e-4)
        assert title in (folder / "none.md").read_text()


def test_in_mode_multi_none_fits_rows_that_lost_all_or_had_none(models, tmp_path):
    rows = several(60)
    evaluate_none(experiment(models, tmp_path, "multi", rows))
    (found,) = json.loads((tmp_path / "run/results-own/mine/none.json").read_text())
    counts = set()
    for a, kept_a in enumerate(LABELS):
        for kept_b in LABELS[a + 1 :]:
            counts.add(sum(not {kept_a, kept_b} & set(row["labels"]) for row in rows))
    assert found["none"] in counts
    assert found["none"] > sum(not row["labels"] for row in rows)


def test_with_a_label_for_none_nothing_else_is_taken_away(models, tmp_path):
    rows = [row | {"labels": row["labels"] or ["other"]} for row in several(60)]
    evaluate_none(experiment(models, tmp_path, "multi", rows, none_label="other"))
    (found,) = json.loads((tmp_path / "run/results-own/mine/none.json").read_text())
    assert (found["label_count"], found["none"]) == (4, 20)
    with pytest.raises(InputError, match="has 'nowhere'"):
        evaluate_none(experiment(models, tmp_path, "multi", rows, none_label="nowhere"))


def test_what_is_refused(models, tmp_path):
    asked = experiment(models, tmp_path, "multi", several(12))
    with pytest.raises(InputError, match="no set with 10 rows"):
        evaluate_none(asked)
    asked = asked.model_copy(update={"embedders": ["minilm"]})
    with pytest.raises(ConfigError, match="of one embedder"):
        evaluate_asked(asked)


def test_long_texts_are_read_in_part_and_in_chunks(models, tmp_path):
    rows = [{"text": f"{text(i)} " * (1 + i % 3), "label": LABELS[i % 4]} for i in range(60)]
    asked = experiment(models, tmp_path, "single", rows, long_texts=True, rows_per_set=40)
    evaluate_none(asked)
    found = json.loads((tmp_path / "run/results-own/mine/none.json").read_text())
    pooled = [one["name"].partition(", ")[2] for one in found]
    assert pooled[-4:] == ["mean", "max", "attention", "vector"]
    assert {(one["rows"], one["none"]) for one in found} == {(40, found[0]["none"])}
    with pytest.raises(ConfigError, match=r"goes with evaluate\.labelled"):
        evaluate_none(experiment(models, tmp_path, "single", rows, long_texts=True, labelled=None))
