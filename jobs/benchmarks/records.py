"""A benchmark's figures as a file, and what became of them: this run beside an earlier one.

A figure is *slower* where the spreads of the two runs do not meet, and *too slow* where its median
is besides worse by more than `tolerance`. Between machines that differ nothing is judged.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar

from pydantic import Field, field_validator

from jobs.benchmarks.rounds import (
    Figure,
    Figures,
    each_figure,
    figure_tables,
    markdown_table,
    number,
)
from sce.config import JobConfig
from sce.errors import ConfigError
from sce.workflows.cli import run_job
from sce.workflows.tracking import Tracker, TrackingConfig, tracking_uri

FORMAT = 1
MAX_METRICS = 40
"""Of a run in MLflow: more are no help to who looks at them."""
PACKAGES = ("torch", "transformers", "peft", "ray", "numpy", "pyarrow", "bitsandbytes")
ROOT = Path(__file__).resolve().parents[2]


class Benchmark(JobConfig):
    """What every benchmark can be told."""

    record: Path | None = None
    """Write the figures to this file (JSON), to compare a later run with."""
    against: Path | None = None
    """Such a file of an earlier run: every figure then and now, and exit code 1 if one is worse
    beyond the spreads and by more than `tolerance`."""
    tolerance: float = Field(default=0.1, ge=0, lt=1)
    """How much worse a median may be: 0.1 is a tenth."""
    tracking: TrackingConfig = TrackingConfig(system_metrics=False)
    """Where the figures are recorded, once all is measured."""

    NO_SIZE: ClassVar[frozenset[str]] = frozenset(
        {
            "record",
            "against",
            "tolerance",
            "tracking",
            "umask",
            "rounds",
            "output",
            "picture",
            "cache",
        }
        | {"seconds", "steps", "warmup", "device", "dtype", "quantisation"}
    )
    """Settings that a figure does not depend on, but for its spread, and those that a record says
    in other words: where and in which numbers it was measured."""

    @field_validator("record")
    @classmethod
    def _writable(cls, record: Path | None) -> Path | None:
        if record is not None and (record.is_dir() or not record.absolute().parent.is_dir()):
            raise ValueError("no file in a folder that exists")
        return record

    @property
    def sized_by(self) -> dict[str, Any]:
        """The settings that two runs must share."""
        found = self.model_dump(mode="json")
        if found.get("embedder"):
            found["embedder"] = {
                k: v for k, v in found["embedder"].items() if k not in self.NO_SIZE
            }
        return {name: value for name, value in found.items() if name not in self.NO_SIZE}


@dataclass(frozen=True)
class Measured:
    """What a benchmark gives.

    Attributes:
        figures: what is compared with a later run.
        arithmetic: the number format of each model, by what it is.
        notes: what a reader of the tables has to know, a line each.
        details: more, for the JSON.
        device: that the models were on.
    """

    figures: Figures
    arithmetic: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"


def arithmetic_of(**models: Any) -> dict[str, str]:
    """The number format of modules, or of what holds one as `_model`."""
    found = {}
    for name, model in models.items():
        module = getattr(model, "_model", model)
        dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())
        known = getattr(model, "fingerprint", None)  # an embedder's, which may keep its sums wider
        found[name] = str(dtype).removeprefix("torch.") if known is None else known.dtype
    return found


def machine(device: str = "cpu") -> dict[str, Any]:
    """What computes here, and by what."""
    import torch

    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | _versions(),
        "commit": _commit(),
    }
    return found if device == "cpu" else found | {"gpu": torch.cuda.get_device_name()}


def run_benchmark(
    name: str,
    config_class: type[Benchmark],
    measure: Callable[[Any], Measured] | str,
    doc: str,
    argv: Sequence[str] | None = None,
) -> int:
    """As `run_job`; exit code 1 also where a figure became too slow."""
    too_slow: list[str] = []

    def job(config: Benchmark) -> dict[str, Any]:
        found = report(name, config, resolve_name(measure) if isinstance(measure, str) else measure)
        too_slow.extend(found.get("too_slow", ()))
        return found

    return run_job(config_class, job, doc, argv) or int(bool(too_slow))


def report(name: str, config: Benchmark, measure: Callable[[Any], Measured]) -> dict[str, Any]:
    """Run a benchmark, print its tables and what they were measured on, write the record, and
    compare it with an earlier one where that was asked for.

    Returns:
        All of it for the last line; `too_slow` names figures, where there is an earlier run.

    Raises:
        ConfigError: `against` is no record, or of another benchmark or size.
    """
    earlier = None if config.against is None else _read(config.against, name, config)
    if config.tracking.enabled:
        tracking_uri(config.tracking)
    measured = measure(config)
    found = {
        "format": FORMAT,
        "benchmark": name,
        "size": config.sized_by,
        "machine": machine(measured.device),
        "arithmetic": dict(measured.arithmetic),
        "figures": {key: _plain(figure) for key, figure in each_figure(measured.figures)},
        **measured.details,
    }
    text = "\n\n".join([_headline(found), figure_tables(measured.figures), *measured.notes])
    print(f"\n\n{text}")
    _track(name, config, measured, found, text)
    if config.record is not None:
        config.record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if earlier is None:
        return found
    table, too_slow = compare(earlier, found, config.tolerance)
    print(f"\n{table}")
    return found | {"too_slow": too_slow}


def _track(
    name: str, config: Benchmark, measured: Measured, found: dict[str, Any], text: str
) -> None:
    """Into MLflow: the first figures' medians as metrics, all of them as artifacts."""
    medians = {key: figure.median for key, figure in each_figure(measured.figures)}
    with Tracker.open(config.tracking, "benchmarks", None, name, {"job": "benchmark"}) as tracker:
        tracker.log_params(config.sized_by | {"device": measured.device})
        tracker.log_metrics(dict(islice(medians.items(), MAX_METRICS)))
        tracker.log_text(text, "figures.md")
        tracker.log_dict(found, "record.json")


def compare(
    then: Mapping[str, Any], now: Mapping[str, Any], tolerance: float
) -> tuple[str, list[str]]:
    """Every figure of two records side by side in Markdown, and the names of those that are too
    slow now."""
    lines = _differences(then, now)
    same_machine = not any(line.startswith("Another") for line in lines)
    rows, too_slow = [], []
    for name, plain in now["figures"].items():
        if name not in then["figures"]:
            rows.append([name, "", _cell(plain), "", "new"])
            continue
        before, after = _figure(then["figures"][name]), _figure(plain)
        word, too = _judged(before, after, tolerance)
        if too and same_machine:
            too_slow.append(name)
        ratio = after.median / before.median if before.median else float("nan")
        rows.append([name, _cell(then["figures"][name]), _cell(plain), number(ratio), word])
    gone = [[name, _cell(one), "", "", "gone"]
            for name, one in then["figures"].items() if name not in now["figures"]]  # fmt: skip
    table = markdown_table(["figure", "then", "now", "now / then", ""], rows + gone)
    if not same_machine:
        lines.append("So nothing here says that the software became slower.")
    elif too_slow:
        lines.append(f"{len(too_slow)} became worse by more than {tolerance:.0%}.")
    return "\n\n".join([*lines, table]), too_slow


def _judged(then: Figure, now: Figure, tolerance: float) -> tuple[str, bool]:
    """A word for what became of a figure, and whether it is too slow."""
    if then.better == "more":
        slower, faster = now.high < then.low, now.low > then.high
        too = now.median < then.median * (1 - tolerance)
    else:
        slower, faster = now.low > then.high, now.high < then.low
        too = now.median * (1 - tolerance) > then.median
    if slower:
        return ("SLOWER" if too else "slower, within the tolerance"), too
    return ("faster" if faster else ""), False


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What else differs, a line each; those of the machine begin with "Another"."""
    lines = []
    for name in ("processor", "gpu", "cores", "threads"):
        before, after = then["machine"].get(name), now["machine"].get(name)
        if before != after:
            what = {"cores": "number of cores", "threads": "number of threads"}.get(name, name)
            lines.append(f"Another {what}: {before} then, {after} now.")
    for what, before, after in (
        ("Arithmetic: ", then["arithmetic"], now["arithmetic"]),
        ("Versions: ", then["machine"]["versions"], now["machine"]["versions"]),
        ("", *({"Commit": one["machine"]["commit"]} for one in (then, now))),
    ):
        names = [one for one in {**before, **after} if before.get(one) != after.get(one)]
        changed = [f"{one} {before.get(one)} then, {after.get(one)} now" for one in names]
        if changed:
            lines.append(f"{what}{'; '.join(changed)}.")
    return lines


def _read(file: Path, name: str, config: Benchmark) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}")
        kind, size = found["benchmark"], found["size"]
        _ = found["machine"]["versions"], found["arithmetic"], found["figures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"against: {file}: no record of a benchmark ({error!r}).") from None
    if kind != name:
        raise ConfigError(f"against: {file} is of the benchmark {kind!r}, and this is {name!r}.")
    mine = config.sized_by
    differ = [
        f"{key} {json.dumps(size.get(key))} then, {json.dumps(mine.get(key))} now"
        for key in {**size, **mine}
        if size.get(key) != mine.get(key)
    ]
    if differ:
        raise ConfigError(f"against: {file} is of another size: {'; '.join(differ)}.")
    return found


def _plain(figure: Figure) -> dict[str, Any]:
    return {
        "median": figure.median,
        "low": figure.low,
        "high": figure.high,
        "values": list(figure.values),
        "unit": figure.unit,
        "better": figure.better,
    }


def _figure(plain: Mapping[str, Any]) -> Figure:
    return Figure.of(plain["values"], plain["unit"], plain["better"])


def _cell(plain: Mapping[str, Any]) -> str:
    figure = _figure(plain)
    return str(figure) if figure.unit == "ratio" else f"{figure} {figure.unit}"


def _headline(found: Mapping[str, Any]) -> str:
    """What the figures were measured on and in, in words."""
    on = found["machine"]
    versions = ", ".join(f"{name} {one}" for name, one in on["versions"].items())
    kinds = ", ".join(f"{name} in {dtype}" for name, dtype in found["arithmetic"].items())
    place = f"{on['gpu']}, {on['processor']}" if "gpu" in on else on["processor"]
    parts = [f"{place} ({on['threads']} threads of {on['cores']})", kinds, versions, on["commit"]]
    return "; ".join(filter(None, parts)) + ". Medians, with the least and the most."


def _processor() -> str:
    """As Linux names it, with the instructions that decide about the arithmetic."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(map(str.strip, line.split(":", 1)) for line in reversed(lines) if ":" in line)
    name = facts.get("model name") or platform.machine()
    known = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16")
             if flag in facts.get("flags", "").split()]  # fmt: skip
    return " ".join([name, *known])


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit that is checked out, marked where files differ from it; None without git."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()
