"""What decides an output: the model, the labels, the input. A resumed job must have the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from sce.adaptation.artefact import AdaptedLabels
from sce.bulk.corpus import Corpus
from sce.bulk.listing import InputFile
from sce.bulk.output import read_run
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.errors import InputError
from sce.labels import LabelSet
from sce.model.label_tree import tree_of
from sce.model.settings import SCEFields, check_fields
from sce.model.weights import refuse_pickles
from sce.storage import fetch_model, open_input, readable

MOST_CONTENT_BYTES = 4 << 30
"""Of an input of this machine that is read once more to know it again: a gigabyte a second."""
_DIGITS = 16


def identify_model(model: str) -> tuple[SCEFields, str]:
    """The configuration of a model, and a hash of its files (of a hub model: id and commit). Raises
    `InputError`: there is no such model, or its weights are not in safetensors."""
    path = fetch_model(model)
    folder = Path(path)
    try:
        found = _config(folder) if folder.is_dir() else _hub_config(path)
        config = SCEFields(**{f.name: found[f.name] for f in fields(SCEFields) if f.name in found})
        if found.get("model_type") == "sce":
            check_fields(config.encoder, config.label_vectors)
    except (OSError, ValueError) as error:
        raise InputError(f"model: no SCE model at {model!r}: {error}") from None
    if found.get("model_type") != "sce" or config.embedder is None:
        raise InputError(f"model: {model!r} is not a model that jobs/train_sce.py wrote.")
    refuse_pickles(path)
    if not folder.is_dir():
        return config, f"{model}@{found.get('_commit_hash')}"
    digest = hashlib.sha256()
    for part in sorted((*folder.glob("*.safetensors"), folder / "config.json")):
        digest.update(part.name.encode())
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return config, digest.hexdigest()[:_DIGITS]


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file} is no JSON object.")
    return found


def _hub_config(name: str) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    found: dict[str, Any] = PreTrainedConfig.get_config_dict(name)[0]
    return found


def identify_embedder(embedder: EmbedderFingerprint, uri: str) -> str:
    """Its id, or the one that an earlier version began the output in folder `uri` with."""
    begun = read_run(uri)
    known = None if begun is None else begun.request.get("embedder")
    return known if known and embedder.is_known_as(known) else embedder.id


def identify_labels(labels: LabelSet | AdaptedLabels | None, column: str | None) -> dict[str, Any]:
    """Each label with a hash of what is known of it; the order is of no account. Of adapted labels
    their id; of a tree also a hash of the whole."""
    if isinstance(labels, AdaptedLabels):
        return {"adapted": labels.id}
    found = {} if labels is None else {lb.key: _hash(lb.to_dict()) for lb in labels.labels}
    if (tree := tree_of(labels)) is not None:
        return {"tree": tree.fingerprint, "leaves": found}
    return {"column": column, "known": found} if column is not None else found


def identify_input(corpus: Corpus) -> Any:
    """The rows of an embedding store, or each file's name, size, time of change and, of files of
    this machine that are not too large together, a hash of the content."""
    if corpus.store is not None:
        held = corpus.store.manifest
        return {"store": held.source, "rows": held.rows, "embedder": held.embedder["id"]}
    names = [readable(file.uri) for file in corpus.files]
    local = [file for name, file in zip(names, corpus.files) if "://" not in name]
    is_read = sum(file.size for file in local) <= MOST_CONTENT_BYTES
    return [
        {"file": name, "size": file.size, "modified": file.modified}
        | ({"content": _content(file.uri)} if is_read and "://" not in name else {})
        | _given_form(file)
        for name, file in zip(names, corpus.files)
    ]


def _given_form(file: InputFile) -> dict[str, str]:
    given = {"encoding": file.form.encoding, "delimiter": file.form.delimiter}
    return {name: value for name, value in given.items() if value is not None}


def _content(uri: str) -> str:
    with open_input(uri) as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:_DIGITS]


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
