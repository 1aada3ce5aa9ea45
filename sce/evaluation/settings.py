"""What is measured of a method, and how: its settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sce.config import Section
from sce.model.options import Mode
from sce.storage import Place

ThresholdBy = Literal["f1", "precision", "rate"]

Information = Literal["name", "all"]


class EvaluateConfig(Section):
    """What is measured, and how."""

    sets: list[str] = []
    """Label sets or datasets to measure; none means every set with test rows."""
    information: list[Information] = ["name", "all"]
    """What each method is given of the labels: bare names, all that is known of them. A set
    whose labels have nothing but names is measured once."""
    flip_shuffles: int = Field(5, ge=0)
    """Shuffles of the label order for the flip rate."""
    flip_rows: int = Field(200, ge=1)
    """Rows of a set on which the flip rate is measured."""
    rows_per_set: int | None = Field(None, ge=1)
    """Rows of a set at most, the same for every method; for those that are slow. None means all."""
    calibration_rows: int = Field(1000, ge=0)
    """Validation rows at most on which the temperature of a method without training is fitted."""
    bootstrap_samples: int = Field(1000, ge=100)
    pictures: bool = True
    """Draw a confusion matrix for each set."""
    report_texts: bool = True
    """Show in report.html some texts that were taken for something else. The page is kept in MLflow
    too: switch it off where texts must not go there."""
    labelled: Place | None = None
    """The user's own labelled rows (JSONL, CSV or Parquet with the columns `text` and
    `label`): "how good is it on my data". Measured alone, or beside the `sets` that are named."""
    labelled_labels: Place | None = None
    """A YAML or JSON file with the label set of `labelled`; by default the labels found there."""
    mode: Mode = "single"
    """`multi`: several labels a text. `labelled` holds a list of labels a row; without it the test
    rows of unseen sets are joined in pairs."""
    threshold_by: ThresholdBy = "f1"
    """In mode `multi`, what thresholds are found by, one a label: its best F1, a precision, or the
    share of rows that is to get it."""
    threshold_target: float | None = Field(None, gt=0, le=1)
    """The precision, or the share of rows."""
    none_of_these: bool = False
    """How well rows are told that no label fits: half of each set's labels are taken away, beside
    the maximal softmax and the margin of cosines; in mode `multi` beside the largest probability
    and the largest cosine."""
    none_label: str | None = None
    """With `none_of_these`: the label of those rows of `labelled` that none of the others fits;
    nothing is taken away then."""
    text_column: str = "text"
    label_column: str = "label"
    """In mode `multi` by default `labels`."""
    adapted: bool = True
    """Also measure labels that were fitted to the set's texts, without their answers: of your own
    rows, and of every set with at least ten texts a label. With fewer, adapting is pointless."""
    adapted_examples: list[Annotated[int, Field(ge=1)]] = [1, 8]
    """Also with so many labelled rows a label as examples. Each half of the set's rows is answered
    by a fit with examples from the other half."""
    long_texts: bool = False
    """Also measure `labelled` by the beginnings of its texts (128 tokens, what the embedder reads,
    what it has positions for) beside the whole texts in chunks, by each way of pooling them."""
    corpus: Place | None = None
    """An embedding store, such as jobs/embed.py writes: the texts that the labels are fitted to.
    By default all texts of the set itself."""
    model: Place | None = None
    """The trained model to measure: a folder or URI. By default that of `run_dir`."""
    note: str = ""
    """What every report is to say of the method, such as "random weights"."""
    caption: str = ""
    """What the table is to say of the rows, such as "a hard corpus"."""

    @model_validator(mode="before")
    @classmethod
    def _column_of_the_mode(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("mode") == "multi":
            return {"label_column": "labels"} | given
        return given

    @model_validator(mode="after")
    def _corpus_is_used(self) -> EvaluateConfig:
        if self.corpus is not None and not self.adapted:
            raise ValueError("corpus is what labels are adapted to, but adapted is false")
        return self
