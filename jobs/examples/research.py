"""A researcher: news with the paper's labels, SCE beside cosine similarity.

    python jobs/examples/research.py --model runs/quickstart/model

By what the labels carry. They are AG News' four, as the paper has them. The texts are news of the
starter corpus, whose own label sets say which of the four is right; the quickstart has seen some of
them with other labels, so the figures show how to measure and are no claim. A measurement for print
is `jobs/evaluate.py`, which keeps seen and unseen label sets apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np

from sce.baselines.cosine import cosine_scores
from sce.datasets.starter import read_starter
from sce.evaluation.metrics import correct, ece, flip_rate, macro_f1, predicted
from sce.labels import LabelSet
from sce.predictor import Predictor

RIGHT = {
    "disasters_emergencies": "world", "sports_disciplines": "sports", "business_beats": "business",
    "science_beats": "science", "technology_beats": "science",
}  # fmt: skip
"""The paper's label of each label set's texts."""
KNOWN = {
    "world": "events, conflicts and disasters around the world",
    "sports": "matches, players, teams and tournaments",
    "business": "companies, markets, trade and the economy",
    "science": "research, technology, computing and space",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/quickstart/model")
    parser.add_argument("--rows", type=int, help="so many of each label set; by default all")
    asked = parser.parse_args(argv)

    names, texts, targets = list(KNOWN), [], []
    for one in read_starter():
        if one.name in RIGHT:
            kept = one.examples[: asked.rows]
            texts += [text for text, _ in kept]
            targets += [names.index(RIGHT[one.name])] * len(kept)
    targets_N = np.array(targets)

    predictor = Predictor.from_pretrained(asked.model)
    queries_ND = predictor.embedder.embed(texts).vectors
    print(f"{len(texts)} texts, 4 labels    accuracy  macro-F1   ECE  order flips")
    for carried, labels in (("names", names), ("descriptions", KNOWN)):
        label_set = LabelSet.parse(labels)
        for method, answer in methods(predictor, queries_ND).items():
            p_NK = answer(label_set)
            turned = LabelSet(label_set.labels[::-1])
            flips = flip_rate(predicted(p_NK), [predicted(answer(turned)[:, ::-1])])
            print(
                f"{method:10} {carried:14} {correct(p_NK, targets_N).mean():9.1%} "
                f"{macro_f1(p_NK, targets_N):9.1%} {ece(p_NK, targets_N):5.3f} {flips:12.1%}"
            )
    return 0


def methods(
    predictor: Predictor, queries_ND: np.ndarray
) -> dict[str, Callable[[LabelSet], np.ndarray]]:
    """Each method: a label set to probabilities [N, K]. A method of yours goes here."""
    version = predictor.model.config.label_vectors

    def cosine(label_set: LabelSet) -> np.ndarray:
        scores_NK = cosine_scores(
            queries_ND, label_set, lambda t: predictor.embedder.embed(t).vectors, version
        )
        p_NK = np.exp(scores_NK - scores_NK.max(1, keepdims=True))
        return p_NK / p_NK.sum(1, keepdims=True)

    return {"cosine": cosine, "SCE": lambda labels: predictor.probabilities(queries_ND, labels)}


if __name__ == "__main__":
    sys.exit(main())
