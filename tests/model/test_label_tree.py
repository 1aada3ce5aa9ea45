"""Label trees: their forms, what is wrong with them, and the way down."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sce.errors import LabelError
from sce.labels import LabelSet, RaggedLabels
from sce.model.answers import Answers
from sce.model.decisions import decide, predictions
from sce.model.label_tree import LabelTree, parse_set, parse_sets
from sce.model.options import AnswerOptions
from sce.model.tree_forms import MAX_DEPTH, is_tree
from sce.predictor import Predictor
from tests.tiny_bulk import WORDS, build_models, load_predictor, text

NESTED = {
    "billing": ["refund", "invoice"],
    "delivery": {"late": None, "lost": "the parcel never came"},
    "praise": "thanks",
}
PATHS = ["billing/refund", "billing/invoice", "delivery/late", "delivery/lost", "praise"]
FORMS = {
    "mapping": NESTED,
    "objects": [
        {"name": "billing", "children": ["refund", "invoice"]},
        {"name": "delivery", "children": ["late", {"name": "lost"}]},
        "praise",
    ],
    "list of mappings": [
        {"billing": ["refund", "invoice"]},
        {"delivery": ["late", "lost"]},
        "praise",
    ],
    "children in a mapping": {
        "billing": {"description": "money", "children": ["refund", "invoice"]},
        "delivery": ["late", "lost"],
        "praise": None,
    },
    "parents": [
        {"name": "billing", "parent": None},
        {"name": "refund", "parent": "billing"},
        {"name": "invoice", "parent": "billing"},
        {"name": "late", "parent": "delivery"},
        {"name": "delivery", "parent": ""},
        {"name": "lost", "parent": "delivery"},
        {"name": "praise"},
    ],
    "paths": {"tree": PATHS},
    "paths by >": {"tree": [name.replace("/", " > ") for name in PATHS], "separator": " > "},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_to_the_same_tree(form: str) -> None:
    assert is_tree(FORMS[form])
    tree = parse_set(FORMS[form])
    assert isinstance(tree, LabelTree)
    assert tree.names == [name.replace("/", " > ") if ">" in form else name for name in PATHS]
    assert list(tree.inner_paths) == [("billing",), ("delivery",)]
    assert LabelTree.parse(tree.nested()) == tree


@pytest.mark.parametrize(
    "flat",
    [
        ["TCP/IP", "and/or"],
        {"billing/refund": "money back", "tree": "a plant"},
        [{"name": "billing", "examples": ["a", "b"]}],
        {"billing": {"description": "money", "synonyms": ["invoice"]}},
    ],
)
def test_what_was_a_flat_set_is_one_still(flat: object) -> None:
    assert not is_tree(flat)
    assert type(parse_set(flat)) is LabelSet


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"billing": {"descripton": "money"}}, "unknown field 'descripton'"),
        ({"billing": {"synonyms": ["x"], "refund": None}}, "unknown field 'refund'"),
        ({"billing": []}, "empty list of children"),
        (
            {"billing": ["refund", "refund"]},
            "stands twice, at labels.billing[0] and labels.billing[1]",
        ),
        ({"billing": ["refund", " "]}, "the name is empty"),
        ({"billing": ["refund", 404]}, "put it in quotes"),
        ({"billing": ["refund", ["x"]]}, "a list without a name"),
        ({"a": ["b"], "a/b": None}, "the path 'a/b' stands twice"),
        ({"tree": ["billing//refund"]}, "empty part"),
        ({"tree": ["billing/refund", "billing/refund"]}, "labels.tree[0] and labels.tree[1]"),
        ({"tree": []}, "the tree is empty"),
        ({"tree": ["a"], "separator": " "}, "separator"),
        (
            [{"name": "a", "parent": "b"}, {"name": "b", "parent": "a"}],
            "a cycle of parents, 'a' < 'b' < 'a'",
        ),
        ([{"name": "a", "parent": "a"}], "a cycle of parents, 'a' < 'a'"),
        ([{"name": "a", "parent": "x"}], "no label is named 'x'"),
        (
            [
                {"name": "a", "parent": "x"},
                {"name": "x"},
                {"name": "x", "parent": "y"},
                {"name": "y"},
            ],
            "2 labels are named 'x'",
        ),
        ([{"name": "a", "parent": "", "colour": "red"}], "unknown field 'colour'"),
        ({"tree": ["/".join("abcdefghijklmnopqrst")]}, f"more than {MAX_DEPTH} levels"),
    ],
)
def test_what_is_no_tree_is_refused_with_its_place(wrong: object, words: str) -> None:
    with pytest.raises(LabelError) as refused:
        parse_set(wrong)
    assert words in str(refused.value)


def test_a_tree_that_contains_itself_is_refused() -> None:
    loop: dict[str, object] = {"refund": None}
    loop["again"] = loop
    with pytest.raises(LabelError, match=r"labels\.billing\.again: it contains itself"):
        parse_set({"billing": loop})
    deep: object = ["leaf"]
    for _ in range(MAX_DEPTH):
        deep = {"a": deep}
    with pytest.raises(LabelError, match="more than 16 levels"):
        parse_set(deep)


def test_a_leaf_may_stand_under_two_parents() -> None:
    tree = parse_set({"order": ["cancel", "change"], "account": ["cancel"]})
    assert tree.names == ["order/cancel", "order/change", "account/cancel"]
    seen = tree.seen().labels
    assert [(label.name, label.synonyms) for label in seen[:2]] == [
        ("cancel", ("account cancel",)),
        ("cancel", ("order cancel",)),
    ]


def test_a_tree_is_no_set_of_one_row() -> None:
    with pytest.raises(LabelError, match=r"labels\[1\]: a tree is one set for all rows"):
        parse_sets([["a"], LabelTree.parse({"b": ["c"]})])
    assert isinstance(parse_sets([["a"], ["b"]]), RaggedLabels)


def answers_of(tree: LabelTree, p_NK: np.ndarray) -> Answers:
    """As a model makes them, from probabilities in the user's order."""
    order_K = np.array(tree.canonical_order)
    answers = Answers.empty(
        tree.counts_by_row(len(p_NK)), AnswerOptions().scoring, None, len(tree.levels)
    )
    answers.top_NT[:, 0] = order_K[p_NK[:, order_K].argmax(1)]
    answers.top_scores_NT[:, 0] = p_NK.max(1)
    answers.fill_path(slice(None), *tree.best_path(p_NK[:, order_K]))
    return answers


def test_an_answer_stops_where_it_is_no_longer_sure() -> None:
    tree = parse_set(NESTED)
    assert isinstance(tree, LabelTree)
    p_NK = np.array(
        [
            [0.90, 0.04, 0.02, 0.02, 0.02],
            [0.48, 0.46, 0.02, 0.02, 0.02],
            [0.30, 0.05, 0.30, 0.25, 0.10],
            [0.35, 0.05, 0.25, 0.25, 0.10],
        ]
    )
    answers = answers_of(tree, p_NK)

    def labels(threshold: float | None) -> list[str | None]:
        options = AnswerOptions(threshold)
        sets = tree.names_by_row(len(p_NK))
        found = predictions(answers, sets, options, [False] * 4, tree.answer_names)
        assert found[1].path == [
            ("billing", pytest.approx(0.94)),
            ("billing/refund", pytest.approx(0.48)),
        ]
        return [one.label for one in found]

    assert labels(None) == ["billing/refund", "billing/refund", "billing/refund", "billing/refund"]
    assert labels(0.5) == ["billing/refund", "billing", "delivery", "delivery"]
    assert labels(0.6) == ["billing/refund", "billing", None, None]
    assert (
        labels(0.3)[3] == "billing/refund"
    )  # the best leaf is sure, though its parent is not best
    np.testing.assert_allclose(
        decide(answers, AnswerOptions(0.5), tree.names, tree.answer_names).score_N,
        [0.9, 0.94, 0.55, 0.5],
    )
    np.testing.assert_allclose(
        decide(answers, AnswerOptions(0.6), tree.names, tree.answer_names).score_N,
        [0.9, 0.94, 0.55, 0.5],
    )


def test_the_way_down_is_the_same_for_every_order_and_batch() -> None:
    random = np.random.default_rng(0)
    paths = [f"{a}/{b}/{c}" for a, b, c in itertools.product("abc", "de", "fgh")] + ["i/j", "k"]
    tree = LabelTree.parse({"tree": paths})
    p_NK = random.dirichlet(np.full(len(paths), 0.3), 50)
    node_NH, p_NH = tree.best_path(p_NK)
    alone = [tree.best_path(p_NK[i : i + 1]) for i in range(50)]
    np.testing.assert_array_equal(node_NH, np.concatenate([node for node, _ in alone]))
    np.testing.assert_array_equal(p_NH, np.concatenate([p for _, p in alone]))
    # By brute force, with sums in another order.
    order = [paths[k] for k in tree.canonical_order]
    for row in range(50):
        above = ""
        for level in range(3):
            sums: dict[str, float] = {}
            for name, p in zip(order, p_NK[row]):
                parts = name.split("/")
                node = "/".join(parts[: level + 1])
                if len(parts) > level and "/".join(parts[:level]) == above:
                    sums[node] = sums.get(node, 0.0) + p
            if not sums:
                assert node_NH[row, level] == -1
                assert np.isnan(p_NH[row, level])
                break
            above = max(sums, key=sums.__getitem__)
            assert tree.answer_names[node_NH[row, level]] == above
            assert p_NH[row, level] == pytest.approx(sums[above], rel=1e-6)
    # Of a shortlist: the kept leaves alone.
    kept_N5 = np.sort(np.argsort(-p_NK, axis=1)[:, :5], axis=1)
    masked_NK = np.zeros_like(p_NK)
    np.put_along_axis(masked_NK, kept_N5, np.take_along_axis(p_NK, kept_N5, 1), 1)
    short_NH, _ = tree.best_path(np.take_along_axis(p_NK, kept_N5, 1), kept_N5)
    full_NH, _ = tree.best_path(masked_NK)
    np.testing.assert_array_equal(short_NH[:, 0], full_NH[:, 0])


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return load_predictor(build_models(tmp_path_factory.mktemp("model"), "sce"))


def shuffled(tree: dict, random: np.random.Generator) -> dict:
    def order(values: list) -> list:
        return [values[i] for i in random.permutation(len(values))]

    return {name: order(tree[name]) if tree[name] else None for name in order(list(tree))}


@pytest.mark.parametrize("above", [None, 10])
def test_an_answer_depends_on_no_order_and_no_neighbour(predictor, above):
    """All leaves contextualised, and with a shortlist."""
    if above is not None:
        parts = predictor.model, predictor.embedder, predictor.tokenizer
        predictor = Predictor(*parts, shortlist_above=above, shortlist_size=6)
    tree = {f"{WORDS[i]} {i}": [WORDS[i + j] for j in range(5)] for i in range(4)} | {"alone": None}
    vectors = predictor.embedder.embed([text(i) for i in range(30)]).vectors
    settings = {"threshold": 0.2, "top_k": 3, "return_scores": True}
    found = predictor.predict(vectors, tree, **settings)
    assert len({len(one.path) for one in found} | {1}) == 2
    random = np.random.default_rng(0)
    for _ in range(3):
        again = predictor.predict(vectors, shuffled(tree, random), **settings)
        assert again == found
    for row in (3, 17):
        (alone,) = predictor.predict(vectors[row][None], tree, **settings)
        assert (alone.label, [name for name, _ in alone.path]) == (
            found[row].label,
            [name for name, _ in found[row].path],
        )
        assert alone.score == pytest.approx(found[row].score, abs=2e-6)
