"""What a bulk job says of how its labels are scored."""

import pytest

from sce.bulk.corpus import Columns
from sce.distributed.backends import Classification, LocalModel
from sce.labels import LabelSet
from sce.model.options import AnswerOptions
from tests.tiny_bulk import build_models, embedder_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_models(tmp_path_factory.mktemp("model"), "sce", "other")


@pytest.mark.parametrize(
    ("exact", "count", "column", "said"),
    [
        (False, 200, None, "exact"),
        (False, 1000, None, "shortlist of 100 of 1000"),
        (True, 1000, None, "exact"),
        (False, None, "classes", "exact up to 200 labels in a row, else shortlist of 100"),
    ],
)
def test_how_labels_are_scored_is_said(folder, exact, count, column, said):
    model = LocalModel.find(str(folder / "sce"), embedder_of(folder), "auto", exact)
    labels = None if count is None else LabelSet.parse([f"label {i}" for i in range(count)])
    asked = Classification(model, labels, Columns(labels=column), AnswerOptions())
    assert asked.scoring == said
    assert asked.label_names == (None if labels is None else labels.names)


def test_a_model_is_known_by_its_weights_and_not_by_its_place(folder, monkeypatch):
    found = [
        LocalModel.find(name, embedder_of(folder), "auto", exact=False)
        for name in (str(folder / "sce"), str(folder / "other"))
    ]
    assert found[0].identity["model"] != found[1].identity["model"]
    monkeypatch.chdir(folder)
    again = LocalModel.find("sce", embedder_of(folder), "auto", exact=False)
    assert again.identity == found[0].identity
    assert (again.named, again.path) == ({"model": "sce"}, str(folder / "sce"))
