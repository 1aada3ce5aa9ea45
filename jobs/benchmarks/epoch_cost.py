"""Seconds, memory and achieved operations of an epoch: SCE, its embedder and LoRA Llama.

Section 3.3 and appendices R and S compare the paper's two trainings by time and by operations.
This measures both on one device in one run, on models of the real architectures with random
weights, and puts what came out beside the paper's figures (what runs: `epoch_workloads`).

Operations are counted twice: as the paper does (one for a multiplication and addition) and as the
hardware does (two; `exact`). Achieved operations a second and the share of the chip's matrix rate
use the exact count, of what training needs; what gradient checkpoints compute again is not in it.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import logging
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from jobs.benchmarks.epoch_models import EpochCost
from jobs.benchmarks.epoch_workloads import WORKLOADS, Workload
from jobs.benchmarks.rounds import markdown_table
from sce.evaluation.paper import EPOCHS, FLOPS_BOUND, FLOPS_RATIO, LORA, SCE, TIME_RATIO
from sce.evaluation.peak_memory import peak_bytes, reset_peak

PAPER_SECONDS = {
    "sce": f"under {EPOCHS[SCE].seconds:,.0f}",
    "jina": "not given",
    "llama": f"{EPOCHS[LORA].seconds:,.0f}",
}
"""An epoch of 16,000 samples on one A6000: appendix R."""
ENOUGH_STEPS = 200
"""For figures to rely on."""
STRETCHES = 5
"""Parts in which the steps are timed, at least, so that their spread is known."""
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
_PRODUCTS = {"cpu": 2, "cuda": 10}  # between two looks at the clock
_LOOKS = {"cpu": 5, "cuda": 30}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """A model's figures. Operations are floating-point operations; `spread` is between the slowest
    and the fastest stretch, as a share of the mean."""

    model: str
    epoch_seconds: float
    peak_bytes: int
    paper_operations_per_sample: float
    exact_operations_per_sample: float
    recomputed_operations_per_sample: float
    operations_per_second: float
    samples_timed: int
    steps_timed: int
    seconds_timed: float
    spread: float
    parameters: int
    trainable_parameters: int
    notes: tuple[str, ...]


def timed(
    workload: Workload, settings: EpochCost, clock: Callable[[], float] = time.perf_counter
) -> Row:
    """Warm up, then time stretches until there are `settings.steps` steps."""
    device = settings.torch_device
    stretch = workload.stretch(min(workload.epoch_steps, math.ceil(settings.steps / STRETCHES)))
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    reset_peak(device)
    warmups = math.ceil(settings.warmup / stretch.steps)
    for done in range(warmups):
        stretch.run(done)
    seconds = [
        seconds_of(partial(stretch.run, warmups + done), device, clock)
        for done in range(math.ceil(settings.steps / stretch.steps))
    ]
    samples = stretch.samples * len(seconds)
    return Row(
        model=workload.name,
        epoch_seconds=sum(seconds) / samples * settings.samples,
        peak_bytes=peak_bytes(device),
        paper_operations_per_sample=workload.operations.paper,
        exact_operations_per_sample=workload.operations.exact,
        recomputed_operations_per_sample=workload.operations.recomputed,
        operations_per_second=workload.operations.exact * samples / sum(seconds),
        samples_timed=samples,
        steps_timed=stretch.steps * len(seconds),
        seconds_timed=sum(seconds),
        spread=(max(seconds) - min(seconds)) / statistics.fmean(seconds),
        parameters=workload.parameters,
        trainable_parameters=workload.trainable,
        notes=workload.notes,
    )


def matrix_rate(settings: EpochCost, clock: Callable[[], float]) -> float:
    """Operations a second of a large matrix product, random numbers, in the number format that
    the models are measured in; the best of a few."""
    device = settings.torch_device
    size = settings.matrix_size or MATRIX_SIZE[device.type]
    torch.manual_seed(settings.seed)
    left, right = torch.randn(2, size, size, dtype=settings.torch_dtype, device=device)
    out = torch.empty_like(left)
    products, looks = _PRODUCTS[device.type], _LOOKS[device.type]

    def multiply() -> None:
        for _ in range(products):
            torch.mm(left, right, out=out)

    seconds_of(multiply, device, clock)  # the first warms up
    seconds = [seconds_of(multiply, device, clock) for _ in range(looks)]
    return products * 2 * size**3 / min(seconds)


def seconds_of(call: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds until the device has done what the call gives it."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    begin = clock()
    call()
    wait()
    return clock() - begin


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

    def costs(name: str) -> np.ndarray:
        return np.array([rows[name].epoch_seconds, rows[name].paper_operations_per_sample])

    alone = (costs("sce") / costs("llama")).tolist()
    paper = f"{TIME_RATIO} of seconds, {FLOPS_RATIO} of operations"
    found = [Ratio("an epoch", *alone, paper)]
    for epochs, theory in FLOPS_BOUND.items() if "jina" in rows else ():
        both = (costs("sce") + costs("jina") / epochs) / costs("llama")
        what = f"{epochs} epoch{'s' * (epochs > 1)} and the embedding"
        found.append(Ratio(what, *both.tolist(), f"{theory} of operations"))
    return found


def benchmark_epoch(settings: EpochCost) -> dict[str, Any]:
    """Measure, print the report, write it where it is wanted, and return every figure."""
    report, summary = measure(settings)
    print(report)
    if settings.output is not None:
        settings.output.write_text(report + "\n", encoding="utf-8")
    return summary


def measure(
    settings: EpochCost, clock: Callable[[], float] = time.perf_counter
) -> tuple[str, dict[str, Any]]:
    """The report on every model of the settings in Markdown, and all its figures."""
    rates = [matrix_rate(settings, clock)]
    rows: dict[str, Row] = {}
    for name in settings.models:
        # The workload goes before the next one is built: both would not fit.
        rows[name] = timed(WORKLOADS[name](settings), settings, clock)
        gc.collect()
        rates.append(matrix_rate(settings, clock))
        # All that is there, should the next one fail.
        log.info("%s: %s, matrix rate %.4g", name, json.dumps(asdict(rows[name])), max(rates))
    # A GPU's clock moves and a CPU has other work to do: the best matrix rate counts.
    rate = max(rates)
    shares = {name: row.operations_per_second / rate for name, row in rows.items()}
    summary = {
        "size": settings.size,
        "machine": machine(settings.torch_device),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")
        },
        "dtype": settings.dtype,
        "matrix_rate": rate,
        "models": {n: asdict(row) | {"matrix_rate_share": shares[n]} for n, row in rows.items()},
        "ratios": [asdict(ratio) for ratio in ratios(rows)],
        "settings": settings.model_dump(mode="json"),
    }
    return markdown(settings, rows, shares, summary), summary


def machine(device: torch.device) -> str:
    """What it ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()})"


def markdown(
    settings: EpochCost, rows: dict[str, Row], shares: dict[str, float], summary: dict[str, Any]
) -> str:
    """The report; `shares` are of the rate of matrix products."""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    parts = [
        f"**An epoch of {settings.samples:,} samples**, {settings.size} size, random weights, on "
        f"{summary['machine']}; {versions}; {settings.dtype}. A matrix product runs at "
        f"{summary['matrix_rate']:.3g} operations a second here."
    ]
    comparable = settings.size == "full"
    if not comparable:
        parts.append("A trial of the script with tiny models: comparable with nothing.")
    elif min(row.steps_timed for row in rows.values()) < ENOUGH_STEPS:
        parts.append(f"A trial: fewer than {ENOUGH_STEPS} steps of a model.")
    memory = "allocated on the GPU" if settings.device == "cuda" else "of the process"
    columns = [
        "", "seconds an epoch", "paper, A6000", f"peak memory ({memory})",
        "operations a sample, paper's count", "exact", "operations a second",
        "share of the matrix rate",
    ]  # fmt: skip
    cells = [
        [
            row.model,
            _seconds(row.epoch_seconds),
            PAPER_SECONDS[name] if comparable else "",
            f"{row.peak_bytes / 2**30:.2f} GiB",
            f"{row.paper_operations_per_sample:.4g}",
            f"{row.exact_operations_per_sample:.4g}",
            f"{row.operations_per_second:.3g}",
            f"{100 * shares[name]:.3g}%",
        ]
        for name, row in rows.items()
    ]
    parts.append(markdown_table(columns, cells))
    found = [
        [r.what, f"{r.seconds:.4f}", f"{r.operations:.4f}", r.paper if comparable else ""]
        for r in ratios(rows)
    ]
    if found:
        columns = ["SCE over LoRA Llama", "seconds, measured", "operations, paper's count"]
        parts.append(markdown_table([*columns, "the paper"], found))
    lines = [_note(row, shares[name]) for name, row in rows.items()]
    if max(shares.values()) > 1:
        lines.insert(0, "- A share above 100%: something else took this machine's time.")
    return "\n\n".join([*parts, "\n".join(lines)])


def _note(row: Row, share: float) -> str:
    recomputed = ""
    if again := row.recomputed_operations_per_sample:
        share *= 1 + again / row.exact_operations_per_sample
        recomputed = (
            f"; with what the checkpoints compute again, {100 * share:.3g}% of the matrix rate"
        )
    return (
        f"- {row.model}: {row.parameters:,} parameters, {row.trainable_parameters:,} trained; "
        f"{row.steps_timed:,} steps in {row.seconds_timed:.4g} s (stretches within "
        f"{100 * row.spread:.0f}%); {'; '.join(row.notes)}{recomputed}."
    )


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
