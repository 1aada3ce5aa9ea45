"""What a comparison reads of a measured run: its method, and labels adapted by its vectors."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from sce.evaluation.evaluate import PREDICTIONS
from sce.evaluation.runs import MethodRuns
from sce.workflows.compare import PAGE, _read, unused
from sce.workflows.evaluate import METHODS_FILE, PREDICTIONS_FILE, RESULTS_FILE

ACCURACIES = {"sce": 0.5, "cosine": 0.25, "adapted": 0.75, "adapted+1": 1.0}


def prediction(method, name, row, right):
    return {
        "method": method, "set": name, "dataset": name, "group": "unseen", "information": "all",
        "labels": 2, "row_id": f"{name}:{row}", "target": "yes",
        "predicted": "yes" if right else "no", "probability": 0.5, "target_probability": 0.5,
    }  # fmt: skip


class Folder:
    """An MLflow that has one run, whose results lie in a folder."""

    def __init__(self, path):
        self.path = path

    def download_artifacts(self, run_id, path, folder):
        return str(self.path)


def test_adapted_labels_are_methods_of_their_own_on_the_sets_that_have_them(tmp_path):
    results, rows = [], []
    for name, keys in (("a", ACCURACIES), ("b", ["sce", "cosine"])):
        figures = {key: {"accuracy": ACCURACIES[key]} for key in keys}
        results.append({"name": name, "dataset": name, "group": "unseen", "information": "all",
                        "method": "sce", **figures})  # fmt: skip
        for key in keys:
            rows += [prediction(key, name, i, i < 4 * ACCURACIES[key]) for i in range(4)]
    described = {key: {"name": "mine", "kind": key, "seed": 0} for key in ACCURACIES}
    (tmp_path / RESULTS_FILE).write_text(json.dumps(results))
    (tmp_path / METHODS_FILE).write_text(json.dumps(described))
    pq.write_table(pa.Table.from_pylist(rows, PREDICTIONS), tmp_path / PREDICTIONS_FILE)
    found = _read(Folder(tmp_path), "id")
    assert list(found) == ["", "adapted", "adapted+1"]
    methods = [MethodRuns([run]) for run in found.values()]
    assert [m.name for m in methods] == ["mine", "mine adapted", "mine adapted+1"]
    assert [m.kind for m in methods] == ["sce", "adapted", "adapted+1"]
    assert [list(m.sets) for m in methods] == [["a", "b"], ["a"], ["a"]]
    assert [m.accuracy("a").value for m in methods] == [0.5, 0.75, 1.0]
    assert [m.mean("unseen", "accuracy") for m in methods] == [0.5, 0.75, 1.0]


def test_an_earlier_comparison_is_kept(tmp_path):
    folder = tmp_path / "compare"
    for name in ("compare", "compare-2", "compare-3"):
        found = unused(folder)
        assert found == tmp_path / name
        found.mkdir()
        (found / PAGE).touch()
