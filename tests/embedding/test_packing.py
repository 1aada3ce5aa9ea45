"""Texts without padding: the same vectors as with it, and no bit of them from a neighbour."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from sce.datasets.inbox import inbox_rows
from sce.embedding.embedder import embed_batch, load_embedder
from sce.embedding.packing import LANES, can_pack, is_packed, pack_attention, packs
from sce.embedding.settings import EmbedderConfig
from sce.embedding.tokenising import TokenisedTexts, batches
from sce.model.arithmetic import multiplies_bfloat16

LENGTHS = np.array([3, 40, 17, 1, 16, 33, 3, 25])
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 90,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}


def some_tokens(lengths: np.ndarray = LENGTHS) -> TokenisedTexts:
    ids = np.random.default_rng(0).integers(2, 90, int(lengths.sum()))
    return TokenisedTexts(ids, lengths, np.zeros(len(lengths), bool))


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "jina_embeddings_v3"])
def test_vectors_are_those_of_padded_texts(kind, pooling):
    assert can_pack(kind, "cpu")
    assert not can_pack(kind, "cuda")
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **SIZES)).eval()
    tokens = some_tokens()
    (batch,) = batches(tokens, 4096, pad_id=1)
    (pack,) = packs(tokens, 4096)
    np.testing.assert_array_equal(pack.positions, batch.positions)
    expected = embed_batch(model, batch, pooling)
    assert not is_packed(model)
    pack_attention(model)
    assert is_packed(model)
    np.testing.assert_allclose(embed_batch(model, pack, pooling), expected, atol=2e-6)
    # without a layout the model takes padded texts as before
    np.testing.assert_allclose(embed_batch(model, batch, pooling), expected, atol=2e-6)


def test_a_pass_is_bounded_with_padding_and_without():
    lengths = np.array([64] + [4] * 60)
    found = list(packs(some_tokens(lengths), 128))
    assert sorted(np.concatenate([pack.positions for pack in found])) == list(range(61))
    for pack in found:
        assert len(pack.input_ids) == pack.lengths.sum() <= 128
        assert len(pack.lengths) * pack.lengths.max() <= 256
    assert [len(pack.lengths) for pack in found] == [4, 32, 25]
    (alone, rest) = packs(some_tokens(np.array([2, 300])), 128)
    assert (alone.lengths.tolist(), rest.lengths.tolist()) == ([300], [2])
    assert list(packs(some_tokens(np.array([], int)), 128)) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_bit_of_a_vector_is_a_neighbours(dtype):
    if dtype == "bfloat16" and not multiplies_bfloat16("cpu"):
        pytest.skip("no bfloat16 instructions")
    texts = [row.text for row in inbox_rows("inbox/topics")[0][:48]]
    embedder = load_embedder(EmbedderConfig(dtype=dtype, device="cpu"))
    lengths = embedder.tokenise(texts).lengths
    assert len(set(-(-lengths // LANES))) > 2
    together = embedder.embed(texts).vectors
    alone = np.concatenate([embedder.embed([text]).vectors for text in texts])
    if dtype == "bfloat16":
        np.testing.assert_array_equal(together, alone)
    else:  # the last bits of a float32 product depend on how many rows it has
        np.testing.assert_allclose(together, alone, atol=1e-6)
