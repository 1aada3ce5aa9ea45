"""The embedder: batches, truncation, pooling, fingerprints, and the kinds."""

import json
import shutil
import time

import numpy as np
import pytest
import torch

from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.embedder import PIECE_TEXTS, embed_batch, load_embedder
from sce.embedding.fingerprint import EmbedderFingerprint, check_fingerprint
from sce.embedding.published import published_folder
from sce.embedding.settings import EmbedderConfig
from sce.embedding.tokenising import batches
from sce.errors import DataError, EmbedderError, FingerprintMismatch
from tests.tiny_models import build_jina, build_sentence_transformer

TEXTS = ["a dog", "the lazy fox " * 4, "refund", "interest rates rose on Thursday", "a dog", "cup"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "sentence_transformers": build_sentence_transformer(root / "bert"),
        "jina": build_jina(root / "jina"),
    }


def config(folders, kind="sentence_transformers", **settings):
    return EmbedderConfig(kind=kind, model=str(folders[kind]), device="cpu", **settings)


@pytest.mark.parametrize("kind", ["sentence_transformers", "jina"])
def test_order_and_neighbours_do_not_matter(folders, kind):
    embedder = load_embedder(config(folders, kind, max_batch_tokens=40))
    together = embedder.embed(TEXTS)
    alone = np.concatenate([embedder.embed([text]).vectors for text in TEXTS])
    np.testing.assert_allclose(together.vectors, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together.vectors, axis=1), 1, atol=1e-5)
    assert together.vectors.dtype == np.float32
    assert together.vectors.flags["C_CONTIGUOUS"]
    assert together.vectors.shape == (len(TEXTS), embedder.dimension)
    assert np.abs(together.vectors[0] - together.vectors[1]).max() > 1e-2


def test_pieces_are_put_back_in_order_and_errors_name_the_text(folders, monkeypatch):
    embedder = load_embedder(config(folders))
    texts = [f"{text} {i}" for i, text in enumerate(TEXTS * 4)]
    whole = embedder.embed(texts)
    monkeypatch.setitem(PIECE_TEXTS, embedder.device.type, 5)
    pieces = embedder.embed(texts)
    np.testing.assert_allclose(pieces.vectors, whole.vectors, atol=1e-5)
    np.testing.assert_array_equal(pieces.truncated, whole.truncated)
    assert embedder.embed([]).vectors.shape == (0, embedder.dimension)
    for bad, message in [("", r"texts\[17\].*empty"), ("\ud800", r"texts\[17\].*surr")]:
        with pytest.raises(DataError, match=message):
            embedder.embed([*texts[:17], bad, *texts[18:20], bad])


def test_batches_keep_the_budget_and_hold_every_text_once(folders):
    embedder = load_embedder(config(folders, max_batch_tokens=40))
    tokens = embedder.tokenise(TEXTS)
    found = list(batches(tokens, 40, pad_id=0))
    assert all(batch.input_ids.size <= 40 or len(batch.positions) == 1 for batch in found)
    assert sorted(np.concatenate([batch.positions for batch in found])) == [*range(len(TEXTS))]
    assert sum(batch.attention_mask.sum() for batch in found) == tokens.lengths.sum()


def test_truncation_is_counted(folders):
    embedder = load_embedder(config(folders, max_tokens=8))
    exact = "a dog a dog a dog"
    texts = [exact, exact + " a", "dog"]
    assert embedder.embed(texts).truncated.tolist() == [False, True, False]
    assert embedder.tokenise(texts).lengths.tolist() == [8, 8, 3]


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["a", " \n"], r"texts\[1\].*empty"), ([None], r"texts\[0\].*no text"), (["\ud800"], "surr")],
)
def test_what_is_not_a_text_is_refused(folders, texts, message):
    with pytest.raises(DataError, match=message):
        load_embedder(config(folders)).embed(texts)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_pooling_is_read_from_the_checkpoint(tmp_path, pooling):
    folder = build_sentence_transformer(tmp_path, pooling)
    embedder = load_embedder(EmbedderConfig(kind="sentence_transformers", model=str(folder)))
    batch = next(batches(embedder.tokenise(TEXTS), 4096, pad_id=0))
    with torch.inference_mode():
        hidden = embedder._model(
            input_ids=torch.from_numpy(batch.input_ids),
            attention_mask=torch.from_numpy(batch.attention_mask),
        ).last_hidden_state
    rows = []
    for state, length in zip(hidden, batch.attention_mask.sum(axis=1)):
        choices = {"mean": state[:length].mean(0), "cls": state[0], "lasttoken": state[length - 1]}
        rows.append(torch.nn.functional.normalize(choices[pooling], dim=0))
    found = embed_batch(embedder._model, batch, pooling)
    np.testing.assert_allclose(found, torch.stack(rows), atol=1e-6)
    assert embedder.fingerprint.pooling == pooling


def test_an_unsupported_module_is_refused(tmp_path):
    folder = build_sentence_transformer(tmp_path)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "x.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EmbedderError, match="'Dense' is not supported"):
        load_embedder(EmbedderConfig(kind="sentence_transformers", model=str(folder)))


def test_jina_adapter_changes_the_vectors(folders):
    embedder = load_embedder(config(folders, "jina"))
    with_adapter = embedder.embed(TEXTS).vectors
    embedder._model.disable_adapters()
    assert np.abs(with_adapter - embedder.embed(TEXTS).vectors).max() > 1e-2
    assert embedder.fingerprint.adapter == "classification"
    assert "NC" in embedder.licence
    with pytest.raises(EmbedderError, match="'nope'; it has classification"):
        load_embedder(config(folders, "jina", adapter="nope"))


def test_minilm_with_other_weights_is_refused(tmp_path):
    folder = shutil.copytree(published_folder("minilm"), tmp_path / "model")
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(EmbedderError, match="not the published weights"):
        load_embedder(EmbedderConfig(model=str(folder)))


PROMPTS = {"query": "a question : ", "passage": "a text : ", "Classification": "to sort : "}


def state_prompts(folder, prompts, default=None):
    content = {"prompts": prompts, "default_prompt_name": default}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("prompts", "default", "settings", "prefix"),
    [
        (PROMPTS, None, {}, "to sort : "),
        (PROMPTS, "passage", {}, "a text : "),
        ({"query": "a question : ", "passage": "a text : "}, None, {}, "a question : "),
        ({"passage": "a text : "}, None, {}, None),
        ({"query": "Instruct: search\nQuery: "}, None, {}, None),
        ({"query": "Instruct: search\nQuery: ", "document": ""}, None, {}, None),
        ({"query": "", "passage": "a text : "}, None, {}, None),
        (PROMPTS, None, {"prompt": "query"}, "a question : "),
        (PROMPTS, None, {"prefix": "my own : "}, "my own : "),
        (PROMPTS, "passage", {"prefix": ""}, None),
    ],
)
def test_the_checkpoints_prompt_stands_before_every_text(
    tmp_path, prompts, default, settings, prefix
):
    folder = build_sentence_transformer(tmp_path / "model")
    plain = load_embedder(EmbedderConfig(kind="sentence_transformers", model=str(folder)))
    state_prompts(folder, prompts, default)
    config = EmbedderConfig(kind="sentence_transformers", model=str(folder), **settings)
    embedder = load_embedder(config)
    assert embedder.fingerprint.prefix == prefix
    expected = plain.embed([(prefix or "") + text for text in TEXTS]).vectors
    np.testing.assert_allclose(embedder.embed(TEXTS).vectors, expected, atol=1e-6)
    # Part of what identifies it, and found again from that alone.
    assert (embedder.fingerprint.id == plain.fingerprint.id) == (prefix is None)
    again = EmbedderConfig.from_fingerprint(embedder.fingerprint.to_dict())
    again = again.model_copy(update={"model": str(folder)})
    assert embedder_fingerprint(again) == embedder.fingerprint


def test_what_was_written_before_prompts_is_embedded_without_one(tmp_path):
    folder = build_sentence_transformer(tmp_path / "model")
    config = EmbedderConfig(kind="sentence_transformers", model=str(folder))
    written = embedder_fingerprint(config).to_dict()
    del written["prefix"]
    state_prompts(folder, PROMPTS)
    old = EmbedderConfig.from_fingerprint(written).model_copy(update={"model": str(folder)})
    assert embedder_fingerprint(old).id == EmbedderFingerprint.from_dict(written).id
    assert embedder_fingerprint(config).id != EmbedderFingerprint.from_dict(written).id


def test_prompts_that_cannot_be_used_are_refused(tmp_path):
    folder = build_sentence_transformer(tmp_path / "model")
    state_prompts(folder, PROMPTS)
    config = EmbedderConfig(kind="sentence_transformers", model=str(folder), prompt="nope")
    with pytest.raises(EmbedderError, match="'nope'; it has Classification, passage, query"):
        embedder_fingerprint(config)
    state_prompts(folder, PROMPTS, "nowhere")
    with pytest.raises(EmbedderError, match="default_prompt_name 'nowhere'"):
        embedder_fingerprint(config.model_copy(update={"prompt": None}))
    state_prompts(folder, PROMPTS)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    with pytest.raises(EmbedderError, match="include_prompt: false"):
        embedder_fingerprint(config.model_copy(update={"prompt": "query"}))
    assert embedder_fingerprint(config.model_copy(update={"prompt": None, "prefix": ""}))


def test_prompts_are_those_of_sentence_transformers(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    folder = build_sentence_transformer(tmp_path / "model")
    state_prompts(folder, PROMPTS, "query")
    embedder = load_embedder(EmbedderConfig(kind="sentence_transformers", model=str(folder)))
    reference = library.SentenceTransformer(str(folder), device="cpu")
    expected = reference.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(embedder.embed(TEXTS).vectors, expected, atol=1e-5)


def test_bfloat16_is_close_and_another_embedder(folders):
    exact, coarse = (load_embedder(config(folders, dtype=d)) for d in ("float32", "bfloat16"))
    vectors = coarse.embed(TEXTS).vectors
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors * exact.embed(TEXTS).vectors).sum(1).min() > 0.99
    assert exact.fingerprint.id != coarse.fingerprint.id


def test_fingerprint_knows_the_checkpoint_wherever_it_lies(folders, tmp_path):
    here = embedder_fingerprint(config(folders))
    assert here == load_embedder(config(folders)).fingerprint
    assert EmbedderFingerprint.from_dict(json.loads(json.dumps(here.to_dict()))) == here
    copied = shutil.copytree(folders["sentence_transformers"], tmp_path / "moved" / "bert")
    there = embedder_fingerprint(EmbedderConfig(kind="sentence_transformers", model=str(copied)))
    assert there == here
    assert str(tmp_path) not in json.dumps(there.to_dict())
    assert EmbedderConfig.from_fingerprint(here.to_dict()).max_tokens == 64


def test_mismatch_names_both_and_the_fields(folders):
    one = embedder_fingerprint(config(folders))
    two = embedder_fingerprint(config(folders, max_tokens=8))
    check_fingerprint(one.to_dict(), one, "the model")
    with pytest.raises(FingerprintMismatch) as error:
        check_fingerprint(one, two, "the model")
    message = str(error.value)
    assert "the model was made with" in message
    assert one.id in message
    assert two.id in message
    assert "max_tokens: 64 there, 8 here" in message
    assert "dtype" not in message


def test_an_unreachable_hub_is_told_at_once():
    started = time.monotonic()
    with pytest.raises(EmbedderError, match=r"'nobody/nothing-here'.*path of its folder"):
        load_embedder(EmbedderConfig(kind="sentence_transformers", model="nobody/nothing-here"))
    assert time.monotonic() - started < 20
    with pytest.raises(EmbedderError, match=r"no folder '\./missing'"):
        load_embedder(EmbedderConfig(kind="jina", model="./missing"))


def test_settings_that_contradict_are_refused():
    with pytest.raises(ValueError, match="needs `model`"):
        EmbedderConfig(kind="sentence_transformers")
    with pytest.raises(ValueError, match="only kind 'jina'"):
        EmbedderConfig(adapter="classification")
    with pytest.raises(ValueError, match="give either"):
        EmbedderConfig(prompt="query", prefix="query: ")


@pytest.mark.parametrize("kind", ["sentence_transformers", "jina", "minilm"])
@pytest.mark.parametrize("space", [" ", "\n"])
def test_the_beginning_of_a_long_text_is_enough(folders, kind, space):
    """And what is read of a text without white space is said to be cut."""
    embedder = load_embedder(EmbedderConfig() if kind == "minilm" else config(folders, kind))
    words = ["market", "galaxy", "team-work", "ein", "Größe,", "3.5%", "字", "x" * 90]
    long = space.join(words[i * i % 8] for i in range(60_000))
    limit = embedder.fingerprint.max_tokens
    whole = embedder._tokenizer.encode(long)
    tokens = embedder.tokenise([long, "short"])
    assert tokens.ids[:limit].tolist() == whole.ids
    assert tokens.truncated.tolist() == [True, False]
    assert embedder.tokenise(["a" * 3_000_000]).truncated.tolist() == [True]
