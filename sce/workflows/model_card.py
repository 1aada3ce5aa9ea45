"""The README.md of a saved model: what it is, how to use it, what was measured, its limits.

`write_model_card(folder, info)` takes one dict:

    name             what to call the model
    embedder         dict: name, fingerprint, licence (of the frozen text embedder)
    encoder          dict: name, licence (of the pretrained encoder that was trained further)
    training_data    list of dicts: name, rows, licence
    recipe           dict of settings as in the resolved configuration; may be nested
    paper_settings   dotted names of the settings that are the paper's; all others are ours
    calibration      a `TemperatureFit` as a dictionary
    results          evaluation results as `sce.evaluation.report` describes them; may be empty
    report           the page of charts of these results, as seen from the card; may be absent
    several          table of test rows in which several labels may be right; may be absent
    validation       dict of figures, shown when there are no `results`
    versions         dict: package -> version
    git_commit       revision that trained the model, if it is known
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from sce.evaluation.report import headline, to_markdown
from sce.evaluation.tables import Table
from sce.storage import Place, write_text
from sce.workflows.tracking import flatten

CARD_NAME = "README.md"
NOT_STATED = "not stated"
_NON_COMMERCIAL = re.compile(r"(?<![a-z])nc(?![a-z])|non[- ]?commercial", re.IGNORECASE)

_INTRODUCTION = """\
A Soft Contextualized Encoder: text classification with labels that you name when you ask.
A frozen embedder turns each text into one vector, once; this model reads that vector beside
one vector a label and scores the labels against each other. The order of the labels makes no
difference."""
_USAGE = """\
```python
from sce.predictor import Predictor

predictor = Predictor.from_pretrained("path/to/this/folder")
texts = ["The parcel arrived broken.", "How do I change my password?"]
labels = ["damaged goods", "account access", "billing"]
predictions = predictor.predict(texts, labels)
```"""
_LIMITS = """\
- Cosine similarity between the text's and the labels' embeddings is the bar: it needs no
  training. Use this model where the table above shows that it is better.
- Training on some domains can cost accuracy on others: measure on a set of your own before you
  rely on it.
- A label must say what it means. Grades such as 1 to 5 stars do not work.
- In mode "single" the scores of a set add up to one, also where no label fits: ask for
  `none_of_these`, or give a threshold.
- The embedder must be the one named above; another is refused by its fingerprint."""


def is_non_commercial(licence: str) -> bool:
    """True if the name of a licence says so: CC-BY-NC-4.0, "non-commercial", ..."""
    return bool(_NON_COMMERCIAL.search(licence))


def write_model_card(folder: Place, info: Mapping[str, Any]) -> Place:
    """Write `folder/README.md`, replacing one that is there, and return its path."""
    path = folder / CARD_NAME
    write_text(path, render_model_card(info))
    return path


def render_model_card(info: Mapping[str, Any]) -> str:
    """The card as Markdown with YAML front matter."""
    parts = [("embedder", info["embedder"]), ("encoder", info["encoder"])]
    parts += [("training data", data) for data in info["training_data"]]
    licences = [(kind, part["name"], part["licence"] or NOT_STATED) for kind, part in parts]
    restricted = [name for _, name, licence in licences if is_non_commercial(licence)]
    introduction, limits = _INTRODUCTION, _LIMITS
    if restricted:
        introduction += f"\n\n**Non-commercial use only**, because of: {', '.join(restricted)}."
    unseen = [result for result in info["results"] if result["group"] == "unseen"]
    if unseen:
        limits += f"\n- On unseen label sets: {headline(unseen)}"
    sections = {
        "How to use it": _USAGE,
        "Measured": _measured(info),
        "Made of": _components(licences, bool(restricted), info["embedder"]["fingerprint"]),
        "Recipe": _recipe(info),
        "Calibration": _calibration(info["calibration"]),
        "Limits": limits,
    }
    text = [f"# {info['name']}", introduction]
    text += [f"## {title}\n\n{section}" for title, section in sections.items()]
    return f"---\n{_front_matter(info['encoder']['name'])}\n---\n\n" + "\n\n".join(text) + "\n"


def _front_matter(encoder: str) -> str:
    data: dict[str, Any] = {
        "library_name": "soft-contextualized-encoder",
        "pipeline_tag": "zero-shot-classification",
        "tags": ["text-classification", "user-defined-labels", "soft-contextualized-encoder"],
        "metrics": ["accuracy", "f1"],
        "license": "other",
        "license_name": "see-components",
        "license_link": CARD_NAME,
    }
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", encoder):
        data["base_model"] = encoder
    return ModelCardData(**data).to_yaml().strip()


def _measured(info: Mapping[str, Any]) -> str:
    if info.get("several"):
        one = [_measured({**info, "several": None})] if info["results"] else []
        return "\n\n".join([*one, f"Several labels a text (mode multi):\n\n{info['several']}"])
    if info["results"]:
        text = to_markdown(info["results"]).strip() + (
            "\n\nPercentages with 95 % intervals; NLL and ECE before → after calibration."
        )
        if info.get("report"):
            text += (
                f"\n\nThe same to look at, with texts that were taken for something else, where it "
                f"was trained: [report.html]({info['report']})."
            )
        return text
    note = "Not yet evaluated on test data. On the validation rows, which chose this model:\n\n"
    rows = [(name, _value(value)) for name, value in info["validation"].items()]
    return note + _table(("figure", "value"), rows)


def _components(
    licences: Sequence[tuple[str, str, str]], non_commercial: bool, fingerprint: str
) -> str:
    text = (
        f"{_table(('part', 'name', 'licence'), licences)}\n\n"
        f"Embedder fingerprint: `{fingerprint}`.\n\n"
        "The licence of the whole is not worked out here: every licence above applies to its part."
    )
    if non_commercial:
        text += "\nAt least one of them allows non-commercial use only, so does the whole."
    elif any(licence == NOT_STATED for _, _, licence in licences):
        text += "\nWhere none is stated, check before you pass the model on."
    return text


def _recipe(info: Mapping[str, Any]) -> str:
    rows = [
        (key, _value(value), "the paper's" if key in info["paper_settings"] else "ours")
        for key, value in flatten(info["recipe"])
    ]
    parts = [_table(("setting", "value", "whose"), rows)]
    if info["git_commit"]:
        parts.append(f"Revision: `{info['git_commit']}`.")
    parts.append("Versions: " + ", ".join(f"{k} {v}" for k, v in info["versions"].items()))
    return "\n\n".join(parts)


def _calibration(fit: Mapping[str, Any]) -> str:
    found = fit["temperature"]
    text = f"T(K) = exp({found['a']:.4f} + {found['b']:.4f} log K) for K labels"
    if found.get("most") is not None:
        text += f", K no less than {found['fewest']:.0f} and no more than {found['most']:.0f}"
    return f"Logits are divided by {text}. {fit['reason']}"


def _table(head: tuple[str, ...], rows: Sequence[Sequence[str]]) -> str:
    return Table(head, rows, left=head).to_markdown()


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
