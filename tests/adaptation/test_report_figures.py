"""What a fit says of itself in words and figures, and its pictures."""

import subprocess
import sys

import numpy as np
import pytest

from sce.adaptation.illustration import illustrate
from sce.adaptation.pictures import NAMED_LABELS, SHARE_LABELS, corpus_figure, shares_figure
from sce.adaptation.report import headline, metrics, sentences
from tests.tiny_adapted import WIDTH, adapted_labels, label_report, label_vectors, rows_around

FITS = [
    {"trust": "none", "accuracy": 0.7, "low": 0.6, "high": 0.8, "gain": 0.0, "gain_low": 0.0,
     "gain_high": 0.0},
    {"trust": "bold", "accuracy": 0.82, "low": 0.7, "high": 0.9, "gain": 0.12, "gain_low": 0.02,
     "gain_high": 0.22},
]  # fmt: skip


def report_of(names=("a", "b"), labels=None, **changed):
    return adapted_labels(list(names), label_vectors(len(names)), labels, **changed).report


def test_without_labelled_rows_it_says_what_was_assumed_and_that_nobody_measured():
    report = report_of(rows=2000)
    assert headline(report) == "2 labels adapted to 400 of 2,000 texts (200 a label)."
    assert sentences(report) == [
        "Trust: default. It was assumed that most texts carry a label.",
        "Its accuracy is not known: no labelled rows were given.",
        "Two halves of the corpus, each fitted alone, agree on 94.7 % of the rows.",
        "12.5 % of the answers differ from those by the labels' own vectors.",
        "Probabilities: temperature 1.50, from how far two halves agree on 400 rows.",
    ]


def test_with_labelled_rows_it_says_both_accuracies_and_the_paired_interval():
    calibration = {"temperature": 2, "from": "labelled rows", "rows": 50, "ece_before": 0.2,
                   "ece_after": 0.05}  # fmt: skip
    choice = {"rows": 50, "chosen": "bold", "fits": FITS}
    said = sentences(report_of(choice=choice, calibration=calibration, agreement=None))
    assert said[1] == (
        "On 50 labelled rows 82.0 % are right (95 % interval 70.0 % to 90.0 %), 70.0 % by the "
        "labels' own vectors: +12.0 points (+2.0 to +22.0)."
    )
    assert said[3] == (
        "Probabilities: temperature 2.00, fitted to 50 labelled rows; expected calibration error "
        "0.200 before, 0.050 after."
    )
    assert not any("halves" in line for line in said)
    kept = sentences(report_of(choice=choice | {"chosen": "none"}))[1]
    assert kept.startswith("On 50 labelled rows 70.0 % are right")
    assert kept.endswith("by the labels' own vectors, which no fit was found to beat.")


def test_labels_without_text_and_with_too_few_are_named():
    labels = [label_report(f"gone {i:02d}", seems_absent=True, adapted=False) for i in range(14)]
    labels += [label_report("rare", adapted=False), label_report("well")]
    absent, rare = sentences(report_of([r["name"] for r in labels], labels))[-2:]
    assert absent.startswith('Labels that seem to have no text: "gone 00", "gone 01"')
    assert absent.endswith('"gone 11" and 2 more.')
    assert rare == 'Labels with too few texts, which keep their own vector: "rare".'


def test_a_set_that_was_not_adapted():
    labels = [label_report(name, adapted=False) for name in ("a", "b")]
    report = report_of(labels=labels, adapted=False, rows=1, fitted_rows=1)
    assert headline(report) == (
        "2 labels, not adapted to 1 text: every label keeps its own vector."
    )
    assert not any("too few" in line for line in sentences(report))


def test_metrics_are_flat_numbers():
    labels = [label_report("a"), label_report("b", adapted=False, seems_absent=True)]
    found = metrics(report_of(labels=labels))
    assert found["rows"] == 400
    assert (found["adapted"], found["adapted_labels"], found["labels_without_text"]) == (1, 1, 1)
    assert (found["agreement"], found["changed"], found["temperature"]) == (0.947, 0.125, 1.5)
    assert not {"ece_before", "accuracy"} & set(found)  # not known
    found = metrics(report_of(choice={"rows": 50, "chosen": "bold", "fits": FITS}))
    assert (found["accuracy"], found["accuracy_none"], found["accuracy_bold"]) == (0.82, 0.7, 0.82)
    assert (found["gain"], found["gain_low"], found["gain_high"]) == (0.12, 0.02, 0.22)
    assert all(type(value) is float for value in found.values())


def figure_of(count, a_label=5):
    own_KD = np.eye(WIDTH, dtype=np.float32) if count == WIDTH else label_vectors(count)
    adapted = adapted_labels([f"$label_{k}^ 日本" for k in range(count)], own_KD)
    x_ND = rows_around(own_KD, a_label)
    ids = [str(i) for i in range(len(x_ND))]
    illustration = illustrate(adapted, ids, None, x_ND, own_KD)
    return adapted, illustration, corpus_figure(illustration)


def test_few_labels_have_their_names_within_the_frame_and_apart():
    _, illustration, figure = figure_of(WIDTH)
    (axes,) = figure.axes
    assert {t.get_text() for t in axes.texts} == set(illustration.names)
    boxes = [t.get_window_extent() for t in axes.texts]
    frame = axes.get_window_extent()
    assert all(frame.contains(*corner) for box in boxes for corner in box.corners())
    overlaps = sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert overlaps <= 1


def test_of_many_labels_the_largest_are_named():
    adapted, _, figure = figure_of(200)
    (axes,) = figure.axes
    assert len(axes.texts) == NAMED_LABELS
    assert "of 200 labels" in axes.get_xlabel()
    (axes,) = shares_figure(adapted.report).axes
    assert len(axes.get_yticklabels()) == SHARE_LABELS
    assert "40 of 200" in axes.get_title()


def test_a_label_that_answers_nothing_is_a_cross():
    own_KD = label_vectors(4)
    weight_KD = own_KD.copy()
    weight_KD[3] = -own_KD.sum(0)
    adapted = adapted_labels(list("abcd"), weight_KD)
    x_ND = rows_around(own_KD[:3], 9)
    found = illustrate(adapted, [f"{i}" for i in range(27)], None, x_ND, own_KD)
    (axes,) = corpus_figure(found).axes
    assert [line.get_marker() for line in axes.lines].count("x") == 1
    assert "cross: a label that answers no text" in axes.get_xlabel()
    assert {t.get_text() for t in axes.texts} == set("abcd")


def test_shares_are_per_cent_before_and_after():
    labels = [label_report("a", mass_before=0.1, mass_after=0.4), label_report("b")]
    (axes,) = shares_figure(report_of(labels=labels)).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["b", "a"]
    before, after = axes.lines
    assert before.get_xdata() == pytest.approx([20, 10])
    assert after.get_xdata() == pytest.approx([30, 40])


def test_drawing_leaves_pyplot_alone():
    code = "import sys, sce.adaptation.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
