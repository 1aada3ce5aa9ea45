"""F2LLM's layout: Qwen3, last-token pooling, an end of text, and no prompt on either side."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import Qwen3Model

from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.embedder import load_embedder
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.settings import EmbedderConfig
from sce.embedding.tokenising import batches
from sce.errors import EmbedderError
from tests.tiny_models import build_f2llm

TEXTS = ["a dog", "the lazy fox " * 6, "refund", "interest rates rose on Thursday", "a", "cup"]
END = 2


@pytest.fixture(scope="module", params=[False, True], ids=["bare", "appends"])
def folder(request, tmp_path_factory):
    return build_f2llm(tmp_path_factory.mktemp("f2llm"), appends_end=request.param)


def config(folder, **settings):
    settings = {"end_token": True} | settings
    return EmbedderConfig(kind="sentence_transformers", model=str(folder), device="cpu", **settings)


def plain_vectors(folder, texts, dtype=torch.float32):
    """A text at a time, without padding: its last hidden state, of unit norm."""
    model = Qwen3Model.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = []
    for text in texts:
        ids = [*tokenizer.encode(text, add_special_tokens=False).ids, END]
        with torch.no_grad():
            state = model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1].double()
        rows.append((state / (state * state).sum().sqrt()).numpy())
    return np.stack(rows)


def test_the_checkpoint_has_shards_in_bfloat16(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert Qwen3Model.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


def test_vectors_are_the_last_hidden_states_and_know_no_neighbours(folder):
    embedder = load_embedder(config(folder, max_batch_tokens=120))
    together = embedder.embed(TEXTS).vectors
    np.testing.assert_allclose(together, plain_vectors(folder, TEXTS), atol=1e-5)
    alone = np.concatenate([embedder.embed([text]).vectors for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert len(list(batches(embedder.tokenise(TEXTS), 120, pad_id=0))) > 1
    assert embedder.fingerprint.pooling == "lasttoken"
    assert embedder.fingerprint.max_tokens == 96


def test_bfloat16_is_computed_in(folder):
    embedder = load_embedder(config(folder, dtype="bfloat16"))
    wanted = plain_vectors(folder, TEXTS, torch.bfloat16)
    assert (embedder.embed(TEXTS).vectors * wanted).sum(1).min() > 0.999


def test_texts_are_read_as_documents_with_one_end(folder):
    embedder = load_embedder(config(folder))
    tokens = embedder.tokenise(TEXTS)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bare = [plain.encode(text, add_special_tokens=False).ids for text in TEXTS]
    parts = np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1])
    assert [part.tolist() for part in parts] == [[*ids, END] for ids in bare]


def test_a_cut_text_keeps_its_end(folder):
    embedder = load_embedder(config(folder, max_tokens=8))
    tokens = embedder.tokenise(["the lazy fox " * 6, "a"])
    assert tokens.lengths.tolist() == [8, 2]
    assert tokens.ids[7] == END
    assert tokens.truncated.tolist() == [True, False]


def test_what_a_tokenizer_does_not_do_must_be_said(tmp_path):
    bare = build_f2llm(tmp_path / "bare")
    with pytest.raises(EmbedderError, match=r"end_token: true .*'<\|im_end\|>'"):
        embedder_fingerprint(config(bare, end_token=None))
    with_end, without = (embedder_fingerprint(config(bare, end_token=e)) for e in (True, False))
    assert with_end.id != without.id
    assert (with_end.end_token, without.end_token) == ("<|im_end|>", None)
    appends = build_f2llm(tmp_path / "appends", appends_end=True)
    ids = {embedder_fingerprint(config(appends, end_token=e)).id for e in (True, False, None)}
    assert len(ids) == 1
    tokens = load_embedder(config(bare, end_token=False)).tokenise(["a dog"])
    assert END not in tokens.ids


def test_a_fingerprint_loads_the_same_embedder(tmp_path):
    folder = build_f2llm(tmp_path / "bare")
    for end in (True, False):
        made = embedder_fingerprint(config(folder, end_token=end))
        written = json.loads(json.dumps(made.to_dict()))
        again = EmbedderConfig.from_fingerprint(written | {"model": str(folder)})
        assert embedder_fingerprint(again).id == made.id
    del written["end_token"]  # of a version that did not know it
    assert EmbedderFingerprint.from_dict(written).id == made.id
