"""Fine-tuning on one's own rows: what is written, what is said of it, what is refused."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from jobs import tune as tune_job
from sce.model.encoder import SCEModel
from sce.predictor import Predictor
from sce.workflows import tune as workflow
from sce.workflows.cli import run_job
from sce.workflows.experiment import TuneConfig
from sce.workflows.tune import BEFORE, EXAMPLES, TUNED, Tuned, _what_to_take, tune
from tests.tiny_bulk import LABELS, build_models, embedder_of, text, write_jsonl


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = build_models(tmp_path_factory.mktemp("tune"), "sce")
    (folder / "sce" / "README.md").write_text("---\ntags: []\n---\n\n# Before\n\nIts figures.\n")
    write_jsonl(
        folder / "mine.jsonl", [{"text": text(i), "label": LABELS[i % 4]} for i in range(24)]
    )
    return folder


def run(home, *argv: str) -> int:
    flags = ["--model", str(home / "sce"), "--embedder.kind", "sentence_transformers"]
    flags += ["--embedder.model", str(home / "embedder"), "--embedder.dtype", "float32"]
    flags += ["--train.epochs", "2", "--folds", "2", "--no-tracking.enabled"]
    return run_job(TuneConfig, tune, tune_job.__doc__, [*flags, *argv])


def test_a_tuned_model_answers_and_says_what_it_gained_and_lost(home, capsys, monkeypatch):
    monkeypatch.setattr(workflow, "OTHER_SETS", 1)
    output = home / "tuned"
    assert run(home, "--labelled", str(home / "mine.jsonl"), "--output", str(output)) == 0
    summary = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (summary["rows"], summary["labels"], summary["model"]) == (24, 4, str(output))
    figures = {name for name in summary if name.startswith("accuracy")}
    own = {"accuracy_before", "accuracy_tuned", "accuracy_examples", "accuracy_adapted"}
    assert figures == own | {"accuracy_others_before", "accuracy_others_tuned"}
    card = (output / "README.md").read_text()
    assert card.startswith("---\ntags: []\n---\n\n# tuned\n\nFine-tuned on 24 rows of 4 labels")
    assert "# Before it was tuned: Before\n\nIts figures." in card
    assert EXAMPLES in card
    predictor = Predictor.from_pretrained(output, embedder_of(home))
    assert predictor.predict("a text", ["one", "two"])[0].label in ("one", "two")
    old = SCEModel.from_pretrained(home / "sce").state_dict()
    moved = [n for n, w in predictor.model.state_dict().items() if not torch.equal(w, old[n])]
    assert bool(moved) == (summary["epochs"] > 0)
    assert predictor.model.config.calibration[0] == summary["temperature"]["a"]


@pytest.mark.parametrize(
    ("rows", "argv", "message"),
    [
        (24, ["--output", ""], "output"),
        (9, [], "has 9 labelled row(s) of 4 label(s). Give 10 rows of two labels"),
        (24, ["--model", "nowhere"], "nowhere"),
        (24, ["--output", "."], "holds something else"),
        (24, ["--labels-file", "tree.yaml"], "holds a tree. A model is tuned on a list of labels"),
    ],
)
def test_what_cannot_be_tuned_is_refused(home, capsys, rows, argv, message):
    lines = (home / "mine.jsonl").read_text().splitlines()[:rows]
    file = home / f"first-{rows}.jsonl"
    file.write_text("\n".join(lines))
    (home / "tree.yaml").write_text("money: [markets]\nother: [sport, late parcel, stars]\n")
    given = [str(home / flag) if flag in (".", "tree.yaml") else flag for flag in argv]
    flags = ["--labelled", str(file), "--output", str(home / "none"), *given]
    assert run(home, *flags) == 2
    assert message in capsys.readouterr().err
    assert not (home / "none").exists()


def test_what_trains_nothing_is_taken_unless_tuning_is_clearly_better():
    right = partial(np.repeat, repeats=50)
    half, most = right([True, False]), right([True, True])
    tuned = partial(Tuned, None, 1, 1.0, others={}, fit=None)
    assert "take the tuned model" in _what_to_take(tuned(own={BEFORE: half, TUNED: most}))
    said = _what_to_take(tuned(own={BEFORE: half, TUNED: most, EXAMPLES: most}))
    assert said.startswith("On your rows it is +0.0 [+0.0, +0.0] points beside 'as it was, your")
    assert said.endswith("take that.")
