"""The card says what it was given, and its front matter is the hub's."""

import pytest
from huggingface_hub import ModelCard

from sce.workflows import model_card as modelcard

INFO = {
    "name": "news-sce",
    "embedder": {"name": "jina-embeddings-v3", "fingerprint": "abc123", "licence": "CC-BY-NC-4.0"},
    "encoder": {"name": "FacebookAI/roberta-base", "licence": "MIT"},
    "training_data": [{"name": "corpus | one", "rows": 10, "licence": None}],
    "recipe": {"train": {"weight_decay": 1e-4, "epochs": 3}},
    "paper_settings": ["train.weight_decay"],
    "calibration": {"temperature": {"a": 0.5, "b": 0.0}, "reason": "One set."},
    "results": [],
    "validation": {"accuracy": 0.8125},
    "git_commit": "f" * 40,
    "versions": {"torch": "2.13.0"},
}


def test_full_card_states_each_part(tmp_path):
    path = modelcard.write_model_card(tmp_path, INFO)
    card = ModelCard.load(path)
    assert path.name == "README.md"
    assert card.data.license == "other"
    assert card.data.pipeline_tag == "zero-shot-classification"
    assert card.data.base_model == "FacebookAI/roberta-base"
    assert "text-classification" in card.data.tags
    assert "accuracy" in card.data.metrics
    text = card.text
    for said in (
        "**Non-commercial use only**, because of: jina-embeddings-v3.",
        "| embedder | jina-embeddings-v3 | CC-BY-NC-4.0 |",
        "| training data | corpus \\| one | not stated |",
        "`abc123`",
        "| train.weight_decay | 0.0001 | the paper's |",
        "| train.epochs | 3 | ours |",
        "exp(0.5000 + 0.0000 log K)",
        "| accuracy | 0.8125 |",
        "Not yet evaluated on test data",
        "Cosine similarity",
        "Grades such as 1 to 5 stars",
        "Predictor.from_pretrained",
    ):
        assert said in text


def test_example_of_use_is_valid_python():
    text = modelcard.render_model_card(INFO)
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert "predictor.predict(texts, labels)" in code


def test_what_is_not_known_is_not_claimed():
    embedder = {"name": "minilm", "fingerprint": "abc123", "licence": "Apache-2.0"}
    text = modelcard.render_model_card({**INFO, "embedder": embedder, "git_commit": None})
    assert "on-commercial" not in text
    assert "Where none is stated, check" in text
    assert "Revision" not in text


def test_results_replace_validation_figures():
    result = {
        "name": "topics",
        "group": "unseen",
        "rows": 100,
        "labels": 5,
        "sce": {"accuracy": 0.6},
        "cosine": {"accuracy": 0.7},
        "difference": -0.1,
        "difference_low": -0.15,
        "difference_high": -0.05,
    }
    text = modelcard.render_model_card({**INFO, "results": [result]})
    assert "0.8125" not in text
    assert (
        "| topics (unseen) | 100 | 5 | 60.0 | 70.0 | -10.0 [-15.0, -5.0] | cosine better |" in text
    )
    assert text.count("loses on 1") == 2


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC-BY-NC-4.0", True),
        ("cc-by-nc-sa-4.0", True),
        ("CC BY NC 4.0", True),
        ("free for noncommercial use", True),
        ("Non-Commercial", True),
        ("Apache-2.0", False),
        ("CC-BY-4.0", False),
        ("Incorporated Licence", False),
        ("not stated", False),
    ],
)
def test_non_commercial_licences_are_recognised(licence, expected):
    assert modelcard.is_non_commercial(licence) is expected


def test_the_page_of_the_results_is_linked():
    result = {"name": "x", "group": "own", "rows": 5, "labels": 2, "sce": {"accuracy": 0.4}}
    linked = INFO | {"results": [result], "report": "../results/report.html"}
    assert "[report.html](../results/report.html)" in modelcard.render_model_card(linked)
    assert "report.html" not in modelcard.render_model_card(INFO | {"results": [result]})
