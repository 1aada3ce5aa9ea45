"""Adapted labels as a folder: a label set, what a corpus taught it, and how it came about.

    adapted.safetensors   weight [K, D] float32, bias [K] float64, in canonical order; usual [2, K],
                          mean and deviation of each score over the corpus; own [K, D] float32,
                          the labels' vectors without the corpus, and rejection [3], which tell
                          texts that no label fits
    adapted.json          temperature, fingerprints, settings, versions, figures of the fit; written
                          last, with the SHA-256 of the weights
    labels.json           the labels as the user wrote them, in the user's order, and their file
    report.md, report.html, ...    for people (`sce.workflows.adaptation_report`)

The first two are the same byte for byte for every order of rows and labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from sce.config import VERSION
from sce.errors import DataError
from sce.model.label_tree import parse_set, written
from sce.model.linear_labels import LinearLabels
from sce.model.rejection import Rejection
from sce.storage import Place, fetch, replace_folder, to_place

FORMAT_VERSION = 1
WEIGHTS_FILE, FACTS_FILE, LABELS_FILE = "adapted.safetensors", "adapted.json", "labels.json"
REPORT_PAGE = "report.html"


@dataclass(frozen=True, eq=False)
class AdaptedLabels(LinearLabels):
    """A label set that was fitted to a corpus; the predictor takes it in place of labels.

    Attributes:
        facts: what `adapted.json` says beside the temperature and the embedder:
            model: its id, and the version of its names' templates; None without one.
            corpus: source (a hash of the store's rows), rows, fitted_rows.
            settings: of the fit, all that decides it.
            versions: of this software and of what computes.
            report: figures of the fit as `sce.adaptation.fit` describes them.
        labels_file: where the labels stood and the fingerprint that they had; {} if in no file.
    """

    facts: Mapping[str, Any]
    labels_file: Mapping[str, str]

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits, equal for equal answers."""
        digest = hashlib.sha256(self._tensors())
        digest.update(repr((self.temperature, self.label_set.fingerprint)).encode())
        return digest.hexdigest()[:16]

    @property
    def report(self) -> Mapping[str, Any]:
        return self.facts["report"]

    def _tensors(self) -> bytes:
        weight_KD, bias_K, _ = self._canonical
        tensors = {"weight": weight_KD, "bias": bias_K}
        if self.usual_2K is not None:
            tensors["usual"] = self.usual_2K[:, self._canonical[2]]
        if self.own_KD is not None and self.rejection is not None:
            tensors["own"] = self.own_KD[self._canonical[2]]
            tensors["rejection"] = np.array(astuple(self.rejection))
        return save_tensors({name: np.ascontiguousarray(x) for name, x in tensors.items()})

    def save(self, folder: str | Place, write_more: Callable[[Path], None] | None = None) -> None:
        """Write the folder, whole or not at all; `write_more` adds its files to it first."""
        tensors = self._tensors()
        facts = {
            "format_version": FORMAT_VERSION,
            "labels": written(self.label_set.canonical()),
            "temperature": self.temperature,
            "embedder": dict(self.embedder),
            **self.facts,
            "weights_sha256": hashlib.sha256(tensors).hexdigest(),
        }
        labels = {"labels": written(self.label_set), "file": dict(self.labels_file)}
        with replace_folder(to_place(folder), FACTS_FILE) as new:
            if write_more is not None:
                write_more(new)
            (new / WEIGHTS_FILE).write_bytes(tensors)
            for name, content in ((LABELS_FILE, labels), (FACTS_FILE, facts)):
                text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
                (new / name).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Place) -> AdaptedLabels:
        """Read a folder that `jobs/adapt.py` wrote.

        Raises:
            DataError: there is none, it is damaged or cut short, or of another version.
        """
        place = fetch(folder)
        facts = _read_json(place / FACTS_FILE, folder)
        if facts.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{folder}: adapted labels of format {facts.get('format_version')!r}; this "
                f"software ({VERSION}) reads {FORMAT_VERSION}. Run jobs/adapt.py again."
            )
        given = _read_json(place / LABELS_FILE, folder)
        try:
            tensors = (place / WEIGHTS_FILE).read_bytes()
        except OSError as error:
            raise _damaged(folder, f"{WEIGHTS_FILE} cannot be read ({error})") from None
        try:
            if hashlib.sha256(tensors).hexdigest() != facts.pop("weights_sha256"):
                raise _damaged(folder, f"{WEIGHTS_FILE} is not the file that was written")
            arrays = load_tensors(tensors)
            label_set = parse_set(given["labels"], str(Path(str(folder)) / LABELS_FILE))
            if label_set.canonical() != parse_set(facts.pop("labels")):
                raise _damaged(folder, f"{LABELS_FILE} has other labels than {FACTS_FILE}")
            order_K = np.argsort(label_set.canonical_order)
            del facts["format_version"]
            return cls(
                label_set,
                arrays["weight"][order_K],
                arrays["bias"][order_K],
                float(facts.pop("temperature")),
                facts.pop("embedder"),
                facts,
                given["file"],
                usual_2K=arrays["usual"][:, order_K] if "usual" in arrays else None,
                own_KD=arrays["own"][order_K] if "own" in arrays else None,
                rejection=(
                    Rejection(*map(float, arrays["rejection"])) if "rejection" in arrays else None
                ),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise _damaged(folder, f"{error!r} is missing or wrong") from None

    @staticmethod
    def is_at(folder: str | Place) -> bool:
        """Whether a path names a folder of adapted labels, be they whole or not."""
        place = to_place(folder)
        return place.is_dir() and any(
            (place / name).is_file() for name in (FACTS_FILE, WEIGHTS_FILE)
        )


def _read_json(path: Path, folder: str | Place) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path.parent.is_dir() and any(path.parent.iterdir()):
            raise _damaged(folder, f"it has no {path.name}") from None
        raise DataError(f"{folder}: no adapted labels there. jobs/adapt.py makes them.") from None
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{path.name} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise _damaged(folder, f"{path.name} holds no object")
    return content


def _damaged(folder: str | Place, what: str) -> DataError:
    return DataError(
        f"{folder}: these adapted labels are damaged or were cut short: {what}. "
        "Run jobs/adapt.py again."
    )
