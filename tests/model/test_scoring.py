"""The inference path agrees with the model, and its batches, shortlist and memory are as told."""

import itertools

import numpy as np
import pytest
import torch
from transformers import BertConfig, RobertaConfig

from sce.model.encoder import SCEConfig, SCEModel
from sce.model.label_vectors import LabelVectors
from sce.model.scoring import Scorer, score

D = 16
ENCODER = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}


def build(encoder: str = "bert", **settings) -> SCEModel:
    """A model whose every weight is random, norms and biases too."""
    config = {"bert": BertConfig, "roberta": RobertaConfig}[encoder](**ENCODER)
    torch.manual_seed(0)
    model = SCEModel(
        SCEConfig(encoder=config.to_dict(), embedding_dim=D, adaptor_init="normal", **settings)
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and name != "example_weight":
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def unit(rows: int, seed: int = 1) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, D)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def label_vectors(model: SCEModel, labels: int) -> LabelVectors:
    text = torch.from_numpy(unit(labels, seed=2))
    examples = torch.from_numpy(unit(labels, seed=3))
    counts = torch.arange(labels).float() % 3
    tokens = torch.randn(labels, 32, generator=torch.Generator().manual_seed(4))
    return LabelVectors(
        text, examples, counts, tokens if model.config.label_source == "tokens" else None
    )


def reference(model: SCEModel, queries: np.ndarray, labels: LabelVectors) -> np.ndarray:
    with torch.inference_mode():
        return model(
            torch.from_numpy(queries),
            label_embeddings=labels.text_KD,
            label_tokens=labels.tokens_KH,
            example_embeddings=labels.examples_KD,
            example_counts=labels.example_counts_K,
        ).logits.numpy()


@pytest.mark.parametrize("encoder", ["bert", "roberta"])
@pytest.mark.parametrize("label_source", ["tokens", "embedder"])
@pytest.mark.parametrize("prior_scale", [0.0, 20.0])
def test_it_agrees_with_the_models_own_forward_pass(encoder, label_source, prior_scale):
    recipe = {"label_source": label_source, "prior_scale": prior_scale}
    for token_type, input_norm in itertools.product([False, True], ["none", "frozen"]):
        model = build(encoder, token_type=token_type, input_norm=input_norm, **recipe)
        check_agreement(model, labels=7)


def test_without_fused_products_as_well(monkeypatch):
    monkeypatch.setattr("sce.model.inference._fused_products", lambda weight: False)
    check_agreement(build(), labels=7)


@pytest.mark.parametrize("labels", [1, 2, 3, 4, 40, 300])
@pytest.mark.parametrize("encoder", ["bert", "roberta"])
def test_at_every_length_of_the_label_set(encoder, labels):
    check_agreement(build(encoder), labels)


@pytest.mark.parametrize("label_source", ["tokens", "embedder"])
def test_a_model_with_positions_runs_as_it_is(label_source):
    check_agreement(build(label_source=label_source, positions=True), labels=7)


def check_agreement(model: SCEModel, labels: int) -> None:
    """One set for all rows, and rows that choose from a table."""
    queries, vectors = unit(9), label_vectors(model, labels)
    shared = score(model, queries, vectors, max_batch_tokens=4 * (labels + 1))
    np.testing.assert_allclose(shared, reference(model, queries, vectors), atol=1e-5, rtol=0)
    scorer = Scorer(model, max_batch_tokens=4 * (labels + 1))
    width = max(1, labels // 2)
    random = np.random.default_rng(5)
    ids_RK = np.array([np.sort(random.permutation(labels)[:width]) for _ in queries])
    found = scorer.batches(queries, scorer.prepare(vectors, shared=False), ids_RK)
    own = np.concatenate([batch.logits_BK.numpy() for batch in found])
    for query, ids, scores in zip(queries, ids_RK, own, strict=True):
        expected = reference(model, query[None], vectors.take(torch.from_numpy(ids)))
        np.testing.assert_allclose(scores[None], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("label_source", ["tokens", "embedder"])
def test_a_shortlist_is_the_model_on_the_nearest_labels(label_source):
    model = build(label_source=label_source, prior_scale=0.0)
    queries, vectors = unit(9), label_vectors(model, 30)
    scorer = Scorer(model, max_batch_tokens=50)
    prepared = scorer.prepare(vectors, shared=False)
    cosine = queries @ prepared.similarity_KD.numpy().T
    for batch in scorer.batches(queries, prepared, shortlist=8):
        rows = range(batch.rows.start, batch.rows.stop)
        for row, kept, scores in zip(rows, batch.kept_BM, batch.logits_BK, strict=True):
            assert kept.tolist() == sorted(np.argsort(-cosine[row])[:8])
            expected = reference(model, queries[row : row + 1], vectors.take(kept))
            np.testing.assert_allclose(scores[None], expected, atol=1e-5, rtol=0)


def test_batches_keep_the_budget_and_hold_every_row_once():
    model = build()
    scorer = Scorer(model, max_batch_tokens=40)
    prepared = scorer.prepare(label_vectors(model, 7))
    batches = list(scorer.batches(unit(23), prepared))
    assert [batch.rows.start for batch in batches] == [0, 5, 10, 15, 20]
    assert all(batch.logits_BK.shape[0] * 8 <= 40 for batch in batches)
    assert sum(len(batch.logits_BK) for batch in batches) == 23
    assert list(scorer.batches(unit(0), prepared)) == []


def test_read_only_vectors_are_taken_as_they_are(recwarn):
    model, queries = build(), unit(3)
    queries.flags.writeable = False
    score(model, queries, label_vectors(model, 3))
    assert not [w for w in recwarn if "writable" in str(w.message)]
