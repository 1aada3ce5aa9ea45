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
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch

from jobs.benchmarks.epoch_models import torch_device, torch_dtype
from jobs.benchmarks.epoch_settings import EpochCost, choose_quantisation
from jobs.benchmarks.epoch_store import measure_store
from jobs.benchmarks.epoch_workloads import WORKLOADS, Workload
from jobs.benchmarks.records import Measured
from jobs.benchmarks.rounds import Figure, Figures, figure_tables
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
    """A model's figures. Operations are floating-point operations.

    Attributes:
        epoch_seconds: by all stretches together.
        by_stretch: the same by each alone.
    """

    model: str
    epoch_seconds: float
    by_stretch: tuple[float, ...]
    peak_bytes: int
    paper_operations_per_sample: float
    exact_operations_per_sample: float
    recomputed_operations_per_sample: float
    operations_per_second: float
    samples_timed: int
    steps_timed: int
    seconds_timed: float
    parameters: int
    trainable_parameters: int
    notes: tuple[str, ...]


def timed(
    workload: Workload, settings: EpochCost, clock: Callable[[], float] = time.perf_counter
) -> Row:
    """Warm up, then time stretches until there are `settings.steps` steps."""
    device = torch_device(settings)
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
        by_stretch=tuple(one / stretch.samples * settings.samples for one in seconds),
        peak_bytes=peak_bytes(device),
        paper_operations_per_sample=workload.operations.paper,
        exact_operations_per_sample=workload.operations.exact,
        recomputed_operations_per_sample=workload.operations.recomputed,
        operations_per_second=workload.operations.exact * samples / sum(seconds),
        samples_timed=samples,
        steps_timed=stretch.steps * len(seconds),
        seconds_timed=sum(seconds),
        parameters=workload.parameters,
        trainable_parameters=workload.trainable,
        notes=workload.notes,
    )


def matrix_rate(settings: EpochCost, clock: Callable[[], float]) -> float:
    """Operations a second of a large matrix product, random numbers, in the number format that
    the models are measured in; the best of a few."""
    device = torch_device(settings)
    size = settings.matrix_size or MATRIX_SIZE[device.type]
    torch.manual_seed(settings.seed)
    left, right = torch.randn(2, size, size, dtype=torch_dtype(settings), device=device)
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
    the paper prints. `spread` is of the seconds: the fastest stretch of one over the slowest of the
    other, and the other way round."""

    what: str
    seconds: float
    operations: float
    paper: str
    spread: tuple[float, float]


def ratios(rows: dict[str, Row]) -> list[Ratio]:
    """Those that the measured models allow: epochs alone, and with the embedding of the texts as
    section 3.3's upper bound has it."""
    if "sce" not in rows or "llama" not in rows:
        return []

    def costs(name: str) -> np.ndarray:
        """Seconds in all, at the least and at the most, and operations."""
        row = rows[name]
        stretches = row.by_stretch or (row.epoch_seconds,)
        least, most = min(stretches), max(stretches)
        return np.array([row.epoch_seconds, least, most, row.paper_operations_per_sample])

    paper = f"{TIME_RATIO} of seconds, {FLOPS_RATIO} of operations"
    cases = [("an epoch", costs("sce"), paper)]
    for epochs, theory in FLOPS_BOUND.items() if "jina" in rows else ():
        both = costs("sce") + costs("jina") / epochs
        what = f"{epochs} epoch{'s' * (epochs > 1)} and the embedding"
        cases.append((what, both, f"{theory} of operations"))
    llama, found = costs("llama"), []
    for what, ours, theirs in cases:
        seconds, operations = float(ours[0] / llama[0]), float(ours[3] / llama[3])
        spread = float(ours[1] / llama[2]), float(ours[2] / llama[1])
        found.append(Ratio(what, seconds, operations, theirs, spread))
    return found


def measure(settings: EpochCost, clock: Callable[[], float] = time.perf_counter) -> Measured:
    """Every model of the settings, one after another: all of them would not fit beside each other,
    so their sides do not take turns; a matrix product is timed before and after each."""
    rates = [matrix_rate(settings, clock)]
    rows: dict[str, Row] = {}
    store: Figures = {}
    notes: list[str] = []
    for name in settings.models:
        # The workload goes before the next one is built: both would not fit.
        if name == "store":
            store, notes = measure_store(settings)
            log.info("store: %s", figure_tables(store))
            continue
        rows[name] = timed(WORKLOADS[name](settings), settings, clock)
        gc.collect()
        rates.append(matrix_rate(settings, clock))
        # All that is there, should the next one fail.
        log.info("%s: %s, matrix rate %.4g", name, json.dumps(asdict(rows[name])), max(rates))
    # A GPU's clock moves and a CPU has other work to do: the best matrix rate counts.
    rate = max(rates)
    shares = {name: row.operations_per_second / rate for name, row in rows.items()}
    return Measured(
        _figures(settings, rows, shares, rates) | store,
        {name: _arithmetic(settings, name) for name in settings.models},
        (*_notes(settings, rows, shares), *notes),
        {
            "dtype": settings.dtype,
            "matrix_rate": rate,
            "models": {
                n: asdict(row) | {"matrix_rate_share": shares[n]} for n, row in rows.items()
            },
            "ratios": [asdict(ratio) for ratio in ratios(rows)],
            "settings": settings.model_dump(mode="json"),
        },
        settings.device,
    )


def benchmark_epoch(settings: EpochCost) -> Measured:
    """Measure, and write the tables where they are wanted."""
    measured = measure(settings)
    if settings.output is not None:
        report = "\n\n".join([figure_tables(measured.figures), *measured.notes])
        settings.output.write_text(report + "\n", encoding="utf-8")
    return measured


def _arithmetic(settings: EpochCost, name: str) -> str:
    is_quantised = name == "llama" and choose_quantisation(settings)[0] == "nf4"
    return f"nf4 and {settings.dtype}" if is_quantised else settings.dtype


def _figures(
    settings: EpochCost, rows: dict[str, Row], shares: dict[str, float], rates: list[float]
) -> Figures:
    """The tables; what the paper prints beside the full size alone."""
    comparable = settings.size == "full"
    memory = "allocated on the GPU" if settings.device == "cuda" else "of the process"
    models, over = f"an epoch of {settings.samples:,} samples", "SCE over LoRA Llama"
    figures: Figures = {models: {}, over: {}}
    for name, row in rows.items():
        figures[models][row.model] = {
            "seconds": Figure.of(row.by_stretch, "s", "less"),
            "paper, A6000": PAPER_SECONDS[name] if comparable else "",
            f"peak memory {memory}, GiB": Figure.of(row.peak_bytes / 2**30, "GiB", "less"),
            "operations a sample, paper's count": f"{row.paper_operations_per_sample:.4g}",
            "exact": f"{row.exact_operations_per_sample:.4g}",
            "operations/s": Figure.of(row.operations_per_second, "FLOP/s"),
            "share of a matrix product": Figure.of(shares[name], "ratio"),
        }
    for ratio in ratios(rows):
        low, high = ratio.spread
        figures[over][ratio.what] = {
            "seconds": Figure.of([low, ratio.seconds, high], "ratio", "less"),
            "operations, paper's count": f"{ratio.operations:.4f}",
            "the paper": ratio.paper if comparable else "",
        }
    figures["matrix product"] = {settings.dtype: {"operations/s": Figure.of(rates, "FLOP/s")}}
    return {title: table for title, table in figures.items() if table}


def _notes(settings: EpochCost, rows: dict[str, Row], shares: dict[str, float]) -> list[str]:
    lines = []
    if settings.size != "full":
        lines.append("A trial of the script with tiny models: comparable with nothing.")
    elif rows and min(row.steps_timed for row in rows.values()) < ENOUGH_STEPS:
        lines.append(f"A trial: fewer than {ENOUGH_STEPS} steps of a model.")
    if any(share > 1 for share in shares.values()):
        lines.append("A share above 1: something else took this machine's time.")
    return lines + [_note(row, shares[name]) for name, row in rows.items()]


def _note(row: Row, share: float) -> str:
    recomputed = ""
    if again := row.recomputed_operations_per_sample:
        share *= 1 + again / row.exact_operations_per_sample
        recomputed = (
            f"; with what the checkpoints compute again, {100 * share:.3g}% of the matrix rate"
        )
    return (
        f"{row.model}: {row.parameters:,} parameters, {row.trainable_parameters:,} trained; "
        f"{row.steps_timed:,} steps in {row.seconds_timed:.4g} s; "
        f"{'; '.join(row.notes)}{recomputed}."
    )
