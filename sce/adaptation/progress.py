"""A fit that is under way, as arrays: what a job that was killed goes on from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sce.adaptation.fit import Fitter
from sce.adaptation.mixture import Moments, Scores, Sums
from sce.adaptation.passes import FIRST, SECOND, SUBSETS, Hashes, Totals


def to_arrays(fitter: Fitter) -> dict[str, np.ndarray]:
    """Everything that the passes so far have found; nothing before the first."""
    if fitter.totals is None:
        return {}
    found: dict[str, np.ndarray] = {
        "rounds": np.array(fitter.rounds_done),
        "trusts": np.array(fitter.trusts, dtype=str),
    }
    for half in (FIRST, SECOND):
        moments = fitter.totals["moments", half]
        found |= {f"moments.{half}.{name}": np.asarray(v) for name, v in vars(moments).items()}
    for kind in ("sharp", "start"):
        for subset in SUBSETS:
            sums = fitter.totals[kind, subset]
            found |= {f"{kind}.{subset}.{name}": value for name, value in vars(sums).items()}
    for (trust, subset), scores in fitter.scores.items():
        found |= {f"scores.{trust}.{subset}.{n}": value for n, value in vars(scores).items()}
    return found


def restore(fitter: Fitter, arrays: Mapping[str, np.ndarray]) -> None:
    """Put a fresh fitter of the same request where another one was."""
    if not arrays:
        return

    def part(head: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(head): arrays[n] for n in arrays if n.startswith(head)}

    sums: dict[object, object] = {"hashes": Hashes(())}  # they were counted by the first pass
    for half in (FIRST, SECOND):
        values = part(f"moments.{half}.")
        sums["moments", half] = Moments(int(values["rows"]), values["sum_D"], values["product_DD"])
    for kind in ("sharp", "start"):
        for subset in SUBSETS:
            sums[kind, subset] = Sums(**part(f"{kind}.{subset}."))
    fitter.totals = Totals(sums)
    fitter.trusts = tuple(arrays["trusts"].tolist())
    fitter.rounds_done = int(arrays["rounds"])
    for trust in fitter.trusts:
        for subset in SUBSETS:
            fitter.scores[trust, subset] = Scores(**part(f"scores.{trust}.{subset}."))
