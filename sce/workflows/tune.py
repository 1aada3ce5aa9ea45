"""Fine-tuning a trained model on the user's own rows: `jobs/tune.py`.

Shapes: N rows, K labels, E epochs.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from sce.adaptation.adapt import adapt
from sce.config import check_writable, resolve_output
from sce.datasets.custom import read_label_set
from sce.datasets.labelled import read_labelled
from sce.datasets.settings import STARTER
from sce.datasets.starter import choose_validation_sets, read_starter
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError
from sce.evaluation.costs import TrainingCost
from sce.evaluation.folds import share_out
from sce.evaluation.metrics import bootstrap_interval
from sce.evaluation.tables import Cell, Table, bounds, percent
from sce.labels import LabelSet
from sce.model.background import BACKGROUND_FILE
from sce.model.calibration import TemperatureFit, fit_temperature
from sce.model.encoder import SCEModel, trainable_parameters
from sce.model.label_tree import LabelTree
from sce.model.label_vectors import TextLookup, token_means_of
from sce.model.weights import save_weights
from sce.predictor import Predictor
from sce.storage import Place, fetch, relative, replace_folder
from sce.training.continued import Continuation, best_epoch, scores_of_best
from sce.training.data import Rows
from sce.training.validation import VALIDATION_VIEWS, Validator
from sce.workflows.experiment import TuneConfig
from sce.workflows.mlflow_model import begin_model, complete_model
from sce.workflows.model_card import CARD_NAME
from sce.workflows.tracking import Tracker

OWN = "own"
MIN_ROWS = 10
OTHER_SETS = 12
"""Label sets of the starter corpus that are answered before and after: those on which quickstart's
model was validated, and which it was not trained on."""
BEFORE, TUNED = "the model as it was", "the model, tuned"
EXAMPLES, ADAPTED = "as it was, your rows as examples", "adapted labels, your rows as examples"

KEYS = {BEFORE: "before", TUNED: "tuned", EXAMPLES: "examples", ADAPTED: "adapted"}

log = logging.getLogger("sce")


@dataclass(frozen=True)
class TunePlan:
    """What the settings come to. `resolve` makes it.

    Attributes:
        own: the user's rows; `label_set` is theirs, as the user wrote it.
        others: label sets that the model is not tuned on, to be answered before and after.
    """

    output: Place
    home: Path
    predictor: Predictor
    embedder: EmbedderConfig
    own: Rows
    texts: list[str]
    label_set: LabelSet
    fold_N: np.ndarray
    continuation: Continuation
    others: Validator
    text_vectors: TextLookup

    @property
    def names(self) -> list[str]:
        """The right label of each own row."""
        return [str(name) for name in self.own.labels]

    def targets(self) -> np.ndarray:
        """Of the own rows, [N], in canonical order of the labels."""
        canonical = self.label_set.canonical()
        return np.array([canonical.index(name) for name in self.names])

    def scores(self, vectors_ND: np.ndarray, label_set: LabelSet) -> np.ndarray:
        """Of the model before, [N, K], in the order of the labels."""
        canonical = label_set.canonical()
        scores_NK = self.continuation.scores(self.continuation.model, vectors_ND, canonical)
        return scores_NK[:, [canonical.index(name) for name in label_set.names]]


@dataclass(frozen=True)
class Tuned:
    """A tuned model, how many epochs it took, the seconds with those of the folds; which of the own
    and of the other rows are right by each method; and its temperature."""

    model: SCEModel
    epochs: int
    seconds: float
    own: dict[str, np.ndarray]
    others: dict[str, np.ndarray]
    fit: TemperatureFit

    @property
    def figures(self) -> dict[str, float]:
        """Accuracies by name for a tracker and the job's summary."""
        own = {f"accuracy/{KEYS[name]}": right_N for name, right_N in self.own.items()}
        others = {f"accuracy/others {KEYS[name]}": right for name, right in self.others.items()}
        return {name: float(right_N.mean()) for name, right_N in (own | others).items()}


def tune(config: TuneConfig) -> dict[str, Any]:
    """Tune a model, measure it on the rows and elsewhere, and write it.

    Raises:
        InputError: wrong settings, no model, rows that cannot be used; nothing was written.
    """
    started = time.perf_counter()
    plan = resolve(config)
    name = plan.output.name
    tags = {"job": "tune", "method": name, "seed": str(config.seed)}
    with Tracker.open(config.tracking, "training", None, f"tune-{name}", tags) as tracker:
        tracker.log_params(config.model_dump(mode="json", exclude={"tracking"}))
        tuned = _tuned(plan, tracker)
        table = _table(tuned, config.seed)
        figures = tuned.figures
        tracker.log_metrics(figures | {"epochs": tuned.epochs, "tuning_seconds": tuned.seconds})
        tracker.log_text(f"{table.to_markdown()}\n\n{table.caption}\n", "tuned.md")
        with replace_folder(plan.output, "config.json") as new:
            _write(plan, tuned, _card(config, plan, tuned, table), new)
        model_id = begin_model(tracker, name, plan.output, {"begun_with": config.model})
        tracker.log_metrics(figures, model_id=model_id)
        complete_model(tracker, model_id, plan.output, plan.embedder)
    Console(stderr=True).print(table)
    print(f"The tuned model is in {relative(plan.output)}. {_what_to_take(tuned)}", flush=True)
    return {
        "model": str(plan.output),
        "rows": len(plan.own),
        "labels": len(plan.label_set),
        "epochs": tuned.epochs,
        **{re.sub("[/ ]", "_", name): round(value, 4) for name, value in figures.items()},
        "temperature": asdict(tuned.fit.temperature),
        "mlflow_run_id": tracker.run_id,
        "mlflow_model": None if model_id is None else f"models:/{model_id}",
        "tuning_seconds": round(tuned.seconds, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def resolve(config: TuneConfig) -> TunePlan:
    """Read and check all that the settings name, and embed it; nothing is written.

    Raises:
        InputError: see `tune`.
    """
    for setting in ("model", "labelled", "output"):
        if getattr(config, setting) is None:
            raise ConfigError(f"{setting}: give one, --{setting}.")
    assert config.model is not None
    assert config.labelled is not None
    assert config.output is not None
    output, home = resolve_output(config.output), Path(fetch(config.model))
    check_writable(output, "output")
    if output.exists() and any(output.iterdir()) and not (output / "config.json").exists():
        raise ConfigError(f"output: {output} holds something else. Give a new folder.")
    label_set = None
    if config.labels_file is not None:
        label_set, _ = read_label_set(config.labels_file)
        if isinstance(label_set, LabelTree):
            raise ConfigError(
                f"labels_file: {config.labels_file} holds a tree. A model is tuned on a list of "
                "labels: give its leaves."
            )
    texts, names, label_set = read_labelled(
        config.labelled, config.text_column, config.label_column, label_set
    )
    if len(texts) < MIN_ROWS or len(label_set) < 2:
        raise ConfigError(
            f"labelled: {config.labelled} has {len(texts)} labelled row(s) of {len(label_set)} "
            f"label(s). Give {MIN_ROWS} rows of two labels, or more."
        )
    predictor = Predictor.from_pretrained(home, config.embedder)
    model, embedder = predictor.model, predictor.embedder
    text_vectors = TextLookup({}, lambda given: embedder.embed(given).vectors)
    others, other_sets = _other_rows(text_vectors)
    own = Rows(
        [f"{OWN}/{place}" for place in range(len(texts))],
        [OWN] * len(texts),
        names,
        [OWN] * len(texts),
        text_vectors(texts),
    )
    tokenizer = predictor.tokenizer
    continuation = Continuation(
        model,
        _without_examples(label_set),
        text_vectors,
        None if tokenizer is None else token_means_of(model, tokenizer),
        config.augment,
        config.train,
        config.kept,
        config.seed,
    )
    validator = Validator(
        others, other_sets, text_vectors, continuation.token_means, model.config.label_vectors
    )
    found = config.embedder or EmbedderConfig.from_fingerprint(embedder.fingerprint.to_dict())
    fold_N = share_out(texts, names, config.seed, config.folds)
    return TunePlan(
        output,
        home,
        predictor,
        found,
        own,
        texts,
        label_set,
        fold_N,
        continuation,
        validator,
        text_vectors,
    )


def _without_examples(label_set: LabelSet) -> LabelSet:
    return LabelSet(tuple(replace(label, examples=()) for label in label_set.labels))


def _other_rows(text_vectors: TextLookup) -> tuple[Rows, dict[str, LabelSet]]:
    """Rows of label sets of the starter corpus, to be answered before and after, and these sets."""
    every = [one for one in read_starter() if not one.unseen]
    names = choose_validation_sets(every, OTHER_SETS)
    chosen = [one for one in every if one.name in names]
    found = Rows(
        [f"{one.name}/{place}" for one in chosen for place in range(len(one.examples))],
        [STARTER for one in chosen for _ in one.examples],
        [label for one in chosen for _, label in one.examples],
        [one.name for one in chosen for _ in one.examples],
        text_vectors([text for one in chosen for text, _ in one.examples]),
    )
    return found, {one.name: one.labels for one in chosen}


def _tuned(plan: TunePlan, tracker: Tracker) -> Tuned:
    begun = time.perf_counter()
    targets_N, continuation = plan.targets(), plan.continuation
    most, folds = continuation.train.epochs, len(np.unique(plan.fold_N))
    log.info("how many of %d epochs are good for %d rows: %d folds", most, len(plan.own), folds)
    scores_ENK = continuation.by_folds(plan.own, plan.fold_N)
    for epoch, scores_NK in enumerate(scores_ENK):
        right = float((scores_NK.argmax(1) == targets_N).mean())
        tracker.log_metrics({"accuracy/folds": right}, step=epoch)
        log.info("after %d epochs: %.1f%% of the rows left out are right", epoch, 100 * right)
    epochs = best_epoch(scores_ENK, targets_N)
    model = continuation.run(plan.own, epochs)
    seconds = time.perf_counter() - begun
    tuned_NK = scores_of_best(scores_ENK, targets_N, plan.fold_N)
    own = {BEFORE: scores_ENK[0].argmax(1) == targets_N, TUNED: tuned_NK.argmax(1) == targets_N}
    new_VNK = plan.others.scores(model)
    others = {
        BEFORE: plan.others.right(plan.others.scores(continuation.model)),
        TUNED: plan.others.right(new_VNK),
    }
    fit = _temperature(plan, new_VNK, tuned_NK)
    return Tuned(model, epochs, seconds, own | _with_examples(plan), others, fit)


def _with_examples(plan: TunePlan) -> dict[str, np.ndarray]:
    """Which rows are right where those of the other folds are examples, and nothing is trained."""
    own, predictor = plan.own, plan.predictor
    names, own_names = np.array(plan.label_set.names, dtype=object), plan.names
    fingerprint = predictor.embedder.fingerprint
    found: dict[str, np.ndarray] = {}
    for fold in np.unique(plan.fold_N).tolist():
        held, seen = np.flatnonzero(plan.fold_N == fold), np.flatnonzero(plan.fold_N != fold)
        answers = {}
        if predictor.model.uses_embedded_labels:
            texts: dict[str, list[str]] = {}
            for place in seen.tolist():
                texts.setdefault(own_names[place], []).append(plan.texts[place])
            labels = [
                replace(one, examples=(*one.examples, *dict.fromkeys(texts.get(one.name, ()))))
                for one in plan.label_set.labels
            ]
            answers[EXAMPLES] = plan.scores(own.vectors_ND[held], LabelSet(tuple(labels)))
        if len({vector_D.tobytes() for vector_D in own.vectors_ND}) >= len(names):
            adapted = adapt(
                own.vectors_ND,
                plan.label_set,
                plan.text_vectors,
                fingerprint.to_dict() | {"id": fingerprint.id},
                version=predictor.model.config.label_vectors,
                labelled=(own.vectors_ND[seen], [own_names[i] for i in seen.tolist()]),
            )
            answers[ADAPTED] = adapted.scores(own.vectors_ND[held])
        right_held = np.array(own_names, dtype=object)[held]
        for method, scores_NK in answers.items():
            right_N = found.setdefault(method, np.zeros(len(own), bool))
            right_N[held] = names[scores_NK.argmax(1)] == right_held
    return found


def _temperature(plan: TunePlan, others_VNK: np.ndarray, own_NK: np.ndarray) -> TemperatureFit:
    """Fitted on rows that the model was not trained on, each under one view."""
    rows, counts_N = plan.others.rows, plan.others.label_counts_N
    views_N = np.arange(len(rows)) % len(VALIDATION_VIEWS)
    of_view_NK = others_VNK[views_N, np.arange(len(rows))]
    scores = [scores_K[:count] for scores_K, count in zip(of_view_NK, counts_N)]
    targets_N = np.concatenate([plan.others.targets_N, plan.targets()])
    return fit_temperature([*scores, *own_NK], targets_N, [*rows.sets, *plan.own.sets])


def _table(tuned: Tuned, seed: int) -> Table:
    rows: list[list[Cell]] = []
    for heading, found in (("your rows", tuned.own), ("other label sets", tuned.others)):
        rows.append([heading])
        for method, right_N in found.items():
            gain = ""
            if method != BEFORE:
                gain_N = right_N.astype(float) - found[BEFORE]
                low, high = bootstrap_interval(gain_N, seed=seed)
                gain = percent(float(gain_N.mean()), "+") + bounds(low, high, "+")
            low, high = bootstrap_interval(right_N, seed=seed)
            rows.append([method, percent(float(right_N.mean())) + bounds(low, high), gain])
    return Table(
        ["", "accuracy", "difference"],
        rows,
        "Tuned",
        "Percent right, [low, high]: 95 % interval. Your rows: each is answered by what saw those "
        "of the other folds alone. Other label sets: of the starter corpus, by names and by all "
        "that is known of them; none of them was tuned on.",
    )


def _what_to_take(tuned: Tuned) -> str:
    """The untrained answer is cheaper: it is taken but where tuning is clearly better."""
    means = {method: float(right_N.mean()) for method, right_N in tuned.own.items()}
    rest = {method: mean for method, mean in means.items() if method not in (BEFORE, TUNED)}
    best = max(rest, key=lambda method: rest[method], default=BEFORE)
    gain_N = tuned.own[TUNED].astype(float) - tuned.own[best]
    low, high = bootstrap_interval(gain_N)
    said = f"On your rows it is {percent(float(gain_N.mean()), '+')}{bounds(low, high, '+')} points"
    said += f" beside {best!r}"
    if low > 0:
        return f"{said}: take the tuned model."
    return f"{said}, which trains nothing: take that."


def _write(plan: TunePlan, tuned: Tuned, card: str, folder: Path) -> None:
    config = tuned.model.config
    config.calibration = tuned.fit.temperature.to_list()
    save_weights(tuned.model.cpu(), folder)
    if plan.predictor.tokenizer is not None:
        plan.predictor.tokenizer.save_pretrained(folder)
    if (plan.home / BACKGROUND_FILE).is_file():
        shutil.copyfile(plan.home / BACKGROUND_FILE, folder / BACKGROUND_FILE)
    parameters = trainable_parameters(tuned.model)
    device = plan.predictor.model.device.type
    cost = TrainingCost(
        len(plan.own), tuned.epochs, tuned.seconds, 0.0, 0.0, parameters, f"1 on {device}"
    )
    cost.save(folder)
    (folder / CARD_NAME).write_text(card, encoding="utf-8")


def _card(config: TuneConfig, plan: TunePlan, tuned: Tuned, table: Table) -> str:
    """That of the model before, behind what was done to it."""
    said = "\n\n".join(
        [
            f"Fine-tuned on {len(plan.own)} rows of {len(plan.label_set)} labels "
            f"({config.labelled}), {tuned.epochs} epochs, from {config.model}.",
            table.to_markdown(literal=True),
            table.caption,
            f"Calibrated again: {tuned.fit.reason}",
        ]
    )
    before = plan.home / CARD_NAME
    if not before.is_file():
        return f"# {plan.output.name}\n\n{said}\n"
    old = before.read_text(encoding="utf-8")
    head, title, rest = old.partition("\n# ")
    if not title:
        return f"# {plan.output.name}\n\n{said}\n\n{old}"
    return f"{head}\n# {plan.output.name}\n\n{said}\n\n# Before it was tuned: {rest}"
