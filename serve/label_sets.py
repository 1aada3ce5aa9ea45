"""Adapted labels behind the endpoint: which model has which, loaded and described.

They are a product with a text's vector, so they need no place in a model's batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sce.adaptation.artefact import REPORT_PAGE, AdaptedLabels
from sce.bulk.request import identify_model
from sce.embedding.fingerprint import EmbedderFingerprint, check_fingerprint
from sce.errors import ConfigError, InputError
from sce.storage import fetch
from serve.settings import ModelSettings


@dataclass(frozen=True)
class ServedLabels:
    """A label set as a replica has it.

    Attributes:
        about: what `sce.client.served.ServedLabelSet` says of it, but for its models.
        page: its report, HTML; None where its folder has none.
    """

    labels: AdaptedLabels
    about: Mapping[str, Any]
    page: bytes | None

    def details(self) -> dict[str, Any]:
        """What `sce.client.served.LabelSetDetails` says, but for its models."""
        return {**self.about, "report": self.labels.report}


def load_label_set(name: str, folder: str) -> ServedLabels:
    """Read what jobs/adapt.py wrote.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    try:
        labels = AdaptedLabels.load(folder)
        page = fetch(folder) / REPORT_PAGE
        about = {
            "id": name,
            "labels": labels.names,
            "fingerprint": labels.id,
            "rows": labels.report["fitted_rows"],
            "trust": labels.report["trust"],
            "temperature": labels.temperature,
            "embedder": EmbedderFingerprint.from_dict(labels.embedder).id,
            "versions": dict(labels.facts["versions"]),
            "report_page": page.is_file(),
        }
        return ServedLabels(labels, about, page.read_bytes() if page.is_file() else None)
    except KeyError as error:
        message = f"{folder}: these adapted labels are damaged: {error} is missing."
        raise ConfigError(f"label_sets.{name}: {message}") from None
    except InputError as error:
        raise ConfigError(f"label_sets.{name}: {error}") from None


def load_label_sets(
    folders: Mapping[str, str], embedder: EmbedderFingerprint
) -> dict[str, ServedLabels]:
    """Label sets of a model that reads the vectors of `embedder`.

    Raises:
        ConfigError: one is not there, or damaged.
        FingerprintMismatch: one was fitted to the vectors of another embedder.
    """
    found = {name: load_label_set(name, folder) for name, folder in folders.items()}
    for name, served in found.items():
        check_fingerprint(served.labels.embedder, embedder, f"label_sets.{name}: {folders[name]!r}")
    return found


def match_label_sets(
    models: Mapping[str, ModelSettings], folders: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """For each model the label sets (folders by name) that were fitted to its embedder's vectors.

    Raises:
        ConfigError: a set is not there or damaged, or fits no model.
        InputError: a model is not there.
    """
    matched: dict[str, dict[str, str]] = {name: {} for name in models}
    if not folders:
        return matched
    embedders = {}
    for name, settings in models.items():
        config, _ = identify_model(settings.path)
        assert config.embedder is not None
        embedders[name] = EmbedderFingerprint.from_dict(config.embedder)
    for name, folder in folders.items():
        fitted = EmbedderFingerprint.from_dict(load_label_set(name, folder).labels.embedder)
        fitting = [model for model, embedder in embedders.items() if embedder.id == fitted.id]
        if not fitting:
            theirs = ", ".join(f"{model} reads {embedder}" for model, embedder in embedders.items())
            raise ConfigError(
                f"label_sets.{name}: {folder!r} was fitted to vectors of the embedder {fitted}, "
                f"but {theirs}. Fit it with the embedder of a served model, or serve its model too."
            )
        for model in fitting:
            matched[model][name] = folder
    return matched
