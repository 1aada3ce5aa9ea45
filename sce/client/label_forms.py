"""What labels look like in a request, and some whole requests as examples."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, StrictStr, with_config
from typing_extensions import TypedDict

Text = StrictStr
Texts = Annotated[list[Text], Field(fail_fast=True)]
CLOSED = ConfigDict(extra="forbid")


def default(value: Any, description: str | None = None) -> Any:
    """A field of a typed dictionary that the document describes as a model's with a default."""
    return Field(description=description, json_schema_extra={"default": value})


@with_config(CLOSED)
class LabelObject(TypedDict):
    """A label and what is known of it; all of it goes into its vector."""

    name: StrictStr
    description: NotRequired[Annotated[StrictStr | None, default(None)]]
    synonyms: NotRequired[Annotated[Texts | None, default(None)]]
    examples: NotRequired[Annotated[Texts | None, default(None, "Texts that carry this label.")]]
    children: NotRequired[
        Annotated[list[Any] | dict[str, Any] | None, default(None, "Makes it a tree.")]
    ]
    parent: NotRequired[
        Annotated[StrictStr | None, default(None, "Makes it a tree: the label above, by name.")]
    ]


LabelListForm = Annotated[list[StrictStr | LabelObject], Field(fail_fast=True)]
TreeForm = dict[str, Any]
"""Or a list of objects with `children` or `parent`. `LabelTree.parse` says what is wrong in it."""
LabelSetForm = LabelListForm | dict[str, StrictStr | None] | TreeForm
LabelSetsForm = LabelSetForm | Annotated[list[LabelListForm], Field(fail_fast=True)]
"""Lists end at their first bad item (fail_fast): the errors of a million would fill the memory."""

CLASSIFY_EXAMPLES: list[Any] = [
    {
        "texts": ["The parcel never came.", "I was charged twice."],
        "labels": ["late delivery", "billing", "praise"],
        "threshold": 0.4,
        "return_scores": True,
    },
    {
        "texts": "Where is my box?",
        "labels": [
            {
                "name": "late delivery",
                "description": "the order came late or not at all",
                "synonyms": ["parcel not arrived"],
                "examples": ["Still waiting for my order"],
            },
            "billing",
        ],
    },
    {"texts": ["I was charged twice."], "labels": {"billing": "invoices, charges, refunds"}},
    {"texts": ["The parcel never came.", "Great shop!"], "label_set": "tickets"},
    {
        "texts": ["A letter of several pages. It says in its last line: the parcel never came."],
        "labels": ["late delivery", "billing"],
        "long_text": "chunk",
    },
    {
        "texts": ["The parcel never came.", "Great shop!"],
        "labels": [["late delivery", "billing"], ["praise", "complaint"]],
        "top_k": 2,
    },
    {
        "texts": ["I was charged twice."],
        "labels": {"billing": ["refund", "double charge"], "delivery": ["late", "lost"]},
        "threshold": 0.5,
    },
]
