"""The README.md of a saved model: what it is, how to use it, what was measured, its limits.

`write_model_card(folder, info)` takes one dict. Every key but `name` may be absent; what is
absent is not claimed.

    name             what to call the model
    embedder         dict: name, fingerprint, licence (of the frozen text embedder)
    encoder          dict: name, licence (of the pretrained encoder that was trained further)
    training_data    list of dicts: name, rows, licence
    recipe           dict of settings as in the resolved configuration; may be nested
    paper_settings   dotted names of the settings that are the paper's; all others are ours
    calibration      a `TemperatureFit` as a dictionary
    results          evaluation results as `sce.evaluation.report` describes them
    validation       dict of figures, shown when there are no `results`
    versions         dict: package -> version
    git_commit       revision that trained the model
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from sce.evaluation.report import headline, to_markdown
from sce.evaluation.tables import Table
from sce.storage import Place, to_place, write_text

CARD_NAME = "README.md"
NOT_STATED = "not stated"
_NON_COMMERCIAL = re.compile(r"(?<![a-z])nc(?![a-z])|non[- ]?commercial", re.IGNORECASE)

_LIMITS = """\
- Cosine similarity between the text's and the labels' embeddings is the bar: it needs no
  training. Use this model where the table above shows that it is better.
- The paper's recipe, trained as printed, fits its training domains and can collapse on label
  sets from unseen domains: measure on a set of your own before you rely on it.
- A label must say what it means. Grades such as 1 to 5 stars do not work.
- One label a text: the scores of a set add up to one, so "none of these" needs a label too.
- The embedder must be the one named above; another is refused by its fingerprint."""


def is_non_commercial(licence: str | None) -> bool:
    """True if the name of a licence says so: CC-BY-NC-4.0, "non-commercial", ..."""
    return bool(licence and _NON_COMMERCIAL.search(licence))


def component_licences(info: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(kind, name, licence) of everything that the model is made of."""
    parts = [("embedder", info.get("embedder")), ("encoder", info.get("encoder"))]
    parts += [("training data", data) for data in info.get("training_data") or []]
    return [
        (kind, str(part.get("name", "?")), str(part.get("licence") or NOT_STATED))
        for kind, part in parts
        if part
    ]


def render_model_card(info: Mapping[str, Any]) -> str:
    """The card as Markdown with YAML front matter. Raises `KeyError` without `name`."""
    sections = [
        ("", _introduction(info)),
        ("How to use it", _usage()),
        ("Measured", _measured(info)),
        ("Made of", _components(info)),
        ("Recipe", _recipe(info)),
        ("Calibration", _calibration(info)),
        ("Limits", _limits(info)),
    ]
    body = [f"# {info['name']}"]
    for title, text in sections:
        if text:
            body.append(f"## {title}\n\n{text}" if title else text)
    return f"---\n{_front_matter(info)}\n---\n\n" + "\n\n".join(body) + "\n"


def write_model_card(folder: str | Place, info: Mapping[str, Any]) -> Place:
    """Write `folder/README.md`, replacing one that is there, and return its path."""
    path = to_place(folder) / CARD_NAME
    write_text(path, render_model_card(info))
    return path


def _front_matter(info: Mapping[str, Any]) -> str:
    data: dict[str, Any] = {
        "library_name": "soft-contextualized-encoder",
        "pipeline_tag": "zero-shot-classification",
        "tags": ["text-classification", "user-defined-labels", "soft-contextualized-encoder"],
        "metrics": ["accuracy", "f1"],
        "license": "other",
        "license_name": "see-components",
        "license_link": CARD_NAME,
    }
    encoder = (info.get("encoder") or {}).get("name")
    if encoder and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", encoder):
        data["base_model"] = encoder
    return ModelCardData(**data).to_yaml().strip()


def _introduction(info: Mapping[str, Any]) -> str:
    text = (
        "A Soft Contextualized Encoder: text classification with labels that you name when you "
        "ask.\nA frozen embedder turns each text into one vector, once; this model reads that "
        "vector beside\none vector a label and scores the labels against each other. The order "
        "of the labels makes no\ndifference."
    )
    restricted = [
        name for _, name, licence in component_licences(info) if is_non_commercial(licence)
    ]
    if restricted:
        text += f"\n\n**Non-commercial use only**, because of: {', '.join(restricted)}."
    return text


def _usage() -> str:
    return (
        "```python\n"
        "from sce.predictor import Predictor\n\n"
        'predictor = Predictor.from_pretrained("path/to/this/folder")\n'
        'texts = ["The parcel arrived broken.", "How do I change my password?"]\n'
        'labels = ["damaged goods", "account access", "billing"]\n'
        "predictions = predictor.predict(texts, labels)\n"
        "```"
    )


def _measured(info: Mapping[str, Any]) -> str:
    if info.get("results"):
        return to_markdown(info["results"]).strip() + (
            "\n\nPercentages with 95 % intervals; NLL and ECE before → after calibration."
        )
    figures = info.get("validation")
    if not figures:
        return "Not yet evaluated."
    note = "Not yet evaluated on test data. On the validation rows, which chose this model:\n\n"
    return note + _table(("figure", "value"), [(k, _value(v)) for k, v in figures.items()])


def _components(info: Mapping[str, Any]) -> str:
    parts = component_licences(info)
    if not parts:
        return ""
    text = _table(("part", "name", "licence"), parts)
    fingerprint = (info.get("embedder") or {}).get("fingerprint")
    if fingerprint:
        text += f"\n\nEmbedder fingerprint: `{fingerprint}`."
    text += (
        "\n\nThe licence of the whole is not worked out here: every licence above applies to its "
        "part.\n"
    )
    if any(is_non_commercial(licence) for _, _, licence in parts):
        text += "At least one of them allows non-commercial use only, so does the whole."
    elif any(licence == NOT_STATED for _, _, licence in parts):
        text += "Where none is stated, check before you pass the model on."
    return text.strip()


def _recipe(info: Mapping[str, Any]) -> str:
    papers = set(info.get("paper_settings") or ())
    rows = [
        (key, _value(value), "the paper's" if key in papers else "ours")
        for key, value in _dotted(info.get("recipe") or {})
    ]
    parts = [_table(("setting", "value", "whose"), rows)] if rows else []
    if info.get("git_commit"):
        parts.append(f"Revision: `{info['git_commit']}`.")
    if info.get("versions"):
        parts.append("Versions: " + ", ".join(f"{k} {v}" for k, v in info["versions"].items()))
    return "\n\n".join(parts)


def _calibration(info: Mapping[str, Any]) -> str:
    fit = info.get("calibration")
    if not fit:
        return "None: scores are the softmax of the raw logits and may be too sure of themselves."
    a, b = fit["temperature"]["a"], fit["temperature"]["b"]
    text = f"Logits are divided by T(K) = exp({a:.4f} + {b:.4f} log K) for K labels. "
    return text + str(fit.get("reason", ""))


def _limits(info: Mapping[str, Any]) -> str:
    unseen = [r for r in info.get("results") or [] if r.get("group") == "unseen"]
    return f"{_LIMITS}\n- On unseen label sets: {headline(unseen)}" if unseen else _LIMITS


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _table(head: tuple[str, ...], rows: Sequence[Sequence[str]]) -> str:
    return Table(head, rows, left=head).to_markdown()


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
