"""The model: the paper's sizes, invariance to label order, masks, saving, freezing."""

import copy
import json
import math

import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from sce.model.encoder import SCEConfig, SCEModel, pool_labels, trainable_parameters

TINY = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}


def tiny(**settings) -> SCEModel:
    torch.manual_seed(0)
    settings = {"embedding_dim": 16, "logit_scale": 1.0, **settings}
    model = SCEModel(SCEConfig(encoder=TINY, **settings)).eval()
    pretrained = BertModel(BertConfig(**TINY))
    model.load_pretrained_encoder(pretrained)
    return model


def inputs(model: SCEModel, rows: int = 3, labels: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(rows, 16, generator=generator)
    given = {
        "query_embeddings": torch.nn.functional.normalize(queries, dim=-1),
        "label_embeddings": torch.randn(labels, 16, generator=generator),
    }
    if model.config.label_source == "tokens":
        given["label_tokens"] = torch.randn(labels, 32, generator=generator)
    return given


def test_the_papers_parameter_counts():
    """Appendix I and J: roberta-base, jina-embeddings-v3. 12 layers of 7,087,872, and the
    adaptor's 1024 * 768 + 768; E frozen."""
    config = SCEConfig(
        encoder=RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1
        ).to_dict(),
        embedding_dim=1024,
        label_source="tokens",
        prior_scale=0.0,
        learn_scales=False,
    )
    with torch.device("meta"):
        model = SCEModel(config)
    by_part = {"encoder": 0, "query_adaptor": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_part[name.split(".")[0]] += parameter.numel()
    assert by_part == {"encoder": 85_054_464, "query_adaptor": 787_200}
    assert model.token_embeddings.weight.numel() == 50265 * 768
    assert not model.token_embeddings.weight.requires_grad


@pytest.mark.parametrize("label_source", ["tokens", "embedder"])
@pytest.mark.parametrize("prior_scale", [0.0, 20.0])
def test_every_trainable_parameter_gets_a_gradient(label_source, prior_scale):
    model = tiny(label_source=label_source, prior_scale=prior_scale).train()
    given = inputs(model)
    given["example_embeddings"] = torch.zeros(7, 16)
    given["example_counts"] = torch.zeros(7)
    model(**given, targets=torch.tensor([0, 1, 2])).loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def permuted_difference(model: SCEModel) -> float:
    given = inputs(model)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    with torch.inference_mode():
        straight = model(**given).logits
        moved = {k: v[order] if k.startswith("label") else v for k, v in given.items()}
        return float((model(**moved).logits - straight[:, order]).abs().max())


@pytest.mark.parametrize("label_source", ["tokens", "embedder"])
def test_permuting_the_labels_permutes_the_scores(label_source):
    model = tiny(label_source=label_source, logit_scale=None)
    assert permuted_difference(model) < 1e-5


@pytest.mark.parametrize("label_source", ["tokens", "embedder"])
def test_with_positions_switched_on_the_invariance_is_gone(label_source):
    assert (
        permuted_difference(tiny(label_source=label_source, logit_scale=None, positions=True))
        > 1e-2
    )


def test_a_mask_hides_padding_and_a_shared_set_equals_a_set_a_row():
    model = tiny()
    given = inputs(model)
    with torch.inference_mode():
        shared = model(**given).logits
        padded = torch.cat([given["label_embeddings"], 100 * torch.ones(4, 16)])
        masked = model(
            given["query_embeddings"],
            padded.expand(3, -1, -1),
            label_mask=(torch.arange(11) < 7).expand(3, -1),
        ).logits
    torch.testing.assert_close(masked[:, :7], shared, atol=1e-5, rtol=0)
    assert torch.isinf(masked[:, 7:]).all()


def test_equation_3_by_hand():
    """Without a prior and with logit_scale 1 the score is e_0 . e_k of the encoder's output."""
    model = tiny(label_source="tokens", prior_scale=0.0, query_scale=1.0, learn_scales=False)
    given = inputs(model)
    with torch.inference_mode():
        query = model.query_adaptor(given["query_embeddings"])[:, None]
        tokens = torch.cat([query, given["label_tokens"].expand(3, -1, -1)], dim=1)
        hidden = model.input_norm(tokens + model.token_type_embedding)
        for layer in model.encoder.layer:
            hidden = layer(hidden)
        expected = (hidden[:, :1] @ hidden[:, 1:].transpose(1, 2))[:, 0]
        found = model(given["query_embeddings"], label_tokens=given["label_tokens"]).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_prior_is_a_multiple_of_the_cosine():
    model = tiny(prior_scale=20.0)
    given = inputs(model)
    with torch.inference_mode():
        whole = model(**given).logits
        model.log_prior_scale.fill_(-50.0)
        rest = model(**given).logits
    cosine = torch.nn.functional.cosine_similarity(
        given["query_embeddings"][:, None], given["label_embeddings"][None], dim=-1
    )
    torch.testing.assert_close(whole - rest, 20 * cosine, atol=1e-4, rtol=1e-4)


def test_examples_are_pooled_with_their_weight():
    """g = unit(unit(text) + exp(a + b log n) mean); a label without examples is its text."""
    model = tiny(example_weight=(-0.5, 0.25))
    text, examples = torch.randn(2, 16), torch.randn(2, 16)
    pooled = pool_labels(text, examples, torch.tensor([4.0, 0.0]), model.example_weight)
    unit = torch.nn.functional.normalize(text, dim=-1)
    weight = math.exp(-0.5 + 0.25 * math.log(4))
    expected = torch.nn.functional.normalize(unit[0] + weight * examples[0], dim=-1)
    torch.testing.assert_close(pooled[0], expected)
    torch.testing.assert_close(pooled[1], unit[1])


@pytest.mark.parametrize("label_source", ["tokens", "embedder"])
def test_a_saved_model_answers_alike_and_stays_frozen(tmp_path, label_source):
    model = tiny(label_source=label_source)
    model.save_pretrained(tmp_path)
    loaded = SCEModel.from_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded(**inputs(model)).logits, model(**inputs(model)).logits, atol=0, rtol=0
        )
    assert trainable_parameters(loaded) == trainable_parameters(model)


def test_a_model_that_says_no_version_of_its_label_vectors_has_the_first(tmp_path):
    model = tiny(example_weight=(-0.5, 0.25))
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    written = json.loads(file.read_text())
    assert written.pop("label_vectors") == 0
    file.write_text(json.dumps(written))
    loaded = SCEModel.from_pretrained(tmp_path)
    assert loaded.config.label_vectors == 0
    assert loaded.example_weight.tolist() == [-0.5, 0.25]


def test_from_version_1_on_examples_come_pooled(tmp_path):
    model = tiny(label_vectors=1)
    assert "example_weight" not in dict(model.named_parameters())
    given = inputs(model)
    with torch.inference_mode():
        logits = model(**given).logits
        given["label_embeddings"] = torch.nn.functional.normalize(given["label_embeddings"], dim=-1)
        torch.testing.assert_close(model(**given).logits, logits)
        examples = {"example_embeddings": torch.zeros(7, 16), "example_counts": torch.zeros(7)}
        with pytest.raises(ValueError, match="examples are part of label_embeddings"):
            model(**given, **examples)
    model.save_pretrained(tmp_path)
    loaded = SCEModel.from_pretrained(tmp_path)
    assert loaded.config.label_vectors == 1
    with torch.inference_mode():
        torch.testing.assert_close(loaded(**inputs(model)).logits, logits, atol=0, rtol=0)


def test_roberta_weights_are_copied_layer_by_layer():
    config = RobertaConfig(**{**TINY, "model_type": "roberta", "type_vocab_size": 1})
    pretrained = RobertaModel(config)
    model = SCEModel(
        SCEConfig(
            encoder={**config.to_dict(), "num_hidden_layers": 1},
            embedding_dim=16,
            label_source="tokens",
        )
    )
    before = copy.deepcopy(model.encoder.state_dict())
    model.load_pretrained_encoder(pretrained)
    after = model.encoder.state_dict()
    assert any((after[k] != before[k]).any() for k in after)
    for name, value in pretrained.encoder.layer[0].state_dict().items():
        assert (after[f"layer.0.{name}"] == value).all()
    assert (model.token_embeddings.weight == pretrained.embeddings.word_embeddings.weight).all()


def test_an_unknown_encoder_type_is_refused():
    with pytest.raises(ValueError, match="'gpt2' is not supported"):
        SCEConfig(encoder={"model_type": "gpt2"})
