"""Finds an embedder's files and reads everything about it that needs no loaded model.

Weights are safetensors and nothing in a checkpoint is executed: no remote code, no pickles.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load, snapshot_download
from tokenizers import Tokenizer

from sce.embedding.files import (
    HUB_FILES,
    HUB_IGNORED,
    HUB_TIMEOUT_SECONDS,
    file_sha256,
    need,
    read_json,
    stated,
)
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.published import PUBLISHED, published_folder
from sce.embedding.settings import EmbedderConfig
from sce.errors import EmbedderError
from sce.model.weights import refuse_pickles
from sce.storage import fetch_model

JINA_LICENCE = "CC BY-NC 4.0"

_PASSAGES = ("passage", "document")
_POOLING = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Checkpoint:
    """An embedder's files on this machine.

    Attributes:
        folder: of the transformer and its tokenizer.
        adapter_folder: of the PEFT adapter, None without one.
        licence: as the model card says, "unknown" if it does not.
    """

    folder: Path
    adapter_folder: Path | None
    fingerprint: EmbedderFingerprint
    licence: str


def resolve_checkpoint(config: EmbedderConfig) -> Checkpoint:
    """Locate (or download) a checkpoint and compute its fingerprint; loads no weights. Raises
    `EmbedderError`: not there, not reachable, damaged, or of an unsupported design."""
    if config.kind in PUBLISHED:
        published = PUBLISHED[config.kind]
        root, revision = published_folder(config.kind, config.model), None
        name, licence = published.name, published.licence
    else:
        root, revision = _find(config.model_name, config.revision)
        name = root.name if revision is None else config.model_name
        licence = JINA_LICENCE if config.kind == "jina" else checkpoint_licence(root)

    folder, pooling, pools_prompt = root, "mean", True
    if config.kind != "jina":
        folder, pooling, pools_prompt = _read_modules(root)
    adapter_folder = None
    if config.adapter_name is not None:
        adapter_folder = root / config.adapter_name
        if not (adapter_folder / "adapter_config.json").is_file():
            found = sorted(p.parent.name for p in root.glob("*/adapter_config.json"))
            raise EmbedderError(
                f"embedder {config.model_name!r} has no adapter {config.adapter_name!r}; "
                f"it has {', '.join(found) or 'none'}."
            )
    model_config = read_json(folder / "config.json")
    fingerprint = EmbedderFingerprint(
        kind=config.kind,
        model=name,
        revision=revision,
        adapter=config.adapter_name,
        pooling=pooling,
        normalised=True,
        dimension=int(model_config["hidden_size"]),
        max_tokens=_max_tokens(config, folder, model_config),
        dtype=config.dtype,
        weights_sha256=_weights_sha256([folder, adapter_folder] if adapter_folder else [folder]),
        tokenizer_sha256=file_sha256(need(folder / "tokenizer.json")),
        end_token=_end_token(config, folder, pooling),
        prefix=_prefix(config, root),
    )
    if fingerprint.prefix is not None and not pools_prompt:
        raise EmbedderError(
            f"{root}: its pooling leaves the prompt out (include_prompt: false), which is not "
            'supported. embedder.prefix: "" embeds without a prompt.'
        )
    return Checkpoint(folder, adapter_folder, fingerprint, licence)


def embedder_fingerprint(config: EmbedderConfig) -> EmbedderFingerprint:
    """Fingerprint of the embedder that `load_embedder(config)` would give, without loading it.
    Raises `EmbedderError`: as `load_embedder`."""
    return resolve_checkpoint(config).fingerprint


def checkpoint_licence(folder: str | Path) -> str:
    """Licence that the model card of a local checkpoint states, else "unknown"."""
    try:
        header = metadata_load(Path(folder) / "README.md")
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        header = None
    return str((header or {}).get("license", "unknown"))


def explain_load_error(setting: str, name: str, error: Exception) -> EmbedderError:
    """An error of the hub or of transformers, as one that says what to do about it."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return EmbedderError(
        f"{setting}: {name!r} cannot be loaded: it is no local folder with a readable checkpoint, "
        f"and the hub did not give it ({reason:.200}). Check the name and the connection, or "
        "download it elsewhere and give the path of its folder."
    )


def _find(name: str, revision: str | None) -> tuple[Path, str | None]:
    """Folder of a checkpoint, and its commit if it came from the hub."""
    path = Path(fetch_model(name)).expanduser()
    if path.is_dir():
        return path.resolve(), None
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise EmbedderError(f"embedder.model: no folder {name!r}.")
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=HUB_FILES,
            ignore_patterns=HUB_IGNORED,
            etag_timeout=HUB_TIMEOUT_SECONDS,
        )
    except (OSError, ValueError) as error:
        raise explain_load_error("embedder.model", name, error) from error
    return Path(folder), Path(folder).name


def _read_modules(root: Path) -> tuple[Path, str, bool]:
    """Of a sentence-transformers checkpoint: folder of the transformer, pooling, and whether that
    takes a prompt's tokens in."""
    # Read here rather than by the sentence-transformers library: that would be one more large
    # dependency of every worker and server for two JSON files, and it imports the modules that a
    # checkpoint names, so that what is unsupported would run instead of being refused.
    if not (root / "modules.json").is_file():
        raise EmbedderError(
            f"{root}: no modules.json, so this is not a sentence-transformers checkpoint."
        )
    folder, pooling, pools_prompt = root, None, True
    for module in read_json(root / "modules.json"):
        module_type = str(module["type"]).rsplit(".", 1)[-1]
        if module_type == "Transformer":
            folder = root / module["path"]
        elif module_type == "Pooling":
            file = root / module["path"] / "config.json"
            pooling, pools_prompt = _read_pooling(file), stated(file, "include_prompt") is not False
        elif module_type != "Normalize":
            raise EmbedderError(
                f"{root}: the module {module_type!r} is not supported; a checkpoint may have "
                "Transformer, Pooling and Normalize."
            )
    if pooling is None:
        raise EmbedderError(f"{root}: modules.json names no Pooling module.")
    return folder, pooling, pools_prompt


def _prefix(config: EmbedderConfig, root: Path) -> str | None:
    """What the embedder puts before every text and label: what the settings say, else the
    checkpoint's default prompt, else its prompt for classification; else that for queries where
    passages have one too, since such a model knows no text without (E5, which says itself that
    texts of one kind are queries). A prompt for queries alone is an instruction for search."""
    if config.prefix is not None:
        return config.prefix or None
    file = root / "config_sentence_transformers.json"
    prompts: dict[str, str] = stated(file, "prompts") or {}
    if config.prompt is not None:
        if config.prompt not in prompts:
            raise EmbedderError(
                f"embedder.prompt: {root} has no prompt {config.prompt!r}; "
                f"it has {', '.join(sorted(prompts)) or 'none'} ({file.name})."
            )
        return prompts[config.prompt] or None
    default = stated(file, "default_prompt_name")
    if default is not None:
        if default not in prompts:
            raise EmbedderError(f"{file}: default_prompt_name {default!r} is none of its prompts.")
        return prompts[default] or None
    by_name = {name.lower(): text for name, text in prompts.items()}
    found = by_name.get("classification")
    if found is None and any(by_name.get(name) for name in _PASSAGES):
        found = by_name.get("query")
    return found or None


def _read_pooling(path: Path) -> str:
    content = read_json(path)
    modes = [name for name, value in content.items() if name.startswith("pooling_mode_") and value]
    found = content.get("pooling_mode") or [_POOLING.get(mode, mode) for mode in modes]
    pooling = found[0] if isinstance(found, list) and len(found) == 1 else found
    if not isinstance(pooling, str) or pooling not in _POOLING.values():
        raise EmbedderError(f"{path}: pooling {found!r}; supported: mean, cls or lasttoken alone.")
    return pooling


def _max_tokens(config: EmbedderConfig, folder: Path, model_config: dict[str, Any]) -> int:
    positions = int(model_config.get("max_position_embeddings", 512))
    if model_config.get("model_type") in ("roberta", "xlm-roberta", "mpnet", "camembert"):
        positions -= int(model_config.get("pad_token_id", 1)) + 1
    default = stated(folder / "sentence_bert_config.json", "max_seq_length")
    default = default or stated(folder / "tokenizer_config.json", "model_max_length")
    return int(min(config.max_tokens or default or positions, positions))


def _end_token(config: EmbedderConfig, folder: Path, pooling: str) -> str | None:
    """The token that is to be put behind every text, None where the tokenizer puts one there or
    none is asked for. Raises `EmbedderError`: the checkpoint pools the last token, nothing is put
    behind the text, and the settings do not say whether that is meant."""
    if config.end_token is False or (config.end_token is None and pooling != "lasttoken"):
        return None
    encoding = Tokenizer.from_file(str(need(folder / "tokenizer.json"))).encode("a")
    if encoding.special_tokens_mask[-1]:
        return None
    file = folder / "tokenizer_config.json"
    token = stated(file, "eos_token")
    name = token["content"] if isinstance(token, dict) else token
    if name is None:
        raise EmbedderError(f"embedder.end_token: {file} states no `eos_token`.")
    if config.end_token is None:
        raise EmbedderError(
            f"{folder} pools the last token, and its tokenizer puts none behind a text. Set "
            f"embedder.end_token: true if the model was trained with {name!r} there (F2LLM was), "
            "false to pool the last token of the text itself."
        )
    return str(name)


def _weights_sha256(folders: list[Path]) -> str:
    files: list[Path] = []
    for folder in folders:
        refuse_pickles(folder, EmbedderError)
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise EmbedderError(f"{folder}: no *.safetensors file; other formats are not read.")
        files += found
    hashes = [file_sha256(path) for path in files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
