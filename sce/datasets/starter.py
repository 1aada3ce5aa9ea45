"""The starter corpus: label sets of many kinds that ship inside the package.

Label sets marked "unseen" become test rows only. Of a train label set one example a label is
held out as its test; some whole train label sets become validation label sets instead.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from importlib import resources

from sce.datasets.splits import Row, rank, text_key
from sce.errors import ConfigError
from sce.labels import LabelSet

LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class StarterSet:
    """One label set of the corpus with its examples as (text, label)."""

    name: str
    domain: str
    unseen: bool
    labels: LabelSet
    examples: tuple[tuple[str, str], ...]


def read_starter() -> list[StarterSet]:
    """All label sets of the corpus, in the order of the files."""
    sets = []
    folder = resources.files("sce.datasets").joinpath("starter")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".jsonl")), key=lambda f: f.name)
    for file in files:
        for line in file.read_text(encoding="utf-8").strip().split("\n"):
            item = json.loads(line)
            labels = LabelSet.parse(item["labels"], f"starter/{item['label_set']}")
            examples = tuple((e["text"], e["label"]) for e in item["examples"])
            unseen = item["split"] == "unseen"
            sets.append(StarterSet(item["label_set"], item["domain"], unseen, labels, examples))
    return sets


def choose_validation_sets(sets: list[StarterSet], count: int) -> set[str]:
    """Names of the train label sets that become validation label sets.

    They are spread evenly over the domains; within a domain the hash of the name decides, so
    the choice is the same for every seed.

    Raises:
        ConfigError: no train label set would be left.
    """
    by_domain: dict[str, list[str]] = defaultdict(list)
    for item in sets:
        if not item.unseen:
            by_domain[item.domain].append(item.name)
    total = sum(len(names) for names in by_domain.values())
    if count >= total:
        raise ConfigError(
            f"data.validation_label_sets: {count}, but the starter corpus has {total} train label "
            f"sets and some must stay for training. Allowed: 0 to {total - 1}."
        )
    turns = []
    for domain, names in by_domain.items():
        names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
        turns += [(turn, domain, name) for turn, name in enumerate(names)]
    return {name for _, _, name in sorted(turns)[:count]}


def starter_rows(
    dataset: str, sets: list[StarterSet], validation: set[str], seed: int
) -> list[Row]:
    """The rows of the corpus with their splits; label set ids are "starter/<name>"."""
    rows = []
    for item in sets:
        keyed = [(text, label, text_key(text)) for text, label in item.examples]
        # The example of each label that comes first in the seed's order is held out.
        held: dict[str, bytes] = {}
        for _, label, key in sorted(keyed, key=lambda e: (rank(seed, e[2]), e[2])):
            held.setdefault(label, key)
        for text, label, key in keyed:
            if item.unseen or (item.name not in validation and held[label] == key):
                split = "test"
            else:
                split = "validation" if item.name in validation else "train"
            rows.append(Row(dataset, split, text, label, f"starter/{item.name}", key))
    return rows
