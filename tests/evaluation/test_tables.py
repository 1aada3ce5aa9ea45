"""One table in a terminal, as Markdown, CSV and HTML."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from sce.evaluation.tables import Table, bounds, change, escape_markdown, percent

TABLE = Table(
    ["label", "rows"],
    [["News"], ["a|b [bold]", "1,200"], [], [Text("c_d", "red"), None]],
    title="A title",
    caption="what it means",
    missing="(none)",
)


def test_every_form_holds_the_same_cells():
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(TABLE)
    shown = console.export_text()
    for text in ("A title", "News", "a|b [bold]", "1,200", "c_d", "(none)", "what it means"):
        assert text in shown
    assert TABLE.to_markdown().splitlines() == [
        "| label | rows |",
        "| --- | ---: |",
        "| **News** |  |",
        "| a\\|b [bold] | 1,200 |",
        "| c_d | *(none)* |",
    ]
    assert TABLE.to_csv() == 'group,label,rows\nNews,a|b [bold],"1,200"\nNews,c_d,(none)\n'
    html = TABLE.to_html()
    assert '<tr class="heading"><td colspan="2">News</td></tr>' in html
    assert "<tr><td>c_d</td><td>(none)</td></tr>" in html


def test_texts_of_users_stand_for_themselves_in_markdown():
    assert "| a\\|b \\[bold\\] | 1,200 |" in TABLE.to_markdown(literal=True)
    assert escape_markdown("*a*\n_b_ c_d <x> `y`") == "\\*a\\* \\_b\\_ c_d \\<x\\> \\`y\\`"


def test_columns_are_set_left_by_name_and_narrow_ones_keep_numbers_whole():
    table = Table(["x", "n", "why"], [["a b c d", "80.0 [74.0, 85.0]", "so"]],
                  left=("x", "why"), wrap=False)  # fmt: skip
    assert table.to_markdown().splitlines()[1] == "| --- | ---: | --- |"
    assert '<td>a b c d</td><td>80.0 [74.0, 85.0]</td><td class="left">so</td>' in table.to_html()
    console = Console(width=34, record=True, file=io.StringIO())
    console.print(table)
    assert "80.0 [74.0, 85.0]" in console.export_text()


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (percent(0.1234), "12.3"),
        (percent(0.1, "+"), "+10.0"),
        (percent(None), "–"),
        (bounds(0.1, 0.2), " [10.0, 20.0]"),
        (bounds(None, 0.2), ""),
        (change(0.5, 0.25, 2), "0.50 → 0.25"),
        (change(None, 0.25, 2), "0.25"),
    ],
)
def test_figures(found, wanted):
    assert found == wanted
