"""The predictor: forms of labels, order invariance bit for bit, thresholds, refusals."""

import copy
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sce.embedding.embedder import load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError, DataError, FingerprintMismatch, InputError, LabelError
from sce.labels import LabelSet, RaggedLabels, parse_labels
from sce.model.options import Scoring
from sce.model.settings import EXACT
from sce.predictor import Predictor
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig
from tests.tiny_models import build_roberta, build_sentence_transformer

TEXTS = ["the river rose overnight", "a short text", "the engine will not start", "thank you"]
LABELS = [
    {"name": "flood", "synonyms": ["deluge"], "description": "water where it should not be"},
    {"name": "engine trouble", "examples": ["it will not start", "smoke from the bonnet"]},
    "praise",
    "complaint",
    "other",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    build_sentence_transformer(folder / "embedder")
    build_roberta(folder / "roberta")
    return folder


@pytest.fixture(scope="module")
def embedder(folder):
    return load_embedder(
        EmbedderConfig(
            kind="sentence_transformers", model=str(folder / "embedder"), dtype="float32"
        )
    )


@pytest.fixture(scope="module", params=["tokens", "embedder"])
def predictor(request, folder, embedder):
    config = ModelConfig(
        encoder=str(folder / "roberta"), label_source=request.param, adaptor_init="normal"
    )
    fresh = build_model(config, embedder.fingerprint.to_dict(), 0.0, seed=0)
    fresh.model.config.calibration = [0.3, 0.1]
    return Predictor(fresh.model, embedder, fresh.tokenizer)


def permuted(predictor: Predictor, order: list[int]) -> bool:
    queries = predictor.embedder.embed(TEXTS).vectors
    label_set = LabelSet.parse(LABELS)
    moved = LabelSet(tuple(label_set.labels[i] for i in order))
    straight = predictor.scores(queries, label_set)
    return bool((predictor.scores(queries, moved) == straight[:, order]).all())


@settings(max_examples=10)
@given(st.permutations(range(5)))
def test_every_order_gives_the_same_answer_bit_for_bit(predictor, order):
    assert permuted(predictor, order)


def test_the_same_in_bfloat16(predictor):
    model = copy.deepcopy(predictor.model).to(torch.bfloat16)
    assert permuted(Predictor(model, predictor.embedder, predictor.tokenizer), [4, 2, 0, 1, 3])


def test_probabilities_add_up_and_are_calibrated(predictor):
    queries = predictor.embedder.embed(TEXTS).vectors
    calibrated = predictor.probabilities(queries, LABELS)
    np.testing.assert_allclose(calibrated.sum(1), 1, atol=1e-9)
    scores = predictor.scores(queries, LABELS).astype(float) / np.exp(0.3 + 0.1 * np.log(5))
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(calibrated, expected, atol=1e-6)


def test_texts_and_their_embeddings_give_the_same_answers(predictor):
    vectors = predictor.embedder.embed(TEXTS).vectors
    from_texts = predictor.predict(TEXTS, LABELS, return_scores=True, top_k=2)
    from_vectors = predictor.predict(labels=LABELS, embeddings=vectors, return_scores=True, top_k=2)
    assert from_texts == from_vectors
    for prediction in from_texts:
        assert prediction.label == max(prediction.scores, key=prediction.scores.get)
        assert prediction.top[0] == (prediction.label, prediction.score)
        assert list(prediction.scores) == [
            "flood",
            "engine trouble",
            "praise",
            "complaint",
            "other",
        ]


def test_warming_up_changes_no_answer(predictor):
    before = rebuilt(predictor).predict(TEXTS, LABELS, return_scores=True)
    warm = rebuilt(predictor)
    warm.warm_up(LABELS)
    assert len(warm._groups._prepared_sets) == 1, "the label set is ready"
    assert warm.predict(TEXTS, LABELS, return_scores=True) == before


def test_a_row_does_not_depend_on_its_neighbours(predictor):
    together = predictor.predict(TEXTS, LABELS)
    for text, prediction in zip(TEXTS, together, strict=True):
        alone = predictor.predict(text, LABELS)[0]
        assert alone.label == prediction.label
        assert alone.score == pytest.approx(prediction.score, abs=1e-5)


def test_a_label_set_a_row(predictor):
    sets = [["flood", "fire"], ["a", "b", "c"], ["flood", "fire"], ["c", "b", "a"]]
    found = predictor.predict(TEXTS, sets, return_scores=True)
    for text, label_set, prediction in zip(TEXTS, sets, found, strict=True):
        assert list(prediction.scores) == label_set
        expected = predictor.predict(text, label_set)[0]
        assert (prediction.label, prediction.score) == (
            expected.label,
            pytest.approx(expected.score, abs=1e-5),
        )
    with pytest.raises(InputError, match="2 label sets for 4 texts"):
        predictor.predict(TEXTS, sets[:2])


WORDS = [
    f"label {i} {w}" for i, w in enumerate(["flood", "fire", "praise", "cup", "fox", "parcel"] * 4)
]


def some_sets(seed: int, rows: int = 60) -> list[list[str]]:
    """Sets of one to six names; some rows share theirs."""
    random = np.random.default_rng(seed)
    sets = [list(random.permutation(WORDS)[: random.integers(1, 7)]) for _ in range(rows)]
    for row in range(0, rows, 3):
        sets[row] = ["fox", "cup", "parcel"]
    return sets


def unit(rows: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, 32)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rebuilt(predictor: Predictor, **settings) -> Predictor:
    return Predictor(predictor.model, predictor.embedder, predictor.tokenizer, **settings)


def row_scores(answers) -> list[np.ndarray]:
    return np.split(answers.scores_M, answers.offsets[1:-1])


@pytest.mark.parametrize("max_batch_tokens", [16, 2048])
def test_many_sets_answer_as_each_alone(predictor, max_batch_tokens):
    """With a small budget the shared sets take the path of one set, with a large one they do
    not."""
    bulk = rebuilt(predictor, max_batch_tokens=max_batch_tokens)
    queries, sets = unit(60), some_sets(1)
    answers = bulk.answer(queries, RaggedLabels.from_sets(sets), Scoring(4, True))
    assert answers.top_NT.shape == answers.top_scores_NT.shape == (60, 4)
    assert answers.shortlist is None
    for row, (names, scores) in enumerate(zip(sets, row_scores(answers), strict=True)):
        alone = predictor.probabilities(queries[row : row + 1], names)[0]
        np.testing.assert_allclose(scores, alone, atol=1e-5)
        top, width = answers.top_NT[row], min(4, len(names))
        np.testing.assert_array_equal(answers.top_scores_NT[row, :width], scores[top[:width]])
        assert (np.diff(answers.top_scores_NT[row, :width]) <= 0).all()
        assert (top[width:] == -1).all()
        assert np.isnan(answers.top_scores_NT[row, width:]).all()


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1))
def test_every_order_of_ragged_sets_gives_the_same_answer_bit_for_bit(predictor, seed):
    random = np.random.default_rng(seed)
    sets = some_sets(2, rows=30)
    orders = [random.permutation(len(names)) for names in sets]
    moved = [[names[i] for i in order] for names, order in zip(sets, orders, strict=True)]
    queries = unit(30)
    straight, other = (  # nothing that one keeps may reach the other
        rebuilt(predictor, max_batch_tokens=40).answer(
            queries, RaggedLabels.from_sets(s), Scoring(3, True)
        )
        for s in (sets, moved)
    )
    for order, a, b in zip(orders, row_scores(straight), row_scores(other), strict=True):
        assert (a[order] == b).all()
    for row, order in enumerate(orders):
        there = other.top_NT[row] >= 0
        assert (order[other.top_NT[row][there]] == straight.top_NT[row][there]).all()


def test_equal_scores_fall_to_the_canonical_first(predictor):
    """Two labels with the same vector tie whatever their order."""
    model = copy.deepcopy(predictor.model)
    tied = Predictor(
        model, predictor.embedder, predictor.tokenizer, text_vectors=lambda t: unit(1)[[0] * len(t)]
    )
    if predictor.tokenizer is not None:
        model.token_embeddings.weight.data[:] = 0.5
    for names in (["b", "a", "c"], ["c", "b", "a"]):
        for labels in (names, RaggedLabels.from_sets([names] * 4)):
            answers = tied.answer(unit(4), labels, Scoring(3))
            assert [[names[k] for k in row] for row in answers.top_NT] == [["a", "b", "c"]] * 4


def test_what_is_known_of_a_label_may_differ_from_row_to_row(predictor):
    sets = [[{"name": "flood", "examples": ["water"]}, "cup"], ["flood", "cup"], ["cup", "flood"]]
    queries = np.repeat(unit(1), 3, axis=0)
    scores = row_scores(predictor.answer(queries, RaggedLabels.from_sets(sets), Scoring(1, True)))
    np.testing.assert_allclose(scores[1], scores[2][::-1], atol=1e-6)
    for names, found in zip(sets, scores, strict=True):
        np.testing.assert_allclose(found, predictor.probabilities(unit(1), names)[0], atol=1e-5)


@pytest.mark.parametrize("labels", [LABELS, RaggedLabels.from_sets([LABELS, ["a"], LABELS, ["b"]])])
def test_vectors_of_label_texts_come_with_the_call(predictor, labels):
    parsed = parse_labels(labels)
    served = rebuilt(predictor)
    texts = served.new_label_texts(parsed)
    templates = {"This text is about flood.", "news about flood", "flood question"}
    assert set(texts) >= {*templates, "engine trouble", "deluge", "it will not start"}
    assert "flood" not in texts, "a name of one word stands in templates alone"
    served._text_vectors = None  # would fail if it were asked
    vectors = predictor.embedder.embed(texts).vectors
    found = served.answer(unit(4), parsed, Scoring(1, True), label_texts=dict(zip(texts, vectors)))
    np.testing.assert_allclose(
        found.scores_M,
        rebuilt(predictor).answer(unit(4), parsed, Scoring(1, True)).scores_M,
        atol=1e-6,
    )
    assert served.new_label_texts(parsed) == []


@pytest.mark.parametrize("ragged", [False, True])
def test_a_shortlist(predictor, ragged):
    short = rebuilt(predictor, shortlist_above=10, shortlist_size=5)
    queries = unit(9)
    sets = [WORDS[i:] + WORDS[:i] for i in range(9)]
    order = np.random.default_rng(0).permutation(len(WORDS))
    moved = [[names[i] for i in order] for names in sets]
    labels = [RaggedLabels.from_sets(s) if ragged else s[0] for s in (sets, moved)]
    straight, other = (short.answer(queries, s, Scoring(7, True)) for s in labels)
    assert straight.shortlist == 5
    for row, (a, b) in enumerate(zip(row_scores(straight), row_scores(other), strict=True)):
        assert (a[order] == b).all()
        assert (a > 0).sum() == 5
        assert a.sum() == pytest.approx(1, abs=1e-5)
        assert (straight.top_NT[row] >= 0).tolist() == [True] * 5 + [False] * 2
        kept = [sets[row if ragged else 0][k] for k in np.flatnonzero(a)]
        exact = predictor.scores(queries[row : row + 1], kept)[0]
        temperature = float(predictor.temperature.at(len(WORDS)))
        expected = np.exp(exact / temperature) / np.exp(exact / temperature).sum()
        np.testing.assert_allclose(a[a > 0], expected, atol=1e-5)
    if not ragged:
        np.testing.assert_allclose(
            short.probabilities(queries, sets[0]).ravel(), straight.scores_M, atol=1e-6
        )
        np.testing.assert_array_equal(
            short.scores(queries, sets[0]), predictor.scores(queries, sets[0])
        )


def test_up_to_the_switch_every_label_is_contextualised(predictor):
    labels = WORDS[:10]
    exact = rebuilt(predictor, shortlist_above=EXACT).answer(unit(5), labels, Scoring(1, True))
    at = rebuilt(predictor, shortlist_above=10, shortlist_size=5).answer(
        unit(5), labels, Scoring(1, True)
    )
    assert at.shortlist is None
    np.testing.assert_array_equal(at.scores_M, exact.scores_M)
    with pytest.raises(ConfigError, match="less than the shortlist's 20 labels"):
        rebuilt(predictor, shortlist_above=10, shortlist_size=20)
    with pytest.raises(ConfigError, match="at least 1"):
        rebuilt(predictor, shortlist_above=0)


def test_answers_of_no_rows_and_of_hundreds_of_labels(predictor):
    for labels in (WORDS, RaggedLabels.from_sets([])):
        none = predictor.answer(unit(0), labels, Scoring(2, True))
        assert len(none) == 0
        assert len(none.scores_M) == 0
    many = [f"label {i}" for i in range(300)]
    exact = rebuilt(predictor, shortlist_above=EXACT)
    answers = exact.answer(unit(3), many, Scoring(300, True))
    assert sorted(answers.top_NT[0]) == list(range(300))
    assert answers.scores_M.reshape(3, 300).sum(1) == pytest.approx(np.ones(3), abs=1e-4)
    assert predictor.answer(unit(3), many).shortlist == 100


def test_the_first_argument_may_be_embeddings(predictor):
    queries = unit(4)
    expected = predictor.predict(embeddings=queries, labels=LABELS)
    assert predictor.predict(queries, LABELS) == expected
    assert predictor.predict(torch.from_numpy(queries), LABELS) == expected
    assert predictor.predict(np.array(TEXTS), LABELS) == predictor.predict(TEXTS, LABELS)
    with pytest.raises(InputError, match=r"\[N, 32\]"):
        predictor.predict(queries[0], LABELS)


def test_called_like_the_transformers_pipeline(predictor):
    found = predictor(TEXTS, candidate_labels=["flood", "praise", "other"])
    for text, one in zip(TEXTS, found, strict=True):
        assert one["sequence"] == text
        assert one["scores"] == sorted(one["scores"], reverse=True)
        assert sum(one["scores"]) == pytest.approx(1, abs=1e-5)
        prediction = predictor.predict(text, ["flood", "praise", "other"])[0]
        assert one["labels"][0] == prediction.label
    assert predictor(TEXTS[0], "flood, praise,other")["labels"] == found[0]["labels"]
    short = rebuilt(predictor, shortlist_above=2, shortlist_size=2)
    assert sorted(short(TEXTS[0], ["flood", "praise", "other"])["labels"]) == [
        "flood",
        "other",
        "praise",
    ]


def test_below_the_threshold_the_label_is_none_and_the_score_stays(predictor):
    for prediction in predictor.predict(TEXTS, LABELS, threshold=1.0):
        assert prediction.label is None
        assert 0 < prediction.score < 1


def test_texts_in_any_container_that_has_an_order(predictor):
    expected = predictor.predict(TEXTS, LABELS)
    for texts in (
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, object),
        (text for text in TEXTS),
        pd.Series(TEXTS, index=range(7, 7 + len(TEXTS))),
        pd.DataFrame({"text": TEXTS})["text"],
        pa.array(TEXTS),
        pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
    ):
        assert predictor.predict(texts, LABELS) == expected
    vectors = predictor.embedder.embed(TEXTS).vectors
    column = pd.Series(TEXTS, index=range(7, 7 + len(TEXTS)))
    np.testing.assert_array_equal(predictor.embedder.embed(column).vectors, vectors)
    expected = predictor.predict(embeddings=vectors, labels=LABELS)
    for embeddings in (
        vectors.tolist(),
        list(vectors),
        vectors.astype(np.float64),
        pd.Series(list(vectors)),
        pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
        torch.from_numpy(vectors),
    ):
        assert predictor.predict(embeddings=embeddings, labels=LABELS) == expected
    assert predictor.predict(vectors, LABELS) == expected
    sets = [LABELS, ["x"], LABELS, ["y", "z"]][: len(TEXTS)]
    assert predictor.predict(TEXTS, pd.Series(sets)) == predictor.predict(TEXTS, sets)


@pytest.mark.system
def test_columns_of_polars(predictor):
    polars = pytest.importorskip("polars", reason="pip install '.[readers]'")
    vectors = predictor.embedder.embed(TEXTS).vectors
    expected = predictor.predict(TEXTS, LABELS)
    assert predictor.predict(polars.DataFrame({"text": TEXTS})["text"], LABELS) == expected
    for column in (polars.Series(vectors), polars.Series(vectors.tolist())):
        assert predictor.predict(embeddings=column, labels=LABELS) == expected
    with pytest.raises(DataError, match="one column"):
        predictor.predict(polars.DataFrame({"text": TEXTS}), LABELS)


def test_a_bad_row_does_not_hinder_the_others(predictor):
    good = predictor.predict(TEXTS[:2], LABELS, return_scores=True)
    texts = [TEXTS[0], " ", None, 7, float("nan"), pd.NA, "\ud800", TEXTS[1]]
    found = predictor.predict(texts, LABELS, return_scores=True)
    assert [one.error for one in found] == [
        None, "text_empty", "text_null", "text_not_string", "text_null", "text_null",
        "text_not_unicode", None,
    ]  # fmt: skip
    assert [found[0], found[-1]] == good
    assert (found[1].label, found[1].score, found[1].scores) == (None, None, None)
    vectors = predictor.embedder.embed(TEXTS).vectors
    good = predictor.predict(embeddings=vectors, labels=LABELS)
    bent = np.concatenate([vectors[:1], 10 * vectors, 0 * vectors, vectors[1:]])
    bent[1, 0] = np.nan
    found = predictor.predict(embeddings=bent, labels=LABELS)
    count = len(vectors)
    errors = ["embedding_not_finite", *["embedding_not_unit"] * (2 * count - 1)]
    assert [one.error for one in found[1 : 1 + 2 * count]] == errors
    assert [found[0], *found[1 + 2 * count :]] == good
    sets = [["a", "b"], ["c"], ["d", "e"]]
    found = predictor.predict([TEXTS[0], "", TEXTS[1]], sets)
    alone = predictor.predict([TEXTS[0], TEXTS[1]], [sets[0], sets[2]])
    assert [found[0], found[2]] == alone
    assert [one.error for one in predictor.predict(["", " "], LABELS)] == ["text_empty"] * 2


def test_other_forms_of_labels(predictor):
    mapping = predictor.predict(TEXTS[0], {"flood": "water", "fire": "flames"})
    assert mapping[0].label in ("flood", "fire")
    assert predictor.predict(TEXTS, candidate_labels=["x"])[0].score == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"texts": TEXTS, "labels": []}, LabelError, "empty"),
        ({"labels": ["a"]}, InputError, "either texts or embeddings"),
        ({"embeddings": np.zeros((2, 5)), "labels": ["a"]}, InputError, r"\[N, 32\]"),
        (
            {"embeddings": np.full((2, 32), np.nan), "labels": ["a"], "errors": "raise"},
            InputError,
            r"embeddings\[0\]: .*NaN.*embedding_not_finite",
        ),
        ({"texts": ["a", " "], "labels": ["a"], "errors": "raise"}, DataError, r"texts\[1\]"),
        ({"texts": ["a"], "labels": ["a"], "errors": "ignore"}, InputError, "'keep', 'raise'"),
        ({"texts": TEXTS, "labels": [["a"], "b", ["c"], ["d"]]}, LabelError, r"labels\[1\]"),
        ({"texts": TEXTS, "labels": [["a"], ["a", "a"], ["c"], ["d"]]}, LabelError, "twice"),
        ({"texts": TEXTS, "labels": ["a"], "top_k": -1}, InputError, "top_k"),
        ({"texts": TEXTS, "labels": ["a"], "top_k": 0}, InputError, "top_k"),
        ({"texts": TEXTS, "labels": ["a"], "threshold": 60}, InputError, "threshold: 60"),
        ({"texts": TEXTS, "labels": ["a"], "threshold": -0.1}, InputError, "threshold"),
        ({"texts": TEXTS, "labels": ["a"], "threshold": float("nan")}, InputError, "threshold"),
        ({"texts": {"t1": "a text"}, "labels": ["a"]}, DataError, "dict"),
        ({"texts": {"a text"}, "labels": ["a"]}, DataError, "set"),
        ({"texts": b"a text", "labels": ["a"]}, DataError, "bytes"),
        ({"texts": 7, "labels": ["a"]}, DataError, "int"),
        ({"texts": pd.DataFrame({"text": TEXTS}), "labels": ["a"]}, DataError, "one column"),
        ({"texts": pa.table({"text": TEXTS}), "labels": ["a"]}, DataError, "one column"),
        ({"embeddings": ["a", "b"], "labels": ["a"]}, DataError, "not N vectors of 32"),
    ],
)
def test_wrong_input_is_refused(predictor, call, error, message):
    with pytest.raises(error, match=message):
        predictor.predict(**call)


def test_another_embedder_is_refused(folder, predictor, tmp_path):
    build_sentence_transformer(tmp_path / "other", pooling="cls")
    other = load_embedder(
        EmbedderConfig(kind="sentence_transformers", model=str(tmp_path / "other"))
    )
    with pytest.raises(FingerprintMismatch, match="pooling"):
        Predictor(predictor.model, other)


def test_a_saved_model_answers_like_the_one_in_memory(predictor, tmp_path):
    predictor.model.save_pretrained(tmp_path)
    if predictor.tokenizer is not None:
        predictor.tokenizer.save_pretrained(tmp_path)
    loaded = Predictor.from_pretrained(tmp_path, predictor.embedder)
    assert loaded.predict(TEXTS, LABELS) == predictor.predict(TEXTS, LABELS)
    assert "/" not in (tmp_path / "config.json").read_text(), "no path of a machine in it"


def test_bfloat16_keeps_the_scales_and_comes_close(predictor, tmp_path):
    predictor.model.save_pretrained(tmp_path)
    if predictor.tokenizer is not None:
        predictor.tokenizer.save_pretrained(tmp_path)
    half = Predictor.from_pretrained(tmp_path, predictor.embedder, dtype="bfloat16")
    assert half.model.query_adaptor.weight.dtype == torch.bfloat16
    assert (half.model.log_prior_scale == predictor.model.log_prior_scale).all()
    queries = unit(20)
    exact = predictor.probabilities(queries, LABELS)
    np.testing.assert_allclose(half.probabilities(queries, LABELS), exact, atol=0.05)
    with pytest.raises(ConfigError, match="'float16' is not one of"):
        Predictor.from_pretrained(tmp_path, predictor.embedder, dtype="float16")


def test_no_model_is_an_input_error(tmp_path, embedder):
    with pytest.raises(InputError, match="no SCE model at"):
        Predictor.from_pretrained(tmp_path / "nowhere", embedder)


def test_a_predictor_that_was_loaded_is_loaded_again_where_it_arrives(folder, tmp_path):
    settings = EmbedderConfig(
        kind="sentence_transformers", model=str(folder / "embedder"), dtype="float32"
    )
    config = ModelConfig(encoder=str(folder / "roberta"), adaptor_init="normal")
    fingerprint = load_embedder(settings).fingerprint.to_dict()
    build_model(config, fingerprint, 0.0, seed=0).model.save_pretrained(tmp_path / "model")
    one = Predictor.from_pretrained(tmp_path / "model", settings, shortlist_above=7)
    other = pickle.loads(pickle.dumps(one))
    assert other.shortlist_above == 7
    assert other.predict(TEXTS, LABELS) == one.predict(TEXTS, LABELS)
    parts = Predictor(one.model, one.embedder)
    with pytest.raises(TypeError, match=r"cannot be pickled; .*from_pretrained"):
        pickle.dumps(parts)
