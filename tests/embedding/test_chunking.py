"""Where long texts are cut: every character is in a chunk, each fits, and nothing depends on
neighbours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sce.embedding.chunking import Chunks, cut
from sce.embedding.embedder import load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.errors import DataError
from tests.tiny_models import build_sentence_transformer

MOST = 60
SENTENCE = "The river rose overnight. "


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = build_sentence_transformer(tmp_path_factory.mktemp("models") / "embedder")
    return load_embedder(EmbedderConfig(kind="sentence_transformers", model=str(folder)))


def check(embedder, text: str, chunks: Chunks) -> list[str]:
    """Every chunk is read whole, and all characters but white space are in one."""
    pieces = list(chunks.texts([text]))
    assert max(embedder.tokenise(pieces).lengths) <= MOST
    assert chunks.spans_C2[0, 0] == 0
    assert chunks.spans_C2[-1, 1] == len(text)
    for (_, end), (start, _) in zip(chunks.spans_C2, chunks.spans_C2[1:]):
        assert not text[end:start].strip()
    assert (np.diff(chunks.spans_C2, axis=0) > 0).all()
    return pieces


def test_chunks_end_with_sentences_and_are_of_like_length(embedder):
    text = SENTENCE * 40
    pieces = check(embedder, text, embedder.chunk([text], MOST))
    assert len(pieces) > 3
    assert all(piece.rstrip().endswith(".") for piece in pieces)
    assert all(piece.startswith("The river") for piece in pieces)


@pytest.mark.parametrize("stop", ["。", "！", "？", "\n", "? ", "... "])
def test_other_ends_of_sentences(embedder, stop):
    text = stop.join(["the river rose over night"] * 40)
    for piece in check(embedder, text, embedder.chunk([text], MOST))[1:]:
        assert piece.startswith("the river")


def test_a_transcript_without_sentences_is_cut_between_words(embedder):
    text = "so the river rose and then we closed it " * 400
    pieces = check(embedder, text, embedder.chunk([text], MOST))
    words = {"so", "the", "river", "rose", "and", "then", "we", "closed", "it"}
    assert {word for piece in pieces for word in piece.split()} == words


@pytest.mark.parametrize(
    "text", ["é" * 50_000, "x" * 150_000, "。" * 3000, "a\u00a0" * 2000, "-" * 999]
)
def test_a_text_without_a_space_is_cut_all_the_same(embedder, text):
    check(embedder, text, embedder.chunk([text], MOST))


def test_a_short_text_is_one_chunk_with_its_white_space(embedder):
    texts = ["  short \n", "也", "a"]
    found = embedder.chunk(texts, MOST)
    assert list(found.texts(texts)) == texts
    with pytest.raises(DataError, match=r"texts\[1\]"):
        embedder.chunk(["a", " \n"])


def test_what_is_behind_the_most_chunks_is_not_read_and_that_is_said(embedder):
    text = SENTENCE * 50
    found = embedder.chunk([text, "short"], MOST, max_chunks=3)
    assert found.counts_N.tolist() == [3, 1]
    assert found.truncated_N.tolist() == [True, False]
    whole = embedder.chunk([text], MOST)
    assert not whole.truncated_N.any()


@given(st.lists(st.text(min_size=1, max_size=300).filter(str.strip), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_text_is_covered_and_no_neighbour_counts(embedder, texts):
    texts = [text for text in texts if text.encode("utf-8", "ignore").decode() == text]
    together = embedder.chunk(texts, MOST)
    start = 0
    for text, count in zip(texts, together.counts_N):
        alone = embedder.chunk([text], MOST)
        np.testing.assert_array_equal(together.spans_C2[start : start + count], alone.spans_C2)
        if text.strip():
            check(embedder, text, alone)
        start += count


def test_a_chunk_that_has_more_tokens_alone_is_halved():
    class Encoded:
        def __init__(self, text: str) -> None:
            # A word costs a token more at the beginning of a text, as where one is cut.
            self.offsets = [(0, 0)] * (text[:1] == "b") + [(i, i + 1) for i in range(len(text))]

        def __len__(self) -> int:
            return len(self.offsets)

    text = "a" + "b" * 20
    found = cut([text], lambda texts: [Encoded(one) for one in texts], 5)
    assert "".join(sorted(set("".join(found.texts([text]))))) == "ab"
    assert all(len(Encoded(piece)) <= 5 for piece in found.texts([text]))


def test_vectors_of_chunks_are_those_of_their_texts(embedder):
    text = SENTENCE * 30
    vectors, truncated_N = embedder.embed_chunks([text, "short", text])
    assert not truncated_N.any()
    chunks = embedder.chunk([text])
    alone = embedder.embed(list(chunks.texts([text])))
    assert vectors.counts_N.tolist() == [len(alone.vectors), 1, len(alone.vectors)]
    np.testing.assert_allclose(vectors.vectors_CD[: len(alone.vectors)], alone.vectors, atol=1e-5)
    assert not alone.truncated.any()
