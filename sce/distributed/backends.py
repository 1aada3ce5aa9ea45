"""What answers the rows of a bulk job: a model that its actors load, or one behind an endpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from sce.adaptation.artefact import AdaptedLabels
from sce.bulk.answering import BlockPredictor, Endpoint, ServedModel
from sce.bulk.blocks import (
    CHUNKED_ROWS,
    EMBED_ROWS_PER_FILE,
    MIN_BATCH_ROWS,
    ROWS_PER_FILE,
    TEXT_BLOCK_BYTES,
    Stage,
)
from sce.bulk.classifier import BlockClassifier, own_columns
from sce.bulk.corpus import Columns
from sce.bulk.endpoint import EndpointPredictor
from sce.bulk.exemplars import Exemplars
from sce.bulk.local import LinearPredictor, LocalPredictor
from sce.bulk.output import OutputFormat
from sce.bulk.reading import BLOCK_ROWS, kept_name
from sce.bulk.request import identify_model
from sce.distributed.embed import embedder_of
from sce.distributed.resources import ActorPlan, embed_actors
from sce.distributed.settings import ResourcesConfig
from sce.distributed.stage import ACTOR_CPUS, Workers
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.settings import EmbedderConfig
from sce.labels import LabelSet
from sce.model.background import BACKGROUND_FILE
from sce.model.label_tree import answer_names, tree_of
from sce.model.logistic import OF_CORPUS, OF_NO_CORPUS, OF_OWN_CORPUS, OF_TRAINING
from sce.model.options import SEVERAL_COLUMN, AnswerOptions
from sce.model.settings import EXACT, SHORTLIST_ABOVE, SHORTLIST_SIZE

SCORES_PER_BATCH = 1_000_000
VECTOR_BLOCK_BYTES = 16 * 2**20
ENDPOINT_CPUS = 0.25
"""That Ray sets aside for an actor that asks an endpoint."""
FIRST_CONTACT_SECONDS = 20
"""How long an endpoint is waited for before anything was answered: the URL may be wrong."""


@dataclass(frozen=True)
class LocalModel:
    """A model that every actor loads. Build it with `LocalModel.find`.

    Attributes:
        model: as the user named it.
        path: where the actors, which run in another folder, find it.
        model_id: says which weights they are.
        embedder, embedder_config: the embedder that its vectors are of, and where to find it.
        exact: every label is contextualised also of a large set.
    """

    model: str
    path: str
    model_id: str
    embedder: EmbedderFingerprint
    embedder_config: EmbedderConfig
    dtype: str
    exact: bool
    several: bool = False

    @classmethod
    def find(
        cls, model: str, embedder: EmbedderConfig | None, dtype: str, exact: bool
    ) -> LocalModel:
        """A model of this machine, of a store or of a hub.

        Args:
            embedder: where the model's is; None for where the model says.

        Raises:
            InputError: there is no such model, or the embedder is another than the model's.
        """
        model_config, model_id = identify_model(model)
        trained_with = EmbedderFingerprint.from_dict(model_config.embedder or {})
        path = str(Path(model).resolve()) if Path(model).is_dir() else model
        embedder = embedder_of(embedder, trained_with)
        several = bool(model_config.several)
        return cls(model, path, model_id, trained_with, embedder, dtype, exact, several)

    @property
    def identity(self) -> dict[str, Any]:
        """All of the model and of how it is used that decides an answer."""
        return {
            "model": self.model_id,
            "embedder": self.embedder.id,
            "dtype": self.dtype,
            "exact": self.exact,
        }

    @property
    def named(self) -> dict[str, Any]:
        """How the summary names it."""
        return {"model": self.model}

    @property
    def shortlist(self) -> tuple[int | None, int | None]:
        """Sets of more labels than the first are scored by the second many; None: none are."""
        return (None, None) if self.exact else (SHORTLIST_ABOVE, SHORTLIST_SIZE)

    def actor_plan(self, resources: ResourcesConfig) -> ActorPlan:
        return embed_actors(resources, default_cpus=ACTOR_CPUS)

    def load(self, device: str) -> Any:
        """The `Predictor`, whose imports take seconds: who sends a job on its way has no need of
        it."""
        from sce.predictor import Predictor

        return Predictor.from_pretrained(
            self.path,
            self.embedder_config.model_copy(update={"device": device}),
            device,
            self.dtype,
            shortlist_above=EXACT if self.exact else None,
        )

    @property
    def rests_on(self) -> str:
        """What probabilities of mode "multi" rest on, in words."""
        if self.several:
            return OF_TRAINING
        measured = not Path(self.path).is_dir() or (Path(self.path) / BACKGROUND_FILE).is_file()
        return (OF_CORPUS if measured else OF_NO_CORPUS).rests_on

    def block_predictor(self, device: str) -> BlockPredictor:
        return _loaded(self, device)


@lru_cache(maxsize=1)
def _loaded(model: LocalModel, device: str) -> LocalPredictor:
    """One process may be asked for a threshold first, then for the answers."""
    return LocalPredictor(model.load(device))


@dataclass(frozen=True)
class AdaptedAlone:
    """Adapted labels, which need no model: a product with each vector. Build it with
    `AdaptedAlone.find`."""

    adapted_id: str
    embedder: EmbedderFingerprint
    embedder_config: EmbedderConfig

    @classmethod
    def find(
        cls, labels: AdaptedLabels, embedder: EmbedderConfig | None, reads_texts: bool
    ) -> AdaptedAlone:
        """With the embedder that the labels' corpus was embedded by, which has to be there only
        where texts are read.

        Raises:
            InputError: `embedder` is another one, or it cannot be loaded.
        """
        made_by = EmbedderFingerprint.from_dict(dict(labels.embedder))
        if reads_texts or embedder is not None:
            return cls(labels.id, made_by, embedder_of(embedder, made_by))
        return cls(labels.id, made_by, EmbedderConfig.from_fingerprint(made_by.to_dict()))

    @property
    def identity(self) -> dict[str, Any]:
        return {"adapted_labels": self.adapted_id, "embedder": self.embedder.id}

    @property
    def named(self) -> dict[str, Any]:
        return {"model": None, "adapted_labels": self.adapted_id}

    @property
    def rests_on(self) -> str:
        return OF_OWN_CORPUS

    @property
    def shortlist(self) -> tuple[int | None, int | None]:
        return None, None

    def actor_plan(self, resources: ResourcesConfig) -> ActorPlan:
        return embed_actors(resources, default_cpus=ACTOR_CPUS)

    def block_predictor(self, device: str) -> BlockPredictor:
        config = self.embedder_config.model_copy(update={"device": device})
        return LinearPredictor(config, self.embedder.dimension)


@dataclass(frozen=True)
class ServedByEndpoint:
    """A model that the actors ask at an endpoint, which refuses to answer by another than the one
    `served`. Build it with `ServedByEndpoint.find`."""

    endpoint: Endpoint
    served: ServedModel

    @classmethod
    def find(cls, endpoint: Endpoint) -> ServedByEndpoint:
        """Ask the endpoint which model it has.

        Raises:
            InputError, EndpointError: see `EndpointPredictor`.
        """
        patience = min(FIRST_CONTACT_SECONDS, endpoint.patience_seconds)
        asked = replace(endpoint, patience_seconds=patience)
        served = EndpointPredictor(asked).served
        return cls(replace(endpoint, model=served.name, served=served), served)

    @property
    def embedder(self) -> EmbedderFingerprint:
        return self.served.embedder

    @property
    def identity(self) -> dict[str, Any]:
        return self.served.identity()

    @property
    def named(self) -> dict[str, Any]:
        return {"model": self.served.name, "endpoint": self.endpoint.url}

    @property
    def rests_on(self) -> str:
        return "what the endpoint's model has; its folder or its own jobs say it"

    @property
    def shortlist(self) -> tuple[int | None, int | None]:
        above = self.served.shortlist_above
        return None if above == EXACT else above, self.served.shortlist_size

    def actor_plan(self, resources: ResourcesConfig) -> ActorPlan:
        asked = {"use_gpu": False, "embed_actors": resources.embed_actors or 1}
        plan = embed_actors(resources.model_copy(update=asked), default_cpus=ENDPOINT_CPUS)
        return replace(plan, threads=1)

    def block_predictor(self, device: str) -> BlockPredictor:
        """The device is the server's affair."""
        return EndpointPredictor(self.endpoint)


@dataclass(frozen=True)
class Classification:
    """What is asked of every block; pickled into each actor."""

    backend: LocalModel | AdaptedAlone | ServedByEndpoint
    labels: LabelSet | AdaptedLabels | None
    """The label set; with a column of labels, what is known of some, or None."""
    columns: Columns
    options: AnswerOptions
    exemplars: Exemplars | None = None

    def classifier(self, device: str) -> BlockClassifier:
        """Runs where the blocks are answered: loads the model, or connects to the endpoint."""
        predictor = self.backend.block_predictor(device)
        return BlockClassifier(predictor, self.labels, self.columns, self.options, self.exemplars)

    def stage(
        self, workers: Workers, output_format: OutputFormat, rows_per_file: int | None = None
    ) -> Stage:
        """What the engine does to every block, and how large blocks, batches and files are;
        `rows_per_file` is None for what suits the device."""
        from_text = self.columns.text is not None
        batch_rows = CHUNKED_ROWS if self.options.long_text == "chunk" else BLOCK_ROWS
        if self.options.scoring.every_score and self.labels is not None:
            # Every label's score is held for a batch: with many labels fewer rows at once.
            few = max(SCORES_PER_BATCH // len(self.labels), MIN_BATCH_ROWS)
            batch_rows = min(few, batch_rows)
        by_device = EMBED_ROWS_PER_FILE[workers.device] if from_text else ROWS_PER_FILE
        json_text = self.columns.keep if self.columns.raw_json else ()
        return Stage(
            make=partial(self.classifier, workers.device),
            columns=self.columns,
            output_format=output_format,
            rows_per_file=rows_per_file or by_device,
            block_bytes=TEXT_BLOCK_BYTES if from_text else VECTOR_BLOCK_BYTES,
            batch_rows=batch_rows,
            counted=SEVERAL_COLUMN if self.options.mode == "multi" else "label",
            json_columns=tuple(
                kept_name(name, (self.columns.id_name, *own_columns(self.options, self.labels)))
                for name in json_text
            ),
            labels=None if self.label_names is None else tuple(self.label_names),
        )

    @property
    def about_mode(self) -> dict[str, Any]:
        """What a summary says of a mode that is not the usual one."""
        if self.options.mode == "single":
            return {}
        return {"mode": self.options.mode, "probabilities": self.backend.rests_on}

    @property
    def label_names(self) -> list[str] | None:
        """The names of the one set for all rows; None where each row brings its own."""
        return self.labels.names if self.labels and self.columns.labels is None else None

    @property
    def answered(self) -> dict[str, Any]:
        """What the rows' labels may be, for the summary; of a tree also what joins its paths."""
        if self.label_names is None:
            return {"label_names": None}
        tree = tree_of(self.labels)
        found = {"label_names": answer_names(self.labels)}
        return found if tree is None else found | {"separator": tree.separator}

    @property
    def scoring(self) -> str:
        """How the labels are scored, in words."""
        if self.options.mode == "multi":
            return "each label for itself"
        if isinstance(self.labels, AdaptedLabels):
            return "adapted labels"
        above, size = self.backend.shortlist
        if above is None:
            return "exact"
        if self.labels is None:
            return f"exact up to {above} labels in a row, else shortlist of {size}"
        count = len(self.labels)
        return f"shortlist of {size} of {count}" if count > above else "exact"
