"""Batching across requests: the answers are the predictor's, whatever shares the batch."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sce.labels import LabelSet, RaggedLabels
from sce.model.options import Scoring
from serve.batching import BatchReport, DeviceQueue, Lane
from serve.cache import CachedText, VectorCache
from serve.work import ModelAnswer, ModelRequest
from tests.serve.conftest import make_engine, run

TEXTS = [f"text {i} of the {'long ' * (i % 7)}river that rose" for i in range(40)]
SETS = [
    LabelSet.parse(["flood", "engine trouble", "praise"]),
    LabelSet.parse(["praise", "flood", "engine trouble"]),  # the same in another order
    LabelSet.parse(
        [{"name": "flood", "description": "water", "examples": ["it rained"]}, "b", "c", "d"]
    ),
    LabelSet.parse([f"label {k}" for k in range(30)]),
    LabelSet.parse(["only"]),
]


def ask(engine, texts, labels, top_k=1, return_scores=False, **more) -> ModelAnswer:
    return engine.answer(ModelRequest(texts, labels, Scoring(top_k, return_scores), **more))


def check(found: ModelAnswer, predictor, texts, labels) -> None:
    """The same labels as the predictor's alone, and the same scores but for rounding."""
    vectors = predictor.embedder.embed(texts).vectors
    top_k = len(labels) if isinstance(labels, LabelSet) else 2
    alone = predictor.answer(vectors, labels, Scoring(top_k, True))
    assert found.answers is not None
    assert found.good_N.all()
    np.testing.assert_array_equal(found.answers.offsets, alone.offsets)
    np.testing.assert_allclose(found.answers.scores_M, alone.scores_M, atol=2e-5)
    np.testing.assert_array_equal(found.answers.top_NT[:, 0], alone.top_NT[:, 0])


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12),
            st.lists(st.sampled_from(range(len(SETS))), min_size=1, max_size=12),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=10)
def test_requests_that_share_batches_get_their_own_answers(loaded, predictor, asked):
    requests = []
    for texts, sets, ragged in asked:
        chosen = [SETS[sets[i % len(sets)]] for i in range(len(texts))]
        labels = RaggedLabels.from_sets(chosen) if ragged else chosen[0]
        requests.append((texts, labels))

    async def all_at_once():
        engine = make_engine(loaded, embed_tokens=64, classify_tokens=64)
        try:
            return await asyncio.gather(
                *(ask(engine, *one, top_k=30, return_scores=True) for one in requests)
            )
        finally:
            engine.close()

    for found, (texts, labels) in zip(run(all_at_once()), requests, strict=True):
        check(found, predictor, texts, labels)


def test_batches_hold_several_requests_and_keep_to_the_budget(loaded):
    reports: list[BatchReport] = []

    async def many():
        engine = make_engine(loaded, report=reports.append, classify_tokens=100)
        labels = SETS[0]
        await asyncio.gather(*(ask(engine, [text], labels) for text in TEXTS))
        engine.close()

    run(many())
    classify = [r for r in reports if r.lane == "classify"]
    assert max(r.items for r in classify) > 5
    assert all(r.cost <= 100 for r in classify)
    assert sum(r.items for r in classify) == len(TEXTS)


def test_a_large_request_lets_a_small_one_in_between(loaded):
    ended: list[str] = []

    async def both():
        engine = make_engine(loaded, embed_tokens=64, classify_tokens=64)

        async def one(name, texts):
            await ask(engine, texts, SETS[0])
            ended.append(name)

        large = asyncio.create_task(one("large", [f"{t} {i}" for i in range(8) for t in TEXTS]))
        await asyncio.sleep(0.05)
        await asyncio.gather(large, one("small", ["a short one"]))
        engine.close()

    run(both())
    assert ended == ["small", "large"]


def test_bad_rows_leave_the_others_alone(loaded, predictor):
    texts = ["", "good one", " \n", "\ud800", "good two", "word " * 500]

    async def ask_both():
        engine = make_engine(loaded)
        cut = await ask(engine, texts, SETS[0])
        refused = await ask(engine, texts, SETS[0], truncate=False)
        engine.close()
        return cut, refused

    cut, refused = run(ask_both())
    codes = {0: "text_empty", 2: "text_empty", 3: "text_not_unicode"}
    assert cut.errors == codes
    assert cut.truncated_N.tolist() == [False] * 5 + [True]
    assert len(cut.answers) == 3
    assert refused.errors == codes | {5: "text_too_long"}
    assert not refused.truncated_N.any()
    assert len(refused.answers) == 2
    alone = predictor.answer(predictor.embedder.embed(["good one", "good two"]).vectors, SETS[0])
    np.testing.assert_array_equal(refused.answers.top_NT, alone.top_NT)


def test_a_row_with_its_own_labels_is_left_out_with_them(loaded, predictor):
    sets = RaggedLabels.from_sets([["a", "b"], ["c"], ["d", "e", "f"]])

    async def ask_it():
        return await ask(make_engine(loaded), ["one", "", "three"], sets, return_scores=True)

    found = run(ask_it())
    kept = RaggedLabels.from_sets([["a", "b"], ["d", "e", "f"]])
    vectors = predictor.embedder.embed(["one", "three"]).vectors
    alone = predictor.answer(vectors, kept, Scoring(1, True))
    np.testing.assert_allclose(found.answers.scores_M, alone.scores_M, atol=2e-5)


def test_embeddings_are_checked_row_by_row(loaded, predictor):
    vectors = predictor.embedder.embed(TEXTS[:4]).vectors.copy()
    vectors[1, 0] = np.nan
    vectors[2] *= 3
    request = ModelRequest(vectors, SETS[0], errors={3: "embedding_wrong_size"})
    found = run(make_engine(loaded).answer(request))
    assert found.errors == {
        1: "embedding_not_finite", 2: "embedding_not_unit", 3: "embedding_wrong_size",
    }  # fmt: skip
    assert len(found.answers) == 1


@pytest.mark.parametrize("cache_bytes", [2**20, 0])
def test_a_text_is_embedded_once_under_any_labels(loaded, predictor, cache_bytes):
    async def twice():
        engine = make_engine(loaded, cache_bytes)
        first = await ask(engine, [*TEXTS, TEXTS[0]], SETS[0], top_k=3, return_scores=True)
        second = await ask(engine, TEXTS, SETS[3], top_k=30, return_scores=True)
        third = await ask(engine, TEXTS, SETS[3])
        engine.close()
        return first, second, third

    first, second, third = run(twice())
    labels = len({t for label in SETS[0].labels for t in label.info_texts})
    assert first.cached == 0
    assert first.embedded >= len(TEXTS)
    assert first.embedded <= len(TEXTS) + labels
    assert second.cached == third.cached == (len(TEXTS) if cache_bytes else 0)
    assert third.embedded == (0 if cache_bytes else len(TEXTS))
    assert second.tokens == third.tokens > 0
    check(second, predictor, TEXTS, SETS[3])


def test_a_failure_is_of_its_request_alone(loaded):
    class Broken:
        """Fails where a piece has the marked cost."""

        def __call__(self, items):
            if "bad" in items:
                raise RuntimeError("out of memory")
            return [item.upper() for item in items]

    async def submit():
        queue = DeviceQueue(ThreadPoolExecutor(1), [Lane("x", Broken(), 10)], lambda report: None)
        tasks = [queue.submit("x", item, 1) for item in ("a", "bad", "b")]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        queue.close()
        return found

    a, bad, b = run(submit())
    assert (a, b) == ("A", "B")
    assert isinstance(bad, RuntimeError)


def test_what_nobody_waits_for_is_not_done():
    started, release, done = threading.Event(), threading.Event(), []

    def work(items):
        started.set()
        release.wait(10)
        done.extend(items)
        return items

    async def submit():
        queue = DeviceQueue(ThreadPoolExecutor(1), [Lane("x", work, 1)], lambda report: None)
        first = asyncio.create_task(queue.submit("x", "first", 1))
        await asyncio.to_thread(started.wait, 10)
        gone = asyncio.create_task(queue.submit("x", "gone", 1))
        last = asyncio.create_task(queue.submit("x", "last", 1))
        await asyncio.sleep(0)
        gone.cancel()
        release.set()
        await asyncio.gather(first, last)
        queue.close()

    run(submit())
    assert done == ["first", "last"]


def test_the_cache_keeps_to_its_bytes_and_forgets_what_was_used_longest_ago():
    cache = VectorCache(10 * (400 + 4 * 8))
    keys = [VectorCache.key("f", str(i)) for i in range(20)]
    entries = [CachedText(np.full(8, i, np.float32), i, False) for i in range(20)]
    cache.put(keys[:10], entries[:10])
    assert cache.get(keys[:1])[0] is not None  # used now
    cache.put(keys[10:15], entries[10:15])
    held = [i for i, entry in enumerate(cache.get(keys)) if entry is not None]
    assert held == [0, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert cache._entries.currsize <= 10 * (400 + 4 * 8)
    assert VectorCache.key("f", "x") != VectorCache.key("g", "x")


LONG = "the river rose overnight. it was the engine that failed? " * 30


@pytest.mark.parametrize("pooling", ["vector", "mean"])
def test_long_texts_are_read_whole_in_chunks(loaded, predictor, pooling):
    texts = [LONG, "a short text", " ", LONG[5:]]
    scoring = Scoring(3, True, pooling)

    async def ask_twice():
        engine = make_engine(loaded, embed_tokens=64, classify_tokens=64)
        try:
            request = ModelRequest(texts, SETS[0], scoring, max_chunks=99)
            few = ModelRequest(texts, SETS[0], scoring, max_label_tokens=100, max_chunks=99)
            fewer = ModelRequest(texts, SETS[0], scoring, max_label_tokens=40, max_chunks=99)
            whole = ModelRequest(texts, SETS[0], scoring, truncate=False, max_chunks=2)
            one_a_row = ModelRequest(
                texts, SETS[0].by_row(len(texts)), scoring, truncate=True, max_chunks=99
            )
            asked = (request, few, fewer, whole, one_a_row)
            return await asyncio.gather(*(engine.answer(one) for one in asked))
        finally:
            engine.close()

    found, refused, short, whole, one_a_row = run(ask_twice())
    alone = predictor.predict(
        texts, SETS[0], top_k=3, return_scores=True, long_text="chunk", pooling=pooling
    )
    assert found.errors == {2: "text_empty"}
    assert not found.truncated_N.any()
    good = [one for one in alone if one.error is None]
    assert [tuple(where) for where in found.answers.where_N2.tolist()] == [g.where for g in good]
    assert good[0].where[1] - good[0].where[0] < len(LONG) / 2
    expected = np.concatenate([list(one.scores.values()) for one in good])
    for answered in (found, one_a_row):
        np.testing.assert_allclose(answered.answers.scores_M, expected, atol=2e-5)
    assert refused.answers is None
    assert refused.too_many > 100
    assert short.errors == whole.errors
    assert len(short.answers) == 1
    assert whole.errors == {0: "text_too_long", 2: "text_empty", 3: "text_too_long"}
    assert len(whole.answers) == 1
