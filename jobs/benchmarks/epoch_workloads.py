"""The paper's three models with random weights, each doing part of an epoch as its job does it.

The epochs are those of training itself (`sce.training.epoch`) and the passes those of the text
embedder. What is random: weights, vectors, token ids. What is left out: tokenising texts and
prompts, reading data, validation, checkpoints.

Needs torch, transformers and peft; for 4-bit weights bitsandbytes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    LlamaConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from sce.baselines.llama_training import LlamaObjective
from sce.baselines.lora import LINEARS, Samples, add_adapters, collate, load_base
from sce.embedding.embedder import BATCH_TOKENS, embed_batch
from sce.embedding.tokenising import TokenisedTexts, batches
from sce.errors import ConfigError
from sce.evaluation import flops
from sce.evaluation.flops import JINA_V3, LLAMA_1B, LORA_RANK, ROBERTA_BASE, Architecture
from sce.labels import LabelSet
from sce.model.encoder import SCEConfig, SCEModel, trainable_parameters
from sce.training.episodes import EpisodeObjective, EpisodeSampler
from sce.training.epoch import make_optimizer, train_epoch
from sce.training.random_keys import row_keys

if TYPE_CHECKING:
    from jobs.benchmarks.epoch_cost import EpochCost

JINA_RANK = 4
"""Of a task adapter of jina-embeddings-v3, as its published configuration has it."""
JINA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
ANSWER_TOKENS = 2
"""Of a sample of the language model, behind the prompt: a label of one token, the end of turn."""
_EPOCHS = 1_000_000  # of the schedule: more than will be run, so that the rate stays above 0


@dataclass(frozen=True)
class ModelSizes:
    """The three architectures, with what `Architecture` does not say: their attention heads."""

    encoder: Architecture
    encoder_heads: int
    embedder: Architecture
    embedder_heads: int
    llama: Architecture
    llama_heads: int
    lora_rank: int


FULL = ModelSizes(ROBERTA_BASE, 12, JINA_V3, 16, LLAMA_1B, 32, LORA_RANK)
"""Appendices I, J, L and M."""
TINY = ModelSizes(
    Architecture(d=32, d_ff=64, n_f1=1, n_f2=1, blocks=2, kv_size=32, vocabulary=64),
    4,
    Architecture(d=48, d_ff=96, n_f1=1, n_f2=1, blocks=2, kv_size=48, vocabulary=64),
    4,
    Architecture(d=64, d_ff=96, n_f1=2, n_f2=1, blocks=2, kv_size=32, vocabulary=64),
    4,
    4,
)
"""For tests."""
SIZES = {"full": FULL, "tiny": TINY}


@dataclass(frozen=True)
class Stretch:
    """Part of an epoch, or the whole of it.

    Attributes:
        run: does it; its argument is how many were done before.
        samples, steps: that one run of it takes; a step is one batch's pass.
    """

    run: Callable[[int], None]
    samples: int
    steps: int


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a sample, by `sce.evaluation.flops`.

    Attributes:
        paper: in the paper's convention.
        exact: as the hardware counts them.
        recomputed: exact, done a second time for gradient checkpoints; not part of `exact`.
    """

    paper: float
    exact: float
    recomputed: float = 0.0


@dataclass(frozen=True)
class Workload:
    """A model on its device, ready to be timed.

    Attributes:
        name: for the report.
        stretch: as many steps of an epoch as asked for, or a few more where an optimiser step
            needs them.
        epoch_steps: of a whole epoch.
        operations: of a sample.
        parameters, trainable: of the model.
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
    """Of the encoder's training, the affine map of the query included."""
    sizes = SIZES[settings.size]
    a, m, d_ext = sizes.encoder, settings.labels + 1, sizes.embedder.d
    exact = flops.exact_forward(a, m) + flops.exact_backward(a, m)
    # Of the affine map: forward, and the gradient of its weights; its input needs none.
    return Operations(flops.encoder_sample(a, m, d_ext), exact + 2 * 2 * a.d * d_ext)


def embedding_operations(settings: EpochCost) -> Operations:
    """Of a text; the adapter is in the exact count alone."""
    a, m = SIZES[settings.size].embedder, settings.text_tokens
    return Operations(flops.embedding_sample(a, m), flops.exact_forward(a, m, JINA_RANK))


def llama_operations(settings: EpochCost) -> Operations:
    """Of LoRA training. The paper counts the prompt's tokens, the exact count those of the answer
    too, and the scores over the vocabulary that `label_loss` takes: those of the answer's tokens
    and of the one before. (Without gradient checkpoints the first block's input needs no gradient,
    which is counted all the same: 0.3%.)"""
    sizes = SIZES[settings.size]
    a, r, m = sizes.llama, sizes.lora_rank, settings.prompt_tokens + ANSWER_TOKENS
    scored = ANSWER_TOKENS + 1
    exact = flops.exact_forward(a, m, r, scored) + flops.exact_backward(a, m, r, scored)
    again = flops.exact_forward(a, m, r) if settings.gradient_checkpointing else 0
    return Operations(flops.lora_sample(a, settings.prompt_tokens, r), exact, again)


def encoder_training(settings: EpochCost) -> Any:
    """What `sce.training.epoch` reads of a `TrainConfig`: configs/paper/sce.yaml. (The
    class itself needs pydantic, which a machine with a GPU may lack.)"""
    return SimpleNamespace(
        epochs=_EPOCHS,
        batch_size=settings.batch_size,
        pass_rows=settings.batch_size,
        optimizer="adam",
        learning_rate=1e-5,
        final_learning_rate=1e-6,
        decay="linear",
        warmup_fraction=0.05,
        scale_learning_rate=1e-3,
        weight_decay=1e-4,
        max_grad_norm=1.0,
        dropout=0.1,
        precision=settings.dtype,
    )


def llama_training(settings: EpochCost) -> Any:
    """What `sce.training.epoch` reads of a `LlamaTrainConfig`: configs/paper/llama.yaml."""
    return SimpleNamespace(
        epochs=_EPOCHS,
        micro_batch_size=settings.micro_batch_size,
        pass_rows=settings.micro_batch_size,
        accumulation_steps=settings.accumulation_steps,
        batch_size=settings.micro_batch_size * settings.accumulation_steps,
        optimizer="adam",
        learning_rate=1e-4,
        final_learning_rate=0.0,
        decay="linear",
        warmup_fraction=0.03,
        scale_learning_rate=1e-3,
        weight_decay=0.0,
        max_grad_norm=1.0,
        precision=settings.dtype,
    )


def lora_settings(settings: EpochCost, quantisation: str) -> Any:
    """What `sce.baselines.lora` reads of `LoraSettings`: configs/paper/llama.yaml."""
    return SimpleNamespace(
        rank=SIZES[settings.size].lora_rank,
        alpha=None,
        dropout=0.0,
        targets=LINEARS,
        quantisation=quantisation,
        dtype=settings.dtype,
        gradient_checkpointing=settings.gradient_checkpointing,
    )


def augmentation(labels: int) -> Any:
    """What `EpisodeSampler` reads of an `AugmentConfig`: configs/paper/sce.yaml."""
    return SimpleNamespace(
        max_candidates=max(64, labels),
        subset_probability=0.0,
        foreign_probability=0.0,
        foreign_similarity_limit=0.7,
        view_weights={"synonym": 1.0},
        synonym_scope="right",
        example_probability=0.0,
    )


def sce_config(sizes: ModelSizes, dropout: float) -> SCEConfig:
    """The paper's encoder (configs/paper/sce.yaml)."""
    a = sizes.encoder
    return SCEConfig(
        encoder={
            "model_type": "roberta",
            "vocab_size": a.vocabulary,
            "hidden_size": a.d,
            "intermediate_size": a.d_ff,
            "num_hidden_layers": a.blocks,
            "num_attention_heads": sizes.encoder_heads,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        },
        embedding_dim=sizes.embedder.d,
        label_source="tokens",
        prior_scale=0.0,
        learn_scales=False,
        adaptor_init="normal",
    )


def jina_model(sizes: ModelSizes, dtype: torch.dtype) -> PreTrainedModel:
    """The text embedder with a task adapter, as `sce.embedding.embedder.load_embedder` has it."""
    a = sizes.embedder
    config = JinaEmbeddingsV3Config(
        vocab_size=a.vocabulary,
        hidden_size=a.d,
        intermediate_size=a.d_ff,
        num_hidden_layers=a.blocks,
        num_attention_heads=sizes.embedder_heads,
    )
    config._attn_implementation = "sdpa"
    model: Any = JinaEmbeddingsV3Model(config, add_pooling_layer=False)
    model = model.to(dtype)
    adapter = LoraConfig(
        r=JINA_RANK, lora_alpha=1, target_modules=list(JINA_LINEARS), init_lora_weights=False
    )
    model.add_adapter(adapter, adapter_name="classification")
    model.set_adapter("classification")
    return model.eval().requires_grad_(False)


def llama_config(sizes: ModelSizes) -> LlamaConfig:
    """Llama-3.2-1B (its scaling of the rotary frequencies apart, which costs nothing)."""
    a = sizes.llama
    head_size = a.d // sizes.llama_heads
    return LlamaConfig(
        vocab_size=a.vocabulary,
        hidden_size=a.d,
        intermediate_size=a.d_ff,
        num_hidden_layers=a.blocks,
        num_attention_heads=sizes.llama_heads,
        num_key_value_heads=a.kv_size // head_size,
        head_dim=head_size,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )


def sce_workload(settings: EpochCost, device: torch.device) -> Workload:
    """Training of the encoder on vectors that are there already."""
    sizes, train = SIZES[settings.size], encoder_training(settings)
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    model = SCEModel(sce_config(sizes, train.dropout)).to(device)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, train)
    queries_ND = _unit_vectors(rng, settings.samples, sizes.embedder.d)
    names = [f"label {k}" for k in range(settings.labels)]
    label_set = LabelSet.parse(names)

    def token_means(texts: Sequence[str]) -> torch.Tensor:
        """Equation 2, every label one token."""
        rows_K = torch.arange(len(texts), device=device) % sizes.encoder.vocabulary
        return model.token_embeddings.weight.detach()[rows_K]

    def stretch(steps: int) -> Stretch:
        rows = min(settings.samples, steps * train.batch_size)
        sampler = EpisodeSampler(
            [f"row {i}" for i in range(rows)],
            [names[i] for i in rng.integers(len(names), size=rows)],
            ["labels"] * rows,
            {"labels": label_set},
            lambda texts: _unit_vectors(rng, len(texts), sizes.embedder.d),
            token_means,
            augmentation(settings.labels),
            settings.seed,
        )
        objective = EpisodeObjective(model, sampler, queries_ND, device)

        def run(epoch: int) -> None:
            train_epoch(objective, optimizer, train, epoch)

        return Stretch(run, rows, math.ceil(rows / train.batch_size))

    return Workload(
        name=f"SCE encoder ({'roberta-base' if settings.size == 'full' else 'tiny'}), trained",
        stretch=stretch,
        epoch_steps=math.ceil(settings.samples / train.batch_size),
        operations=sce_operations(settings),
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=trainable_parameters(model),
        notes=(
            f"batches of {train.batch_size:,}, {settings.labels} labels of one token and the "
            "query; episodes are drawn as in training, texts are embedded already",
        ),
    )


def embedding_workload(settings: EpochCost, device: torch.device) -> Workload:
    """Embedding of the texts of an epoch, which is needed once."""
    sizes = SIZES[settings.size]
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    with device:
        model = jina_model(sizes, getattr(torch, settings.dtype))
    budget = settings.max_batch_tokens or BATCH_TOKENS[device.type]
    per_batch, length = max(1, budget // settings.text_tokens), settings.text_tokens
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
        name=f"embedder ({'jina-embeddings-v3' if settings.size == 'full' else 'tiny'}), once",
        stretch=stretch,
        epoch_steps=math.ceil(settings.samples / per_batch),
        operations=embedding_operations(settings),
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=0,
        notes=(
            f"batches of {per_batch:,} texts of {length} tokens, forward alone, with an adapter of "
            f"rank {JINA_RANK}; tokenising is left out",
        ),
    )


def llama_workload(settings: EpochCost, device: torch.device) -> Workload:
    """Training of LoRA adapters, the frozen weights in 4 bits where that works here."""
    sizes, train = SIZES[settings.size], llama_training(settings)
    quantisation, why = choose_quantisation(settings.quantisation, device)
    model = _lora_llama(settings, quantisation, device)
    optimizer = make_optimizer(model, train)
    prompts = _Prompts(settings, sizes.llama.vocabulary)

    def stretch(steps: int) -> Stretch:
        optimizer_steps = math.ceil(steps / train.accumulation_steps)
        rows = min(settings.samples, optimizer_steps * train.batch_size)
        sampler: Any = prompts.first(rows)
        objective = LlamaObjective(model, sampler, device)

        def run(epoch: int) -> None:
            train_epoch(objective, optimizer, train, epoch)

        return Stretch(run, rows, math.ceil(rows / train.micro_batch_size))

    weights = "4-bit (nf4)" if quantisation == "nf4" else f"UNQUANTISED {settings.dtype}"
    return Workload(
        name=f"LoRA {'Llama-3.2-1B' if settings.size == 'full' else 'Llama (tiny)'}, {weights}",
        stretch=stretch,
        epoch_steps=math.ceil(settings.samples / train.micro_batch_size),
        operations=llama_operations(settings),
        # Of the architecture: bitsandbytes keeps two 4-bit weights in one element.
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


WORKLOADS: dict[str, Callable[[EpochCost, torch.device], Workload]] = {
    "sce": sce_workload,
    "jina": embedding_workload,
    "llama": llama_workload,
}


def llama_parameters(sizes: ModelSizes) -> int:
    """Of the language model and its adapters."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(llama_config(sizes))
    own = sum(p.numel() for p in base.parameters())
    return own + flops.lora_parameters(sizes.llama, sizes.lora_rank)


def choose_quantisation(asked: str, device: torch.device) -> tuple[str, str | None]:
    """What `LoraSettings.quantisation` can be here, and why it is not nf4.

    Raises:
        ConfigError: nf4 was asked for and does not work here.
    """
    if asked == "none":
        return "none", "asked for"
    try:
        import bitsandbytes

        bitsandbytes.functional.quantize_4bit(
            torch.ones(64, 64, dtype=torch.bfloat16, device=device), quant_type="nf4"
        )
    except Exception as error:  # a missing or broken native library raises what it likes
        why = (
            "bitsandbytes is not installed"
            if isinstance(error, ModuleNotFoundError) and error.name == "bitsandbytes"
            else f"bitsandbytes does not work here ({type(error).__name__}: {error!s:.200})"
        )
        if asked == "nf4":
            raise ConfigError(f"quantisation: 'nf4', but {why}.") from error
        return "none", why
    return "nf4", None


def _lora_llama(settings: EpochCost, quantisation: str, device: torch.device) -> PeftModel:
    """The language model as a job loads it: from files, quantised on the way."""
    dtype = getattr(torch, settings.dtype)
    lora = lora_settings(settings, quantisation)
    torch.manual_seed(settings.seed)
    with tempfile.TemporaryDirectory(prefix="llama-") as folder, without_progress_bars():
        with device:
            plain = AutoModelForCausalLM.from_config(
                llama_config(SIZES[settings.size]), dtype=dtype
            )
        plain.save_pretrained(folder)
        del plain
        base = load_base(folder, lora, str(device))
    return add_adapters(base, lora)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """transformers' own, for which a table is no place."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


class _Prompts:
    """Random prompts in place of `sce.baselines.llama_training.LlamaSampler`'s."""

    def __init__(self, settings: EpochCost, vocabulary: int) -> None:
        rng = np.random.default_rng(settings.seed)
        self.seed = settings.seed
        self.keys_N = row_keys([f"row {i}" for i in range(settings.samples)])
        self._prompts = rng.integers(2, vocabulary, size=(64, settings.prompt_tokens)).tolist()
        self._labels = rng.integers(2, vocabulary, size=(settings.labels, 1)).tolist()

    def first(self, rows: int) -> _Prompts:
        """The same with its first rows alone."""
        some = object.__new__(_Prompts)
        some.__dict__.update(self.__dict__ | {"keys_N": self.keys_N[:rows]})
        return some

    def draw(self, epoch: int, places_B: Sequence[int]) -> Samples:
        """A micro-batch."""
        prompts = [self._prompts[i % len(self._prompts)] for i in places_B]
        labels = [self._labels[i % len(self._labels)] for i in places_B]
        return collate(prompts, labels, end=1, pad=0)


def _unit_vectors(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    vectors = rng.standard_normal((count, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
