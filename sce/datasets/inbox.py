"""The inbox: 1,699 messages to a shop, in three label sets, that ship inside the package.

What it is for: to show what labels of one's own read in a corpus of one's own. Every message is a
test row; no training may touch the answers. A message that belongs to no topic is a row of the
tones alone, and so stays in the corpus to which labels are adapted.
"""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from typing import Any

import yaml

from sce.datasets.splits import Row, text_key
from sce.labels import LabelSet

LICENCE = "Apache-2.0"
NO_TOPIC = "none"
DEPARTMENTS = {
    "shipping": ("delivery", "order change"),
    "quality": ("damage", "wrong item", "repair"),
    "money": ("billing", "returns", "loyalty"),
    "shop floor": ("product advice",),
    "web team": ("account",),
    "compliments": ("praise",),
}
"""Which topics a department answers."""
FILES = {"topics": "labels.yaml", "departments": "departments.yaml", "tones": "tones.yaml"}
"""The file of labels of each label set."""


def inbox_label_sets() -> dict[str, LabelSet]:
    """ "inbox/topics", "inbox/departments" and "inbox/tones"."""
    return {
        f"inbox/{name}": LabelSet.parse(yaml.safe_load(_read(file)), f"inbox/{file}")
        for name, file in FILES.items()
    }


def inbox_rows(dataset: str) -> tuple[list[Row], Counter[str]]:
    """A row for each message and label set, all of them test rows; and how many messages a set
    leaves out because they belong to no topic."""
    department_of = {topic: name for name, topics in DEPARTMENTS.items() for topic in topics}
    texts = {message["id"]: message["text"] for message in _lines("messages.jsonl")}
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    for answer in _lines("answers.jsonl"):
        text, topic = texts[answer["id"]], answer["topic"]
        labels = {"inbox/tones": answer["tone"]}
        if topic == NO_TOPIC:
            left_out.update(f"no topic ({name})" for name in ("inbox/topics", "inbox/departments"))
        else:
            labels |= {"inbox/topics": topic, "inbox/departments": department_of[topic]}
        key = text_key(text)
        rows += [Row(dataset, "test", text, label, name, key) for name, label in labels.items()]
    return rows, left_out


def inbox_topics() -> list[tuple[str, list[str]]]:
    """The messages, each with all of its topics: none, one or two of "inbox/topics"."""
    texts = {message["id"]: message["text"] for message in _lines("messages.jsonl")}
    found = []
    for answer in _lines("answers.jsonl"):
        topics = [answer["topic"], answer["also"]]
        right = [one for one in topics if one not in (None, NO_TOPIC)]
        found.append((texts[answer["id"]], right))
    return found


def _lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _read(file).strip().split("\n")]


def _read(file: str) -> str:
    return resources.files("sce.datasets").joinpath("inbox", file).read_text(encoding="utf-8")
