"""The store path of `epoch_cost.py`: the paper's encoder, random weights, answering random vectors.

Labels are one random token each, as equation 2 reads them.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.benchmarks.epoch_models import sce_config, torch_device, torch_dtype
from jobs.benchmarks.epoch_settings import EpochCost
from jobs.benchmarks.inputs import unit_vectors, write_store
from jobs.benchmarks.rounds import Figure, Figures
from jobs.benchmarks.store_path import files_to_files, share_of_matrix_rate
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.evaluation.peak_memory import peak_bytes, reset_peak
from sce.model.encoder import SCEModel
from sce.predictor import Predictor


@dataclass(frozen=True)
class VectorsAlone:
    """Stands where an embedder would: its vectors are there already."""

    fingerprint: EmbedderFingerprint

    @property
    def dimension(self) -> int:
        return self.fingerprint.dimension


@dataclass(frozen=True)
class OneTokenEach:
    """Stands where a tokenizer would: a name is one token."""

    vocabulary: int
    unk_token_id: int = 0

    def __call__(self, names: Sequence[str], add_special_tokens: bool) -> dict[str, Any]:
        return {"input_ids": [[zlib.crc32(name.encode()) % self.vocabulary] for name in names]}


def paper_predictor(settings: EpochCost) -> Predictor:
    """The paper's encoder on the device and in the numbers of the settings."""
    sizes = settings.sizes
    torch.manual_seed(settings.seed)
    with torch_device(settings):
        model = SCEModel(sce_config(sizes, 0.0)).cast_weights(torch_dtype(settings))
    fingerprint = EmbedderFingerprint(
        kind="jina", model="random", revision=None, adapter="classification", pooling="mean",
        normalised=True, dimension=sizes.embedder.d, max_tokens=8192, dtype=settings.dtype,
        weights_sha256="", tokenizer_sha256="",
    )  # fmt: skip
    embedder: Any = VectorsAlone(fingerprint)
    tokenizer: Any = OneTokenEach(sizes.encoder.vocabulary)
    return Predictor(
        model,
        embedder,
        tokenizer,
        text_vectors=lambda texts: unit_vectors(len(texts), sizes.embedder.d),
    )


def measure_store(settings: EpochCost) -> tuple[Figures, list[str]]:
    """Vectors to answers beside a matrix product, files to files beside Parquet alone, and the peak
    of memory; the second with adapted labels too, which a processor answers, not the GPU."""
    predictor, device = paper_predictor(settings), torch_device(settings)
    reset_peak(device)
    figures, notes = share_of_matrix_rate(
        predictor, settings.label_counts, settings.seconds, settings.rounds
    )
    with tempfile.TemporaryDirectory(prefix="store-") as scratch:
        store = Path(scratch) / "store"
        write_store(store, predictor.embedder.fingerprint, settings.store_rows)
        figures |= files_to_files(store, predictor, [settings.labels], settings.rounds)
    peak = Figure.of(peak_bytes(device) / 2**30, "GiB", "less")
    figures["store path"] = {"peak memory, GiB": {"": peak}}
    return figures, notes
