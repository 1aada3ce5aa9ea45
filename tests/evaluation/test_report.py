"""Adapted labels in the tables: side by side, narrow enough, in Markdown, as a mean."""

import io

import pytest
from rich.console import Console

from sce.evaluation import report


def figures(accuracy, difference=None, **more):
    found = {
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.025,
        "accuracy_high": accuracy + 0.024,
        "nll": 1.0,
        "ece": 0.031,
        "ece_uncalibrated": 0.122,
    }
    if difference is not None:
        found |= {"difference": difference, "difference_low": difference - 0.02,
                  "difference_high": difference + 0.02, "mcnemar_p": 0.01}  # fmt: skip
    return found | more


def result(name, group, adapted=(0.56, 0.1, 0.12), dataset="inbox", labels=11):
    found = {
        "name": name, "dataset": dataset, "group": group, "rows": 1589, "labels": labels,
        "method": "sce", "sce": figures(0.44), "cosine": figures(0.4789),
        "difference": -0.04, "difference_low": -0.06, "difference_high": -0.02,
    }  # fmt: skip
    for key, gain in zip(("adapted", "adapted+1", "adapted+8"), adapted):
        found[key] = figures(0.4789 + gain, gain, trust="default", short_labels=0)
    return found


def shown(results, width, **settings):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(report.to_table(results, wide=width >= report.WIDE_CHARS, **settings))
    return console.export_text()


INBOX = [
    result("inbox/departments", group, gains, labels=6)
    for group, gains in (("unseen by name", (0.0812, 0.09, 0.101)), ("unseen", (-0.1, 0.0, 0.5)))
]


def test_a_narrow_terminal_has_every_method_in_80_columns():
    text = shown(INBOX, 80, caption="The rows are hard.")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    heads = next(line for line in lines if "cosine" in line and "adapted+8" in line)
    assert heads.replace("┃", " ").split() == (
        ["set", "cosine", "SCE", "adapted", "adapted+1", "adapted+8"]
    )
    at = next(i for i, line in enumerate(lines) if "inbox/departments" in line and "+" in line)
    assert lines[at].replace("│", " ").split() == [
        "inbox/departments", "47.9", "44.0", "-4.0", "37.9", "-10.0", "47.9", "+0.0", "97.9",
        "+50.0",
    ]  # fmt: skip
    assert lines[at + 1].replace("│", " ").split() == [
        "6", "labels", "45.4–50.3", "41.5–46.4", "35.4–40.3", "45.4–50.3", "95.4–100.3",
    ]  # fmt: skip
    assert "The rows are hard." in text
    # Where both kinds of information were measured, each is a group with a heading.
    assert [line.strip("│ ") for line in lines if line.strip("│ ").startswith("unseen")] == [
        "unseen", "unseen by name",
    ]  # fmt: skip


def test_a_wide_terminal_has_the_intervals_of_differences():
    text = shown(INBOX, report.WIDE_CHARS)
    assert max(map(len, text.splitlines())) <= report.WIDE_CHARS
    assert "56.0 [53.5, 58.4]" in text
    assert "+8.1 [+6.1, +10.1]" in text
    assert "6 labels, 1,589 rows" in text


def test_titles_count_adapted_labels_against_cosine():
    assert report.adapted_headline(INBOX) == (
        "Adapted labels beat cosine on 1 of 2, lose on 1, no clear difference on 0."
    )
    title = report.to_table(INBOX).title
    assert title == f"{report.headline(INBOX)} {report.adapted_headline(INBOX)}"
    colours = [
        {span.style for span in row[3].spans} for row in report.to_table(INBOX).rows if len(row) > 1
    ]
    assert colours == [{"red"}, {"green"}]


def test_without_adapted_labels_everything_is_as_it_was():
    plain = [result("news", "seen", ())]
    assert report.adapted_headline(plain) == ""
    assert report.to_table(plain) == report.beside_cosine(plain)
    assert report.to_markdown(plain).count("| set |") == 1
    assert "Adapted" not in report.to_markdown(plain)


def test_markdown_has_both_tables_and_the_calibration():
    text = report.to_markdown([*INBOX, result("b", "seen", (), dataset="b")], show_all=True)
    assert text.count("| set |") == 3
    row = next(line for line in text.splitlines() if "+8.1 [" in line)
    assert row.startswith("| inbox/departments 6 labels, 1,589 rows | 47.9 [45.4, 50.3] |")
    assert "| **unseen by name** |" in text
    assert text.count("0.122 → 0.031 | 0.122 → 0.031 | 0.122 → 0.031") == 2
    assert (
        "| b 11 labels, 1,589 rows | 47.9 [45.4, 50.3] | 44.0 [41.5, 46.4] -4.0 [-6.0, -2.0] "
        in text
    )


def test_labels_with_too_few_examples_are_named():
    short = result("mine", "own")
    short["adapted+8"]["short_labels"] = 2
    caption = report.to_table([short]).caption
    assert "adapted+8: 2 of 11 labels of mine (own) have fewer rows than that." in caption
    assert "adapted+1: " not in caption


@pytest.mark.parametrize("measured", [12, 11])
def test_a_mean_over_many_sets_is_of_all_of_them_or_not_given(measured):
    sets = [result(f"s{i}", "unseen", (0.01 * i,) if i < measured else ()) for i in range(12)]
    (mean,) = report.lines(sets)
    assert ("adapted" in mean) == (measured == 12)
    if measured == 12:
        assert mean["adapted"]["difference"] == pytest.approx(0.055)
        assert mean["adapted"]["difference_low"] < 0.055 < mean["adapted"]["difference_high"]
    shown(sets, 80)


def test_cosine_as_the_measured_method_has_one_column():
    alone = {k: v for k, v in result("x", "seen", (0.1,)).items() if "difference" not in k}
    alone |= {"method": "cosine"}
    del alone["sce"]
    assert list(report.to_table([alone]).columns) == ["set", "cosine", "adapted"]
    assert report.to_table([alone]).title == report.adapted_headline([alone]) != ""


def starter(count, group):
    sets = [result(f"starter/{group}{i}", group, (), dataset="starter") for i in range(count)]
    return [one | {"information": "all"} for one in sets]


def test_beside_rows_of_the_user_the_starter_corpus_is_one_line():
    tickets = result("tickets/queue", "seen", (), dataset="tickets") | {"own": True}
    every = [*starter(98, "seen"), *starter(24, "unseen"), tickets]
    bare = [one | {"information": "name", "group": "seen by name"} for one in starter(98, "seen")]
    found = report.lines([*bare, *every])
    assert [(one["name"], one["group"]) for one in found] == [
        ("tickets/queue", "seen"),
        ("starter: mean of 122 sets", "98 seen, 24 unseen"),
    ]
    assert found[1]["rows"] == 122 * 1589
    assert len(report.lines([*bare, *every], show_all=True)) > 220
    assert len(report.lines([*bare, *every[:-1]])) == 3, "without them each group has its own"


@pytest.mark.parametrize("adapted", [(), (0.01, 0.02, 0.03)])
def test_a_narrow_table_has_whole_headings(adapted):
    text = shown([result("customer-support-tickets/queue", "own", adapted)], 80)
    assert max(map(len, text.splitlines())) <= 80
    (heads,) = [line for line in text.splitlines() if line.startswith("┃")]
    keys = ("adapted", "adapted+1", "adapted+8")
    expected = (
        ["set", "cosine", "SCE", *keys[: len(adapted)]]
        if adapted
        else ["set", "SCE", "cosine", "difference", "verdict"]
    )
    assert heads.replace("┃", " ").split() == expected
