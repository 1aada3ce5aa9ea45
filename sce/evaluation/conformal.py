"""Sets of labels that hold the right one as often as wanted: split conformal prediction.

Of labelled rows that no choice was made on, and that come from where the rows to answer come from,
the set of all labels whose probability is at least the cut holds the right label of a new row with
at least the wanted probability, whatever the model (Vovk, Gammerman and Shafer 2005; sets of this
form are the smallest on average: Sadinle, Lei and Wasserman 2019). It is a rate over all rows, not
one for each label.

Shapes: N labelled rows.
"""

from __future__ import annotations

import math

import numpy as np

from sce.errors import InputError


def coverage_cut(right_N: np.ndarray, coverage: float) -> float:
    """The cut for `AnswerOptions.coverage_cut`.

    Args:
        right_N: the probability that each labelled row's right label was given.
        coverage: share of rows whose set is to hold the right label, between 0 and 1.

    Raises:
        InputError: `coverage` is no such share, or there are too few rows for it.
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage: {coverage}, but a share between 0 and 1 is needed.")
    rows = len(right_N)
    below = math.floor((1 - coverage) * (rows + 1) + 1e-9)  # so many may lie under the cut
    if below < 1:
        least = math.ceil(1 / (1 - coverage) - 1e-9) - 1
        raise InputError(f"coverage {coverage}: {rows} labelled rows, but {least} are needed.")
    return float(np.sort(np.asarray(right_N, np.float32))[below - 1])
