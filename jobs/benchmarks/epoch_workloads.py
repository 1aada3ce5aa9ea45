"""The paper's three models, each doing part of an epoch as its job does it, for timing.

The epochs are those of training itself and the passes those of the text embedder. What is random:
weights, vectors, token ids. What is left out: tokenising texts and prompts, reading data,
validation, checkpoints.

Shapes: B rows of a batch, N rows, K labels, D the embedder's dimension.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from jobs.benchmarks.epoch_models import (
    JINA_RANK,
    augmentation,
    encoder_training,
    jina_model,
    llama_config,
    llama_parameters,
    llama_training,
    lora_settings,
    sce_config,
    torch_device,
    torch_dtype,
)
from jobs.benchmarks.epoch_settings import EpochCost, choose_quantisation
from sce.baselines.llama_training import LlamaObjective
from sce.baselines.lora import Samples, add_adapters, collate, load_base
from sce.embedding.embedder import BATCH_TOKENS, embed_batch
from sce.embedding.tokenising import TokenisedTexts, batches
from sce.evaluation import flops
from sce.labels import LabelSet
from sce.model.encoder import SCEModel, trainable_parameters
from sce.training.data import Rows
from sce.training.episodes import EpisodeObjective, EpisodeSampler
from sce.training.epoch import make_optimizer, train_epoch
from sce.training.random_keys import row_keys

ANSWER_TOKENS = 2
"""Tokens of a sample behind the prompt of the language model: a label of one, the end of turn."""


@dataclass(frozen=True)
class Stretch:
    """Part of an epoch, or the whole of it: `run` does it, given how many were done before. A step
    is one batch's pass."""

    run: Callable[[int], None]
    samples: int
    steps: int


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a sample, by `sce.evaluation.flops`: in the paper's convention,
    as the hardware counts them, and those done again for gradient checkpoints (not in `exact`)."""

    paper: float
    exact: float
    recomputed: float = 0.0


@dataclass(frozen=True)
class Workload:
    """A model on its device, ready to be timed.

    Attributes:
        stretch: as many steps of an epoch as asked for, or a few more where an optimiser step
            needs them.
        notes: what a reader of its figures has to know.
    """

    name: str
    stretch: Callable[[int], Stretch]
    epoch_steps: int
    operations: Operations
    parameters: int
    trainable: int
    notes: tuple[str, ...]


def sce_operations(settings: EpochCost) -> Operations:
    """Operations of the encoder's training, the affine map of the query included."""
    a, m, d_ext = settings.sizes.encoder, settings.labels + 1, settings.sizes.embedder.d
    exact = flops.exact_forward(a, m) + flops.exact_backward(a, m)
    # Of the affine map: forward, and the gradient of its weights; its input needs none.
    return Operations(flops.encoder_sample(a, m, d_ext), exact + 2 * 2 * a.d * d_ext)


def embedding_operations(settings: EpochCost) -> Operations:
    """Operations of embedding a text; the adapter is in the exact count alone."""
    a, m = settings.sizes.embedder, settings.text_tokens
    return Operations(flops.embedding_sample(a, m), flops.exact_forward(a, m, JINA_RANK))


def llama_operations(settings: EpochCost) -> Operations:
    """Operations of LoRA training. The paper counts the prompt's tokens, the exact count those of
    the answer too, and the scores over the vocabulary that the loss takes: those of the answer's
    tokens and of the one before. (Without gradient checkpoints the first block's input needs no
    gradient, which is counted all the same: 0.3%.)"""
    a, r = settings.sizes.llama, settings.sizes.lora_rank
    m, scored = settings.prompt_tokens + ANSWER_TOKENS, ANSWER_TOKENS + 1
    exact = flops.exact_forward(a, m, r, scored) + flops.exact_backward(a, m, r, scored)
    again = flops.exact_forward(a, m, r) if settings.gradient_checkpointing else 0
    return Operations(flops.lora_sample(a, settings.prompt_tokens, r), exact, again)


def sce_workload(settings: EpochCost) -> Workload:
    """Training of the encoder on vectors that are there already."""
    sizes, device, train = settings.sizes, torch_device(settings), encoder_training(settings)
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    model = SCEModel(sce_config(sizes, train.dropout)).to(device)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, train)
    queries_ND = _unit_vectors(rng, settings.samples, sizes.embedder.d)
    names = [f"label {k}" for k in range(settings.labels)]

    def token_means(texts: Sequence[str]) -> torch.Tensor:
        """Equation 2, every label one token."""
        rows_K = torch.arange(len(texts), device=device) % sizes.encoder.vocabulary
        return model.token_embeddings.weight.detach()[rows_K]

    def stretch(steps: int) -> Stretch:
        rows = min(settings.samples, steps * train.batch_size)
        ids, sets = [f"row {i}" for i in range(rows)], ["labels"] * rows
        labels = [names[i] for i in rng.integers(len(names), size=rows)]
        sampler = EpisodeSampler(
            Rows(ids, sets, labels, sets, queries_ND[:rows]),
            {"labels": LabelSet.parse(names)},
            lambda texts: _unit_vectors(rng, len(texts), sizes.embedder.d),
            token_means,
            augmentation(settings.labels),
            settings.seed,
            model.config.label_vectors,
        )
        objective = EpisodeObjective(model, sampler, torch_device(settings))

        run = partial(train_epoch, objective, optimizer, train)
        return Stretch(run, rows, math.ceil(rows / train.batch_size))

    return Workload(
        name=f"SCE encoder ({settings.named('roberta-base')}), trained",
        stretch=stretch,
        epoch_steps=math.ceil(settings.samples / train.batch_size),
        operations=sce_operations(settings),
        parameters=model.num_parameters(),
        trainable=trainable_parameters(model),
        notes=(
            f"batches of {train.batch_size:,}, {settings.labels} labels of one token and the "
            "query; episodes are drawn as in training, texts are embedded already",
        ),
    )


def embedding_workload(settings: EpochCost) -> Workload:
    """Embedding of the texts of an epoch, which is needed once."""
    sizes, device, length = settings.sizes, torch_device(settings), settings.text_tokens
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    with device:
        model = jina_model(sizes, torch_dtype(settings))
    budget = settings.max_batch_tokens or BATCH_TOKENS[device.type]
    per_batch = max(1, budget // length)
    pad = model.config.pad_token_id or 0

    def stretch(steps: int) -> Stretch:
        texts = min(settings.samples, steps * per_batch)
        ids = rng.integers(3, sizes.embedder.vocabulary, size=texts * length)
        tokens = TokenisedTexts(ids, np.full(texts, length), np.zeros(texts, bool))

        def run(_: int) -> None:
            for batch in batches(tokens, budget, pad):
                embed_batch(model, batch, "mean")

        return Stretch(run, texts, math.ceil(texts / per_batch))

    return Workload(
        name=f"embedder ({settings.named('jina-embeddings-v3')}), once",
        stretch=stretch,
        epoch_steps=math.ceil(settings.samples / per_batch),
        operations=embedding_operations(settings),
        parameters=model.num_parameters(),
        trainable=0,
        notes=(
            f"batches of {per_batch:,} texts of {length} tokens, forward alone, with an adapter of "
            f"rank {JINA_RANK}; tokenising is left out",
        ),
    )


def llama_workload(settings: EpochCost) -> Workload:
    """Training of LoRA adapters, the frozen weights in 4 bits where that works here."""
    sizes, train = settings.sizes, llama_training(settings)
    quantisation, why = choose_quantisation(settings)
    model = _lora_llama(settings, quantisation)
    optimizer = make_optimizer(model, train)

    def stretch(steps: int) -> Stretch:
        optimizer_steps = math.ceil(steps / train.accumulation_steps)
        rows = min(settings.samples, optimizer_steps * train.batch_size)
        objective = RandomPrompts(settings, rows, model)

        run = partial(train_epoch, objective, optimizer, train)
        return Stretch(run, rows, math.ceil(rows / train.micro_batch_size))

    name = "Llama-3.2-1B" if settings.size == "full" else "Llama (tiny)"
    weights = "4-bit (nf4)" if quantisation == "nf4" else f"UNQUANTISED {settings.dtype}"
    return Workload(
        name=f"LoRA {name}, {weights}",
        stretch=stretch,
        epoch_steps=math.ceil(settings.samples / train.micro_batch_size),
        operations=llama_operations(settings),
        parameters=llama_parameters(sizes),
        trainable=trainable_parameters(model),
        notes=(
            f"rank {sizes.lora_rank}, micro-batches of {train.micro_batch_size} with "
            f"{train.accumulation_steps} accumulation steps, prompts of {settings.prompt_tokens} "
            "tokens, then a label of one token and the end of turn; tokenising is left out; "
            f"gradient checkpointing {'on' if settings.gradient_checkpointing else 'off'}",
            *([f"frozen weights are not in 4 bits, as the paper's are: {why}"] if why else []),
        ),
    )


WORKLOADS = {"sce": sce_workload, "jina": embedding_workload, "llama": llama_workload}


def _lora_llama(settings: EpochCost, quantisation: str) -> PeftModel:
    """The language model as a job loads it: from files, quantised on the way."""
    lora = lora_settings(settings, quantisation)
    torch.manual_seed(settings.seed)
    with tempfile.TemporaryDirectory(prefix="llama-") as folder:
        config = llama_config(settings.sizes)
        with torch_device(settings):
            plain = AutoModelForCausalLM.from_config(config, dtype=torch_dtype(settings))
        plain.save_pretrained(folder)
        del plain
        return add_adapters(load_base(folder, lora, str(torch_device(settings))), lora)


class RandomPrompts(LlamaObjective):
    """Training on random prompts in place of those of rows."""

    def __init__(self, settings: EpochCost, rows: int, model: PeftModel) -> None:
        self.model, self.device = model, torch_device(settings)
        rng = np.random.default_rng(settings.seed)
        vocabulary = settings.sizes.llama.vocabulary
        self.seed = settings.seed
        self.keys_N = row_keys([f"row {i}" for i in range(rows)])
        self._prompts = rng.integers(2, vocabulary, size=(64, settings.prompt_tokens)).tolist()
        self._labels = rng.integers(2, vocabulary, size=(settings.labels, 1)).tolist()

    def samples(self, epoch: int, places_B: Sequence[int]) -> Samples:
        """A micro-batch; nothing is cut."""
        prompts = [self._prompts[i % len(self._prompts)] for i in places_B]
        labels = [self._labels[i % len(self._labels)] for i in places_B]
        return collate(prompts, labels, end=1, pad=0)


def _unit_vectors(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    vectors = rng.standard_normal((count, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
