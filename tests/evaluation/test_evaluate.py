"""One evaluation for all methods, with methods whose answers are known."""

import json
import re
import string
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import softmax

from sce.evaluation.evaluate import PREDICTIONS, EvaluationSet, Method, VectorMethod, evaluate_sets
from sce.evaluation.levels import reordered, without_information
from sce.evaluation.report import to_markdown
from sce.evaluation.settings import EvaluateConfig
from sce.evaluation.summaries import comparison_metrics, dataset_metrics, named_results
from sce.labels import LabelSet
from sce.model.calibration import Temperature
from sce.model.label_tree import LabelTree

LABELS = [{"name": "red", "description": "the colour"}, "green", "blue"]
CONFIG = EvaluateConfig(flip_shuffles=3, flip_rows=4)


def rows(name="colours", labels=LABELS, size=9, group="unseen"):
    """Vectors whose largest coordinate is the right label; row 0 is the one that is not."""
    label_set = LabelSet.parse(labels)
    targets = np.arange(size) % len(label_set)
    vectors = np.eye(len(label_set), dtype=np.float32)[targets]
    vectors[0] = np.eye(len(label_set))[1 % len(label_set)]
    return EvaluationSet(
        name=name,
        dataset=name.split("/")[0],
        group=group,
        label_set=label_set,
        row_ids=[f"{name}:{i}" for i in range(size)],
        texts=[f"text {i}" for i in range(size)],
        labels=[label_set.names[t] for t in targets],
        vectors_ND=vectors,
    )


class ByName(VectorMethod):
    """Scores each label by the row's coordinate of its name: no order matters."""

    name = "sce"
    order = ["red", "green", "blue", "one", "two"]

    def __init__(self):
        super().__init__(self.coordinates, Temperature(np.log(2.0)))

    def coordinates(self, queries_ND, labels):
        return queries_ND[:, [self.order.index(n) % 3 for n in labels.names]] * 4

    def describe(self, sets):
        return {}


class ByPlace(Method):
    """Reads texts, and always answers with the label that stands first."""

    temperature = Temperature()

    def __init__(self, name="prompted"):
        self.name, self.asked = name, []

    def describe(self, sets):
        return {}

    def answer(self, requests):
        self.asked.append(requests)
        return [np.tile(-np.arange(len(r.label_set)), (len(r.texts), 1)) for r in requests]


def test_every_figure_of_a_set_whose_answers_are_known():
    named, _ = evaluate_sets([rows()], [ByName()], CONFIG)
    result = named.result
    assert (result["group"], result["information"], result["rows"]) == ("unseen by name", "name", 9)
    assert result["sce"]["accuracy"] == pytest.approx(8 / 9)
    assert result["sce"]["flip_rate"] == 0.0
    raw, calibrated = softmax([4, 0, 0]), softmax([2, 0, 0])  # T = 2
    for key, p in (("nll_uncalibrated", raw), ("nll", calibrated)):
        assert result["sce"][key] == pytest.approx(-(8 * np.log(p[0]) + np.log(p[1])) / 9)
    assert result["sce"]["ece"] == pytest.approx(abs(8 / 9 - calibrated[0]), abs=1e-6)
    assert named.confusion_KK.tolist() == [[2, 1, 0], [0, 3, 0], [0, 0, 3]]


def test_a_method_that_minds_the_order_flips_and_is_asked_once():
    method = ByPlace()
    named, all_known = evaluate_sets([rows()], [method], CONFIG)
    assert len(method.asked) == 1
    sizes = [len(request.texts) for request in method.asked[0]]
    assert sizes == [9, 4, 4, 4] * 2
    sets = [request.label_set for request in method.asked[0]]
    assert all(sorted(s.names) == ["blue", "green", "red"] for s in sets)
    first = {s.names[0] for s in sets[1:4]}
    assert named.result["prompted"]["flip_rate"] == (1.0 if first - {"red"} else 0.0)
    assert named.result["prompted"]["accuracy"] == pytest.approx(3 / 9)
    assert all_known.result["information"] == "all"
    assert "difference" not in named.result


def test_predictions_stand_row_by_row_and_agree_with_the_figures():
    evaluated = evaluate_sets(
        [rows(), rows("numbers", ["one", "two"])],
        [ByName(), ByPlace("cosine")],
        CONFIG,
    )
    for one in evaluated:
        assert one.predictions.schema == PREDICTIONS
        for method in ("sce", "cosine"):
            table = [r for r in one.predictions.to_pylist() if r["method"] == method]
            assert [r["row_id"] for r in table] == [f"{one.result['name']}:{i}" for i in range(9)]
            right = np.mean([r["target"] == r["predicted"] for r in table])
            assert right == pytest.approx(one.result[method]["accuracy"])
            nll = -np.mean(np.log([r["target_probability"] for r in table]))
            assert nll == pytest.approx(one.result[method]["nll"], rel=1e-5)
        gain = one.result["sce"]["accuracy"] - one.result["cosine"]["accuracy"]
        assert one.result["difference"] == pytest.approx(gain)


def test_a_set_with_names_alone_is_measured_once():
    evaluated = evaluate_sets([rows(labels=["red", "green", "blue"])], [ByPlace()], CONFIG)
    assert [e.result["information"] for e in evaluated] == ["all"]


def test_a_method_that_can_be_given_names_alone_is_measured_by_them():
    method = ByPlace()
    method.information = ("name",)
    for asked in (["name", "all"], ["all"]):
        config = CONFIG.model_copy(update={"information": asked})
        evaluated = evaluate_sets([rows()], [method], config)
        assert [e.result["information"] for e in evaluated] == ["name"]


def test_summaries_take_bare_names_and_weigh_datasets_alike():
    sets = [rows("a/1"), rows("a/2"), rows("b", ["one", "two"]), rows("c", group="seen")]
    results = [e.result for e in evaluate_sets(sets, [ByPlace()], CONFIG)]
    assert {r["name"]: r["information"] for r in named_results(results)} == {
        "a/1": "name", "a/2": "name", "b": "all", "c": "name",
    }  # fmt: skip
    found = comparison_metrics(results)
    assert found["accuracy_by_name/unseen"] == pytest.approx((1 / 3 + 5 / 9) / 2)
    assert found["accuracy_by_name/seen"] == pytest.approx(1 / 3)
    assert {name.partition("/")[2] for name in found} == {"seen", "unseen"}
    everything = {"a unseen", "b unseen", "c seen"}
    assert {name.partition("/")[2] for name in dataset_metrics(results)} == everything


def test_one_label_has_no_order():
    (only,) = evaluate_sets([rows("one", ["one"], 3)], [ByPlace()], CONFIG)
    assert only.result["prompted"]["flip_rate"] is None


class Further(ByName):
    """Answers the sets that have a corpus, with probabilities and remarks of its own."""

    reorders = False

    def __init__(self, name="adapted", shift=0):
        super().__init__()
        self.name, self.shift, self.asked = name, shift, []

    def applies_to(self, rows):
        return rows.corpus_MD is not None

    def answer(self, requests):
        self.asked += requests
        return [np.roll(s, self.shift, axis=1) for s in super().answer(requests)]

    def calibrated(self, scores_NK, request):
        assert request.rows is not None
        return scores_NK / 4

    def remarks(self, request):
        return {"trust": "bold", "short_labels": len(request.label_set)}


def test_further_methods_stand_beside_the_others_where_they_apply():
    sets = [replace(rows(), corpus_MD=np.eye(3)), rows("numbers", ["one", "two"])]
    adapted = [Further(), Further("adapted+1", shift=1)]
    main, cosine = ByName(), ByPlace("cosine")
    evaluated = evaluate_sets(sets, [main, cosine], CONFIG, adapted=adapted)
    plain = evaluate_sets(sets, [main, cosine], CONFIG)
    assert [e.result["name"] for e in evaluated] == ["colours", "colours", "numbers"]
    for one, without in zip(evaluated, plain):
        found = {k: one.result.pop(k) for k in ("adapted", "adapted+1") if k in one.result}
        assert one.result == without.result, "nothing else has changed"
        assert bool(found) == (one.result["name"] == "colours")
        methods = one.predictions["method"].unique().to_pylist()
        assert methods == ["sce", "cosine", *found]
        if found:
            right, wrong = found["adapted"], found["adapted+1"]
            assert right["accuracy"] == one.result["sce"]["accuracy"]
            gain = right["accuracy"] - one.result["cosine"]["accuracy"]
            assert right["difference"] == pytest.approx(gain)
            assert right["difference_low"] <= gain <= right["difference_high"]
            assert wrong["accuracy"] == pytest.approx(0)
            assert wrong["difference"] == pytest.approx(-one.result["cosine"]["accuracy"])
            p = softmax([1, 0, 0])  # scores of 4, divided by 4
            assert right["nll"] == pytest.approx(-(8 * np.log(p[0]) + np.log(p[1])) / 9)
            assert (right["trust"], right["short_labels"]) == ("bold", 3)
            assert right["flip_rate"] is None
    assert [len(r.texts) for r in adapted[0].asked] == [9, 9], "no shuffles, no set without corpus"


def test_where_cosine_is_the_method_adapted_labels_are_compared_with_it():
    sets = [replace(rows(), corpus_MD=np.eye(3))]
    (one, _) = evaluate_sets(sets, [ByPlace("cosine")], CONFIG, adapted=[Further()])
    assert "difference" not in one.result
    gain = one.result["adapted"]["accuracy"] - one.result["cosine"]["accuracy"]
    assert one.result["adapted"]["difference"] == pytest.approx(gain)


def test_adapted_labels_have_metrics_that_a_tracker_takes():
    sets = [replace(rows("a/1"), corpus_MD=np.eye(3)), rows("a/2"),
            replace(rows("b"), corpus_MD=np.eye(3))]  # fmt: skip
    adapted = [Further(), Further("adapted+1", shift=1)]
    evaluated = evaluate_sets(sets, [ByName(), ByPlace("cosine")], CONFIG, adapted=adapted)
    found = dataset_metrics([e.result for e in evaluated])
    assert found["accuracy_adapted_1/b unseen"] == pytest.approx(0)
    assert found["accuracy_adapted/b unseen"] == pytest.approx(8 / 9)
    assert "accuracy_adapted/a unseen" not in found, "one of its sets has none"
    assert all(set(name) <= set(string.ascii_letters + string.digits + "_-./ ") for name in found)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="adapted is false"):
        EvaluateConfig(adapted=False, corpus="store")
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        EvaluateConfig(adapted_examples=[0])


TREE = LabelTree.parse({"warm": ["red", {"yellow": ["gold", "lemon"]}], "cold": ["blue"]})


def test_a_tree_is_measured_by_level_and_keeps_its_form_in_every_order():
    asked = []

    def score(queries_ND, labels):
        asked.append(labels)
        # The likeliest leaf is blue, the likelier half warm.
        known = {"cold/blue": 2.0, "warm/red": 1.9, "warm/yellow/gold": 1.8}
        return np.array([[known.get(name, 0.0) for name in labels.names]] * len(queries_ND))

    class Fixed(VectorMethod):
        name = "sce"

        def describe(self, sets):
            return {}

    names = ["warm/red", "cold/blue", "warm/yellow/gold"]
    one = EvaluationSet(
        "own", "own", "own", TREE, list("abc"), list("abc"), names, np.eye(3, 4, dtype=np.float32)
    )
    config = EvaluateConfig(flip_shuffles=2)
    (found,) = evaluate_sets([one], [Fixed(score, Temperature())], config)
    assert all(isinstance(labels, LabelTree) and labels.inner == TREE.inner for labels in asked)
    assert len({tuple(labels.names) for labels in asked}) > 1
    assert found.result["sce"]["flip_rate"] == 0
    tree = found.result["tree"]["sce"]
    figures = ("nodes", "accuracy", "accuracy_of_best_leaf")
    assert [tuple(level[name] for name in figures) for level in tree["levels"]] == [
        (2, 2 / 3, 1 / 3), (3, 1 / 3, 1 / 3), (4, 1 / 3, 1 / 3),
    ]  # fmt: skip
    # The best leaf is below 0.5 everywhere; warm is not.
    assert tree["leaf"] == {"precision": 2 / 6, "recall": 2 / 7, "f1": pytest.approx(4 / 13)}
    stopped = tree["stopped"]
    assert (stopped["precision"], stopped["recall"]) == (2 / 3, 2 / 7)
    assert [lv["answered"] for lv in stopped["levels"]] == [1.0, 0.0, 0.0]
    assert stopped["levels"][1]["precision"] is None
    text = to_markdown([found.result])
    assert "| SCE | 1 | 2 | 66.7 | 33.3 |" in re.sub(" +", " ", text)
    assert "| SCE | deepest sure node | 66.7 | 28.6 | 40.0 |" in re.sub(" +", " ", text)
    json.dumps(found.result, allow_nan=False)


def test_a_tree_with_descriptions_is_also_measured_by_name_as_a_tree():
    tree = LabelTree.parse({"a": {"description": "all a", "children": ["x", "y"]}, "b": "bees"})
    bare = without_information(tree)
    assert isinstance(bare, LabelTree)
    assert (bare.names, bare.paths, bare.inner_paths) == (tree.names, tree.paths, tree.inner_paths)
    assert not any(label.description for label in (*bare.labels, *bare.inner))
    assert bare != tree
    assert without_information(bare) == bare
    assert reordered(tree, [2, 0, 1]).fingerprint == tree.fingerprint
