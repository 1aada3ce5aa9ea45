"""Training on Ray Train: how one is run, what each worker does, its checkpoints and its log.

A checkpoint is written after every epoch and holds the model, the optimiser, the random state
of every worker and the place in training, so that going on from it, after the death of a
worker or of the whole job, ends at the model that an undisturbed run ends at.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import torch
from ray._private.worker import get_dashboard_url
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from transformers import logging as transformers_logging

from sce.distributed.process_group import NodeAddresses
from sce.distributed.resources import WorkerPlan, use_threads
from sce.errors import ConfigError, InputError
from sce.evaluation import flops
from sce.evaluation.costs import TrainingCost
from sce.model.encoder import trainable_parameters
from sce.storage import Place
from sce.training.epoch import (
    Objective,
    Reduce,
    make_optimizer,
    random_state,
    rate_factor,
    restore_random_state,
    steps_per_epoch,
    train_epoch,
)
from sce.training.saved_state import read_state, write_state
from sce.training.settings import TrainConfig

STATE_FILE = "training_state.pt"
PROGRESS_SECONDS = 10.0
RESIZE_SECONDS = 30.0
"""How often a training that may have more workers looks whether nodes have come."""
FRESH_STATE = {"epoch": 0, "best": -1.0, "epochs_without_gain": 0, "flops": 0.0, "seconds": 0.0}
"""State of a training that has not begun: epochs done, the best score, and what they took so far
(operations as the paper counts them, seconds without validation)."""

log = logging.getLogger(__name__)

Figures = dict[str, float]


class MetricsLog(Protocol):
    """Where figures are recorded, such as a run in MLflow. It is pickled into Ray's controller."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record the figures of a step (here an epoch)."""


@dataclass(frozen=True)
class Worker:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the workers, on the CPU."""
        moved = tensor.to(self.device)
        self.sum_in_place([moved])
        return moved.cpu()

    def sum_in_place(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum each of the tensors over the workers, where it is."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, by rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            torch.distributed.all_gather_object(values, value)
        return values


class Training(Objective, Protocol):
    """What a worker trains, as the loop over the epochs sees it.

    Attributes:
        reduce: sums gradients over the workers; None where the model averages them (DDP).
    """

    reduce: Reduce | None

    def sample_flops(self, tokens: float) -> float:
        """Operations of training on a sample of so many tokens (`sce.evaluation.flops`)."""

    def validate(self) -> Figures:
        """Figures on all validation rows, the same on every worker; `validation/accuracy` decides
        which epoch is the best."""

    def save(self, folder: str) -> None:
        """Write the weights."""

    def load(self, folder: str) -> None:
        """Read weights that `save` wrote."""


@dataclass(frozen=True)
class Run:
    """Where a training runs and where it is recorded.

    Attributes:
        storage: folder or URI of the checkpoints, which every node must reach. With the same `name`
            a run that was cut short goes on from its last checkpoint.
    """

    workers: WorkerPlan
    storage: Place
    name: str
    metrics_log: MetricsLog


@dataclass(frozen=True)
class Fitted:
    """What came of a training: the checkpoint of the epoch with the best score, the earliest of
    equal ones, and the figures of that epoch and of the last."""

    checkpoint: ray.train.Checkpoint
    best: Figures
    last: Figures
    workers: WorkerPlan

    def cost(
        self, rows: int, trainable_parameters: int, embedding_flops: float = 0.0
    ) -> TrainingCost:
        """What it took, for `rows` training rows whose embedding took `embedding_flops`."""
        return TrainingCost(
            rows=rows,
            epochs=int(self.last["epoch"]),
            seconds=self.last.get("train/seconds", 0.0),
            flops=self.last.get("train/flops", 0.0),
            embedding_flops=embedding_flops,
            trainable_parameters=trainable_parameters,
            workers=str(self.workers),
        )


def run_training(
    build: Callable[[Any, Worker], Training], parts: Any, train: TrainConfig, run: Run
) -> Fitted:
    """Train on Ray Train.

    Args:
        build: called in each worker with `parts`, of which a machine holds one copy, and its place.

    Raises:
        ConfigError: the last checkpoint cannot be read as the plain data that one is.
        ray.train.TrainingFailedError: more workers died than `train.max_failures` allows.
    """
    trainer = _Trainer(
        _train_worker,  # type: ignore[arg-type]  # it may return something
        train_loop_config={
            "build": build,
            "parts": [ray.put(parts)],
            "train": train,
            "threads": run.workers.threads,
        },
        torch_config=NodeAddresses(),
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # typed as the V1 class
            num_workers=_count(run.workers),  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=run.workers.use_gpu,
            resources_per_worker=run.workers.resources,
            accelerator_type=run.workers.accelerator_type,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # typed as the V1 class
            name=run.name,
            storage_path=str(run.storage),
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="score"),
            callbacks=[EpochLog(run.metrics_log, train.epochs)],  # type: ignore[list-item]
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    result = trainer.fit()
    refused = result.return_value  # type: ignore[attr-defined]  # typed as the V1 class
    if refused is not None:
        raise ConfigError(f"{run.storage}: {refused}")
    assert result.best_checkpoints, "every run reports a checkpoint"
    checkpoint, best = max(result.best_checkpoints, key=lambda c: (c[1]["score"], -c[1]["epoch"]))
    return Fitted(checkpoint, best, dict(result.metrics or {}), run.workers)


def _count(workers: WorkerPlan) -> int | tuple[int, int]:
    return workers.count if workers.least == workers.count else (workers.least, workers.count)


class _Trainer(TorchTrainer):
    """Leaves Ctrl+C to the job: Ray's handler would stay when the training is over, and end the
    process as if all were done. And does without the actor that gives resources back when the
    controller has died where there is no dashboard, which it asks: it would warn of that every
    second, and such a Ray ends with the job anyway. (mypy sees the V1 class.)"""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass

    def _create_default_callbacks(self) -> list[Any]:
        found: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        if not get_dashboard_url():
            found = [one for one in found if not isinstance(one, PlacementGroupCleanerCallback)]
        return found


def _train_worker(config: dict[str, Any]) -> str | None:
    """What each worker runs; returns why it cannot go on from the last checkpoint. As an exception
    that would be the death of a worker, after which the same is tried again."""
    _quiet()
    use_threads(config["threads"])
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), get_device())
    training = config["build"](ray.get(config["parts"][0]), worker)
    epochs = _Epochs(training, config["train"], worker)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        try:
            epochs.restore(checkpoint)
        except InputError as error:
            return str(error)
    epochs.run()
    return None


class _Epochs:
    """The loop over the epochs. Every decision is taken on figures that all workers share."""

    def __init__(self, training: Training, train: TrainConfig, worker: Worker) -> None:
        self._training, self._train, self._worker = training, train, worker
        self._optimizer = make_optimizer(training.model, train)
        self._state: dict[str, Any] = FRESH_STATE.copy()

    def run(self) -> None:
        """Train from where the state is, the beginning or the checkpoint that was restored."""
        state, train = self._state, self._train
        if state["epoch"] == 0 and state["best"] < 0:
            self._close({"trainable_parameters": trainable_parameters(self._training.model)})
        while state["epoch"] < train.epochs and state["epochs_without_gain"] < train.patience:
            self._close(self._train_epoch())

    def _train_epoch(self) -> Figures:
        """Train an epoch, bring the state up to date, and return the figures of all workers."""
        training, train, state, worker = self._training, self._train, self._state, self._worker
        started = time.perf_counter()
        stats = train_epoch(
            training,
            self._optimizer,
            train,
            state["epoch"],
            worker.rank,
            worker.world_size,
            training.reduce,
            _progress(state["epoch"] + 1, train.epochs) if worker.rank == 0 else None,
        )
        sums = [stats.loss_sum, stats.rows, stats.tokens, stats.squared_tokens]
        totals = worker.sum(torch.tensor(sums, dtype=torch.float64))
        loss, rows, tokens, squares = totals.tolist()
        seconds = time.perf_counter() - started
        state["epoch"] += 1
        state["flops"] += flops.total(training.sample_flops, tokens, squares, int(rows))
        state["seconds"] += seconds
        steps = steps_per_epoch(len(training.keys_N), train)
        factor = rate_factor(state["epoch"] * steps - 1, steps * train.epochs, train)
        return {
            "train/loss": loss / rows,
            "train/learning_rate": train.learning_rate * factor,
            "train/overhead_share": stats.overhead_seconds / stats.seconds,
            "train/flops": state["flops"],
            "train/seconds": state["seconds"],
            "epoch_seconds": seconds,
            "samples_per_second": len(training.keys_N) / seconds,
        }

    def _close(self, figures: Figures) -> None:
        """Validate, remember the best, write a checkpoint and report."""
        state = self._state
        found = self._training.validate()
        score = found["validation/accuracy"]
        better = score > state["best"]
        state["best"] = max(score, state["best"])
        state["epochs_without_gain"] = 0 if better else state["epochs_without_gain"] + 1
        state["optimizer"] = self._optimizer.state_dict()
        state["random"] = self._worker.gather(random_state())
        report = {"epoch": state["epoch"], "score": score, **found, **figures}
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if self._worker.rank == 0:
                self._training.save(folder)
                write_state(state, Path(folder) / STATE_FILE)
                saved = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(report, checkpoint=saved)

    def restore(self, checkpoint: ray.train.Checkpoint) -> None:
        """Put a checkpoint into state, model and optimiser. Raises `InputError` where it holds more
        than data."""
        state, rank = self._state, self._worker.rank
        with checkpoint.as_directory() as folder:
            state |= read_state(Path(folder) / STATE_FILE, (*FRESH_STATE, "optimizer", "random"))
            self._training.load(folder)
        self._optimizer.load_state_dict(state["optimizer"])
        # With another number of workers each begins its own stream: see `TrainConfig.dropout`.
        if len(state["random"]) == self._worker.world_size:
            restore_random_state(state["random"][rank])
        if rank == 0:
            print(f"going on after epoch {state['epoch']}", flush=True)


def _quiet() -> None:
    """In a worker: none of the lines that Ray and transformers write about themselves."""
    transformers_logging.disable_progress_bar()
    # Ray Train names the logger of its line for each checkpoint by the path of a file, not by a
    # module, so that LoggingConfig does not reach it.
    for name in logging.root.manager.loggerDict:
        if name.startswith(str(Path(ray.train.__file__).parent)):
            logging.getLogger(name).setLevel(logging.WARNING)


class EpochLog(ray.train.UserCallback):
    """Says how each epoch went, in the log and to the tracker. Runs in Ray's controller."""

    def __init__(self, metrics_log: MetricsLog, epochs: int) -> None:
        self._metrics_log = metrics_log
        self._epochs = epochs

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        figures = metrics[0]
        epoch = int(figures["epoch"])
        line = f"epoch {epoch}/{self._epochs}"
        if epoch:
            line += (
                f"  loss {figures['train/loss']:.4f}  {figures['samples_per_second']:.0f} rows/s"
                f"  {figures['epoch_seconds']:.1f} s"
            )
        datasets = ", ".join(
            f"{name.split('/')[1]} {100 * value:.1f}"
            for name, value in figures.items()
            if name.startswith("validation/")
            and name.endswith(("/accuracy", "/lrap"))
            and name.count("/") == 2
        )
        line += f"  validation {100 * figures['validation/accuracy']:.1f} ({datasets})"
        print(line, flush=True)
        try:
            self._metrics_log.log_metrics(
                {
                    _figure_first(name): value
                    for name, value in figures.items()
                    if name not in ("epoch", "score")
                },
                step=epoch,
            )
        except Exception as error:
            # An exception here would end the run, which is worth more than its log.
            log.warning("the figures of epoch %d were not recorded: %s", epoch, error)


def _figure_first(name: str) -> str:
    """The name of a figure as a tracker has it, "validation/bbc/accuracy" as
    "accuracy/validation bbc": charts of one figure stand together, and long titles are cut."""
    *where, figure = name.split("/")
    return "/".join(filter(None, [figure, " ".join(where)]))


def _progress(epoch: int, epochs: int) -> Callable[[int, int], None]:
    """Prints a line every few seconds for a person who watches."""
    started = last = time.monotonic()

    def say(step: int, steps: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS:
            last = now
            left = (now - started) / step * (steps - step)
            print(f"epoch {epoch}/{epochs}  step {step}/{steps}  {left:.0f} s left", flush=True)

    return say
