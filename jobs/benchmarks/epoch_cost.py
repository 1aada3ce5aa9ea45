"""Seconds, memory and achieved operations of an epoch: SCE, its embedder and LoRA Llama.

Section 3.3 and appendices R and S compare the paper's two trainings by time and by operations.
This measures both on one device in one run, on models of the real architectures with random
weights, and puts what came out beside the paper's figures (models: `epoch_workloads`).

Operations are counted twice: as the paper does (one for a multiplication and addition) and as the
hardware does (two; `exact`). Achieved operations a second and the share of the chip's matrix rate
use the exact count, of what training needs; what gradient checkpoints compute again is not in it.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import logging
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from jobs.benchmarks.epoch_workloads import SIZES, WORKLOADS, Workload, choose_quantisation
from sce.errors import ConfigError
from sce.evaluation.costs import peak_bytes, reset_peak
from sce.evaluation.paper import EPOCHS, FLOPS_BOUND, FLOPS_RATIO, LORA, SCE, TIME_RATIO

Clock = Callable[[], float]
"""Seconds since some moment."""

PAPER_SECONDS = {
    "sce": f"under {EPOCHS[SCE].seconds:,.0f}",
    "jina": "not given",
    "llama": f"{EPOCHS[LORA].seconds:,.0f}",
}
"""An epoch of 16,000 samples on one A6000: appendix R."""
ENOUGH_STEPS = 200
"""For figures to rely on."""
STRETCHES = 5
"""Parts in which the steps are timed, at least, so that their spread can be told."""
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
_PRODUCTS = {"cpu": 2, "cuda": 10}  # between two looks at the clock
_LOOKS = {"cpu": 5, "cuda": 30}
_DTYPES = ("auto", "bfloat16", "float32")

log = logging.getLogger(__name__)


def _setting(default: Any, text: str, least: int | None = None, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, "least": least, **more})


@dataclass(frozen=True)
class EpochCost:
    """What is measured. `None` stands for the size's own."""

    size: str = _setting("full", "the paper's models, or tiny ones as a trial", choices=[*SIZES])
    models: str = _setting("sce,jina,llama", "which of them, with commas")
    device: str = _setting(
        "auto", "auto is a GPU where there is one", choices=["auto", "cpu", "cuda"]
    )
    dtype: str = _setting("auto", "number format: bfloat16 on a GPU, else float32", choices=_DTYPES)
    quantisation: str = _setting(
        "auto", "of the frozen Llama: auto is nf4 where it works", choices=["auto", "nf4", "none"]
    )
    steps: int = _setting(200, "timed for each model, or some more", 1)
    warmup: int = _setting(20, "steps before that, or some more", 0)
    samples: int = _setting(16_000, "of an epoch", 1)
    batch_size: int = _setting(512, "of SCE", 1)
    labels: int = _setting(10, "candidates", 1)
    text_tokens: int = _setting(84, "of a text, for the embedder", 1)
    max_batch_tokens: int | None = _setting(None, "of the embedder's batch; default: its own", 1)
    micro_batch_size: int = _setting(2, "of Llama", 1)
    accumulation_steps: int = _setting(32, "of Llama", 1)
    prompt_tokens: int = _setting(225, "of Llama's prompt", 1)
    gradient_checkpointing: bool = _setting(True, "of Llama")
    matrix_size: int | None = _setting(None, "of the product that gives the matrix rate", 16)
    seed: int = _setting(0, "of everything random", 0)
    output: str | None = _setting(None, "a file for the table (Markdown)")

    def resolved(self) -> EpochCost:
        """The same with device and number format decided.

        Raises:
            ConfigError: there is no such device or model, or no 4-bit weights where they were
                asked for.
        """
        unknown = [name for name in self.names if name not in WORKLOADS]
        if unknown or not self.names:
            raise ConfigError(
                f"models: {self.models!r} has {unknown or 'none'}; allowed, with commas: "
                f"{', '.join(WORKLOADS)}."
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device: 'cuda', but this machine has no usable GPU.")
        if self.output is not None:
            output = Path(self.output).absolute()
            if output.is_dir() or not output.parent.is_dir():
                raise ConfigError(f"output: {self.output!r} is no file in a folder that exists.")
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = self.dtype
        if dtype == "auto":
            dtype = "bfloat16" if device == "cuda" else "float32"
        found = EpochCost(**asdict(self) | {"device": device, "dtype": dtype})
        if "llama" in self.names and self.quantisation == "nf4":
            choose_quantisation("nf4", device_of(found))  # now rather than after minutes
        return found

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.models.split(",") if name.strip()]


TINY_SETTINGS: dict[str, Any] = {
    "steps": 4, "warmup": 1, "samples": 64, "batch_size": 8, "text_tokens": 12,
    "max_batch_tokens": 96, "accumulation_steps": 2, "prompt_tokens": 9, "matrix_size": 128,
}  # fmt: skip
"""Defaults of `--size tiny`."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}. --help lists the settings.")


def read_settings(argv: Sequence[str], prog: str, doc: str) -> EpochCost:
    """The settings of a command line.

    Raises:
        ConfigError: an unknown flag or a wrong value; names it, and what is allowed.
        SystemExit: `--help`.
    """
    parser = _Parser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS, allow_abbrev=False,
    )  # fmt: skip
    for item in fields(EpochCost):
        flags = list(dict.fromkeys([f"--{item.name.replace('_', '-')}", f"--{item.name}"]))
        more: dict[str, Any] = {"help": f"{item.metadata['help']} ({item.default})"}
        if isinstance(item.default, bool):
            more["action"] = argparse.BooleanOptionalAction
        elif item.metadata["least"] is not None:
            more["type"] = _whole_number(item.metadata["least"])
        if "choices" in item.metadata:
            more["choices"] = item.metadata["choices"]
        parser.add_argument(*flags, dest=item.name, **more)
    given = vars(parser.parse_args(list(argv)))
    sized = TINY_SETTINGS if given.get("size") == "tiny" else {}
    return EpochCost(**sized | given).resolved()


def _whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text.replace("_", ""))
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r}: a whole number from {least} is needed")
        return value

    return parse


@dataclass(frozen=True)
class Timed:
    """What was measured of a workload.

    Attributes:
        samples, steps, seconds: over all timed stretches.
        spread: between the slowest and the fastest stretch, as a share of the mean.
        peak_bytes: see `peak_bytes`.
    """

    samples: int
    steps: int
    seconds: float
    spread: float
    peak_bytes: int


def timed(workload: Workload, settings: EpochCost, clock: Clock) -> Timed:
    """Warm up, then time stretches until there are `settings.steps` steps."""
    device = device_of(settings)
    stretch = workload.stretch(min(workload.epoch_steps, math.ceil(settings.steps / STRETCHES)))
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    reset_peak(device)
    done = 0
    for _ in range(math.ceil(settings.warmup / stretch.steps)):
        stretch.run(done)
        done += 1
    seconds = []
    for _ in range(math.ceil(settings.steps / stretch.steps)):
        synchronise(device)
        begin = clock()
        stretch.run(done)
        synchronise(device)
        seconds.append(clock() - begin)
        done += 1
    return Timed(
        samples=stretch.samples * len(seconds),
        steps=stretch.steps * len(seconds),
        seconds=sum(seconds),
        spread=(max(seconds) - min(seconds)) / statistics.fmean(seconds),
        peak_bytes=peak_bytes(device),
    )


def matrix_rate(settings: EpochCost, clock: Clock) -> float:
    """Operations a second of a large matrix product, random numbers, in the number format that
    the models are measured in; the best of a few."""
    device = device_of(settings)
    size = settings.matrix_size or MATRIX_SIZE[device.type]
    torch.manual_seed(settings.seed)
    left, right = torch.randn(2, size, size, dtype=getattr(torch, settings.dtype), device=device)
    out = torch.empty_like(left)
    products, rates = _PRODUCTS[device.type], []
    for look in range(_LOOKS[device.type] + 1):
        synchronise(device)
        begin = clock()
        for _ in range(products):
            torch.mm(left, right, out=out)
        synchronise(device)
        seconds = clock() - begin
        if look:  # the first warms up
            rates.append(products * 2 * size**3 / seconds)
    return max(rates)


def device_of(settings: EpochCost) -> torch.device:
    """That of `EpochCost.resolved`."""
    if settings.device == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(settings.device)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Row:
    """A model's figures; operations are floating-point operations, shares are of 1."""

    model: str
    epoch_seconds: float
    peak_bytes: int
    paper_operations_per_sample: float
    exact_operations_per_sample: float
    recomputed_operations_per_sample: float
    operations_per_second: float
    matrix_rate_share: float
    samples_timed: int
    steps_timed: int
    seconds_timed: float
    spread: float
    parameters: int
    trainable_parameters: int
    notes: tuple[str, ...]

    @classmethod
    def of(cls, workload: Workload, found: Timed, samples: int, rate: float) -> Row:
        """From what was measured; `rate` is the chip's."""
        achieved = workload.operations.exact * found.samples / found.seconds
        return cls(
            model=workload.name,
            epoch_seconds=found.seconds / found.samples * samples,
            peak_bytes=found.peak_bytes,
            paper_operations_per_sample=workload.operations.paper,
            exact_operations_per_sample=workload.operations.exact,
            recomputed_operations_per_sample=workload.operations.recomputed,
            operations_per_second=achieved,
            matrix_rate_share=achieved / rate,
            samples_timed=found.samples,
            steps_timed=found.steps,
            seconds_timed=found.seconds,
            spread=found.spread,
            parameters=workload.parameters,
            trainable_parameters=workload.trainable,
            notes=workload.notes,
        )


@dataclass(frozen=True)
class Ratio:
    """SCE's cost over LoRA Llama's: seconds here, operations by the paper's count here, and what
    the paper prints."""

    what: str
    seconds: float
    operations: float
    paper: str


def ratios(rows: dict[str, Row]) -> list[Ratio]:
    """Those that the measured models allow: epochs alone, and with the embedding of the texts as
    section 3.3's upper bound has it."""
    if "sce" not in rows or "llama" not in rows:
        return []
    sce, llama = rows["sce"], rows["llama"]

    def over_llama(cost: Callable[[Row], float], epochs: int, embedded: bool) -> float:
        once = cost(rows["jina"]) if embedded else 0.0
        return (epochs * cost(sce) + once) / (epochs * cost(llama))

    def ratio(what: str, epochs: int, embedded: bool, paper: str) -> Ratio:
        return Ratio(
            what,
            over_llama(lambda row: row.epoch_seconds, epochs, embedded),
            over_llama(lambda row: row.paper_operations_per_sample, epochs, embedded),
            paper,
        )

    alone = f"{TIME_RATIO} of seconds, {FLOPS_RATIO} of operations"
    found = [ratio("an epoch", 1, False, alone)]
    if "jina" in rows:
        for epochs, theory in FLOPS_BOUND.items():
            what = f"{epochs} epoch{'s' * (epochs > 1)} and the embedding"
            found.append(ratio(what, epochs, True, f"{theory} of operations"))
    return found


def measure(settings: EpochCost, clock: Clock = time.perf_counter) -> tuple[str, dict[str, Any]]:
    """Measure every model of the settings (`EpochCost.resolved`).

    Args:
        clock: for tests.

    Returns:
        The report in Markdown, and all its figures.
    """
    device = device_of(settings)
    rates = [matrix_rate(settings, clock)]
    rows: dict[str, Row] = {}
    for name in settings.names:
        workload = WORKLOADS[name](settings, device)
        found = timed(workload, settings, clock)
        # Again, since a GPU's clock moves and a CPU has other work to do: the best counts.
        rates.append(matrix_rate(settings, clock))
        rows[name] = Row.of(workload, found, settings.samples, max(rates))
        del workload
        gc.collect()  # before the next one is built
        # All that is there, should the next one fail.
        log.info("%s: %s", name, json.dumps(asdict(rows[name])))
    rate = max(rates)
    rows = {
        name: replace(row, matrix_rate_share=row.operations_per_second / rate)
        for name, row in rows.items()
    }
    summary = {
        "size": settings.size,
        "machine": machine(device),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")
        },
        "dtype": settings.dtype,
        "matrix_rate": rate,
        "models": {name: asdict(row) for name, row in rows.items()},
        "ratios": [asdict(ratio) for ratio in ratios(rows)],
        "settings": asdict(settings),
    }
    return markdown(settings, rows, summary), summary


def machine(device: torch.device) -> str:
    """What it ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()})"


def markdown(settings: EpochCost, rows: dict[str, Row], summary: dict[str, Any]) -> str:
    """The report."""
    memory = "allocated on the GPU" if settings.device == "cuda" else "of the process"
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines = [
        f"**An epoch of {settings.samples:,} samples**, {settings.size} size, random weights, on "
        f"{summary['machine']}; {versions}; {settings.dtype}. A matrix product runs at "
        f"{summary['matrix_rate']:.3g} operations a second here.",
        "",
    ]
    comparable = settings.size == "full"
    if not comparable:
        lines += ["A trial of the script with tiny models: comparable with nothing.", ""]
    elif min(row.steps_timed for row in rows.values()) < ENOUGH_STEPS:
        lines += [f"A trial: fewer than {ENOUGH_STEPS} steps of a model.", ""]
    lines += [
        f"| | seconds an epoch | paper, A6000 | peak memory ({memory}) | operations a sample, "
        "paper's count | exact | operations a second | share of the matrix rate |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        paper = PAPER_SECONDS[name] if comparable else ""
        lines.append(
            f"| {row.model} | {_seconds(row.epoch_seconds)} | {paper} | "
            f"{row.peak_bytes / 2**30:.2f} GiB | {row.paper_operations_per_sample:.4g} | "
            f"{row.exact_operations_per_sample:.4g} | {row.operations_per_second:.3g} | "
            f"{100 * row.matrix_rate_share:.3g}% |"
        )
    found = ratios(rows)
    if found:
        lines += [
            "",
            "| SCE over LoRA Llama | seconds, measured | operations, paper's count | the paper |",
            "|---|---:|---:|---:|",
        ]
        for ratio in found:
            lines.append(
                f"| {ratio.what} | {ratio.seconds:.4f} | {ratio.operations:.4f} | "
                f"{ratio.paper if comparable else ''} |"
            )
    lines.append("")
    if max(row.matrix_rate_share for row in rows.values()) > 1:
        lines.append("- A share above 100%: something else took this machine's time.")
    for row in rows.values():
        recomputed = (
            "; with what the checkpoints compute again, "
            f"{100 * row.matrix_rate_share * _with_recomputed(row):.3g}% of the matrix rate"
            if row.recomputed_operations_per_sample
            else ""
        )
        lines.append(
            f"- {row.model}: {row.parameters:,} parameters, {row.trainable_parameters:,} trained; "
            f"{row.steps_timed:,} steps in {row.seconds_timed:.4g} s (stretches within "
            f"{100 * row.spread:.0f}%); {'; '.join(row.notes)}{recomputed}."
        )
    return "\n".join(lines)


def _with_recomputed(row: Row) -> float:
    """Operations done over those needed."""
    return 1 + row.recomputed_operations_per_sample / row.exact_operations_per_sample


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
