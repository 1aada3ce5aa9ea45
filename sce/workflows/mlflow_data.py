"""The datasets of a run as MLflow's own."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sce.errors import hide_secrets, without_secrets
from sce.storage import Place, readable, to_place

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

    from sce.bulk.corpus import Corpus
    from sce.datasets.prepared import PreparedData
    from sce.evaluation.evaluate import EvaluationSet

DIGEST_CHARS = 8
"""As many as MLflow's own have."""


@dataclass(frozen=True)
class DataUsed:
    """A dataset that a run reads.

    Attributes:
        source: path or URI.
        digest: of its content.
        profile: figures of it, such as its rows.
    """

    name: str
    source: str
    digest: str
    context: Literal["training", "evaluation", "inference"]
    profile: Mapping[str, Any] = field(default_factory=dict)

    def to_mlflow(self) -> DatasetInput:
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        with warnings.catch_warnings(action="ignore"):  # it knows two names of one kind
            source = resolve_dataset_source(without_secrets(self.source))
        kind, place = source._get_source_type(), source.to_json()
        profile = json.dumps(hide_secrets(dict(self.profile)))
        dataset = Dataset(self.name, self.digest, kind, place, profile=profile)
        return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, self.context)])


def trained_on(prepared: PreparedData, folder: Place) -> list[DataUsed]:
    """The datasets with train rows, which lie in `folder`."""
    manifest = prepared.manifest
    return [
        DataUsed(
            name,
            str(folder),
            _digest([prepared.fingerprint, name]),
            "training",
            {"rows": counts, "licence": manifest["licences"][name]},
        )
        for name, counts in manifest["counts"].items()
        if counts.get("train")
    ]


def measured_on(
    sets: Sequence[EvaluationSet], own: Place | None, data: Place
) -> dict[str, DataUsed]:
    """The datasets of label sets, by what names their figures (`dataset_key`).

    Args:
        own: the file of the user's rows.
        data: the folder of all others.
    """
    from sce.evaluation.summaries import dataset_key

    members: dict[tuple[str, str], list[EvaluationSet]] = {}
    for one in sets:
        members.setdefault((one.group, one.dataset), []).append(one)
    used = {}
    for (group, dataset), those in members.items():
        name, source = (those[0].name, own) if group == "own" else (dataset, data)
        parts = [part for one in those for part in (one.name, *one.texts, *one.labels)]
        counts = {
            "group": group,
            "rows": sum(map(len, those)),
            "label_sets": len(those),
            "labels": sum(len(one.label_set) for one in those),
        }
        key = dataset_key(group, dataset)
        used[key] = DataUsed(name, str(source), _digest(parts), "evaluation", counts)
    return used


def read_by(corpus: Corpus) -> DataUsed:
    """The input of a job on files of rows."""
    if corpus.store is not None:
        held, place = corpus.store.manifest, to_place(readable(str(corpus.store.folder)))
        profile = {"rows": held.rows, "embedder": held.embedder["id"]}
        return DataUsed(place.name, str(place), _digest([held.source]), "inference", profile)
    files = [(readable(file.uri), file.size, file.modified) for file in corpus.files]
    place = to_place(files[0][0])
    source = place if len(files) == 1 else place.parent
    profile = {"files": len(files), "bytes": sum(size for _, size, _ in files)}
    parts = [str(part) for file in files for part in file]
    return DataUsed(source.name, str(source), _digest(parts), "inference", profile)


def _digest(parts: Iterable[str]) -> str:
    content = "\x1f".join(parts).encode()
    return hashlib.sha256(content).hexdigest()[:DIGEST_CHARS]
