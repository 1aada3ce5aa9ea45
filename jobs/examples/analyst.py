"""An analyst: a table of messages, labels made up on the spot, and next month's other labels.

    python jobs/examples/analyst.py --model runs/quickstart/model --output answers.csv

Reads the inbox that ships (1,699 messages to a shop), embeds it once, and answers it twice: by
topic, and by the departments of a later taxonomy. Prints what moved where and the messages to look
at, and writes a table for spreadsheets. Of a table of your own, `pandas.read_csv("tickets.csv")`,
give its column.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import resources

import pandas as pd

from sce.datasets.custom import read_label_file
from sce.predictor import Predictor

INBOX = resources.files("sce.datasets") / "inbox"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/quickstart/model")
    parser.add_argument("--rows", type=int, help="the first so many; by default all")
    parser.add_argument("--threshold", type=float, default=0.5, help="below it nobody is sure")
    parser.add_argument("--output", help="a CSV")
    asked = parser.parse_args(argv)

    table = pd.read_json(str(INBOX / "messages.jsonl"), lines=True).head(asked.rows)
    predictor = Predictor.from_pretrained(asked.model)
    vectors = predictor.embedder.embed(table["text"]).vectors  # the slow part, once

    # A label may carry a description and synonyms: what you tell of it beats training.
    for column, file in (("topic", "labels.yaml"), ("department", "departments.yaml")):
        labels = read_label_file(INBOX / file)
        found = predictor.predict(embeddings=vectors, labels=labels, threshold=asked.threshold)
        table[column] = [one.label for one in found]
        table[f"{column}_score"] = [one.score for one in found]

    print(f"{table['topic'].isna().sum()} of {len(table)} messages below {asked.threshold}.\n")
    print(pd.crosstab(table["topic"], table["department"]), "\n")
    print("To look at first:")
    for _, row in table.nsmallest(5, "topic_score").iterrows():
        print(f"  {row['topic_score']:.2f}  {row['text'][:80]}")
    if asked.output:
        table.to_csv(asked.output, index=False, encoding="utf-8-sig")
        print(f"\nWritten: {asked.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
