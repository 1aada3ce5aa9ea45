"""The page at `/`, in a real Chromium before a real server.

Needs Debian's `chromium` and `chromium-driver` (or CHROMIUM and CHROMEDRIVER say where others are)
and the package selenium. Only what a small server cannot be brought to do in seconds (refuse for a
moment, want a token, answer 10,000 texts) is played by a `fetch` of the test.
"""

import csv
import inspect
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure

from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.evaluation.pages import html_page
from sce.evaluation.tables import Table
from sce.model.label_tree import LabelTree
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig
from tests.serve.conftest import save_label_set

ROOT = Path(__file__).resolve().parents[2]
SET_NAMES = ["Lieferung", "<b>Geld</b>", "Donaudampfschifffahrtsgesellschaft" * 4]
SET_PAGE = "<!doctype html><title>Tickets</title><p style='color: red'>How it was fitted"
START_SECONDS, STOP_SECONDS, ANSWER_SECONDS = 120, 60, 30

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """A server whose model is the default recipe before its first step: cosine, as good as; with
    adapted labels of random weights."""
    home = tmp_path_factory.mktemp("page")
    fingerprint = embedder_fingerprint(EmbedderConfig())
    fresh = build_model(ModelConfig(), fingerprint.to_dict(), 0.0, seed=0)
    fresh.model.save_pretrained(home / "model")
    labels = save_label_set(home / "labels", fingerprint, SET_NAMES, page=SET_PAGE)
    drawn = save_label_set(home / "drawn", fingerprint, ["a", "b"], page=drawn_page())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    # Ray's sockets do not take the long paths of pytest's folders.
    ray_folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    command = [sys.executable, "-m", "serve.app", "--model", str(home / "model")]
    command += ["--label-sets", json.dumps({"tickets": labels, "drawn": drawn})]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "RAY_TMPDIR": ray_folder},
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not healthy(address):
            said = (home / "log").read_text()[-3000:]
            assert server.poll() is None, f"the server ended:\n{said}"
            assert time.monotonic() < deadline, f"the server does not get ready:\n{said}"
            time.sleep(0.3)
        yield address
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        shutil.rmtree(ray_folder, ignore_errors=True)


def drawn_page() -> str:
    """A report with a picture and a drawing, by what writes those of jobs/adapt.py."""
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot([0, 1], [1, 0], "o-", label="$x$")
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png")
    figure.savefig(svg, format="svg")
    source = f"data:image/png;base64,{b64encode(png.getvalue()).decode()}"
    table = Table(["text", "share"], [["a text", "0.5"]], "Shares", "A caption.", left=("text",))
    drawing = svg.getvalue()
    parts = [table.to_html(), f'<img src="{source}" alt="">', drawing[drawing.index("<svg") :]]
    return html_page("Drawn", parts)


def healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}health", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def complaints(driver) -> list[dict[str, Any]]:
    """What the browser's console says of scripts that fail, and of what a policy refuses."""
    found = driver.get_log("browser")
    return [entry for entry in found if entry["source"] in ("javascript", "security")]


class Page:
    """What a person sees and does. A text without newline is typed, others are pasted."""

    def __init__(self, driver, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self) -> None:
        """With the example in its fields, which the page's script writes."""
        self.driver.get(self.url)
        self.until(lambda: self.js("return document.readyState") == "complete", "not loaded")
        self.until(lambda: self.example()[0], "no example")

    def js(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def cdp(self, command: str, **settings: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, settings)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).innerText", selector).strip()

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def press(self, *keys: str) -> None:
        """To whatever has the focus; "Ctrl+x" holds Control."""
        from selenium.webdriver import ActionChains, Keys

        for key in keys:
            held, _, last = key.rpartition("+") if key.startswith("Ctrl+") else ("", "", key)
            what = getattr(Keys, last.upper(), last) if len(last) > 1 else last
            actions = ActionChains(self.driver)
            if held:
                actions = actions.key_down(Keys.CONTROL)
            actions = actions.send_keys(what)
            (actions.key_up(Keys.CONTROL) if held else actions).perform()

    def fill(self, selector: str, value: str, nth: int = 0) -> None:
        """As pasted over what is there."""
        script = """
            const [selector, value, nth] = arguments;
            const field = document.querySelectorAll(selector)[nth];
            field.value = value;
            field.dispatchEvent(new Event("input", {bubbles: true}));
        """
        self.js(script, selector, value, nth)

    def set_labels(self, *names: str) -> None:
        for button in self.all(".remove")[1:]:
            button.click()
        self.fill(".name", names[0])
        self.fill(".description", "")
        for nth, name in enumerate(names[1:], 1):
            self.click("#add-label")
            self.fill(".name", name, nth)

    def rows(self) -> list[dict[str, str]]:
        script = """
            return [...document.querySelectorAll("#rows tr:not(.detail)")].map((tr) => ({
                row: tr.querySelector(".c-row").innerText.replace(/[^0-9]/g, ""),
                text: tr.querySelector(".text").textContent,
                label: tr.querySelector(".c-label").firstChild.textContent,
                score: tr.querySelector(".c-score").innerText.trim(),
            }));
        """
        return self.js(script)

    def column(self, name: str) -> list[str]:
        return [row[name] for row in self.rows()]

    def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{what}; the page says:\n{self.text('body')}"
            time.sleep(0.05)

    def answered(self, texts: list[str], labels: set[str]) -> None:
        """Wait until exactly these texts have labels among these, or none."""
        names = labels | {"none"}
        self.until(
            lambda: self.column("text") == texts and set(self.column("label")) <= names,
            f"no answers for {texts} with {labels}",
        )

    def example(self) -> tuple[list[str], list[str]]:
        texts = self.js("return document.getElementById('texts').value").splitlines()
        names = self.js("return [...document.querySelectorAll('.name')].map((n) => n.value)")
        return texts, names

    def requests(self) -> int:
        """To classify, so far."""
        script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        return sum(name.endswith("/v1/classify") for name in self.js(script))

    def code(self, language: str) -> str:
        """What "copy as" copies."""
        if not self.find("#code").get_attribute("open"):
            self.click("summary")
        read = "return document.getElementById(arguments[0]).value"
        self.until(lambda: self.js(read, language), "no code")
        return self.js(read, language)

    def choose_file(self, path: Path) -> None:
        self.find("#file").send_keys(str(path))

    def download(self, folder: Path, name: str) -> list[dict[str, str]]:
        """The rows of the CSV that comes."""
        self.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self.click("#download")

        def complete() -> bool:
            return [path.name for path in folder.iterdir() if path.stat().st_size] == [name]

        self.until(complete, f"{name} is not downloaded")
        content = (folder / name).read_bytes().decode("utf-8-sig")
        return list(csv.DictReader(io.StringIO(content, newline="")))

    def drop_file(self, name: str, content: str) -> None:
        script = """
            const dragged = new DataTransfer();
            dragged.items.add(new File([arguments[1]], arguments[0]));
            for (const type of ["dragover", "drop"]) {
                const options = {dataTransfer: dragged, bubbles: true, cancelable: true};
                document.getElementById("texts-panel").dispatchEvent(new DragEvent(type, options));
            }
        """
        self.js(script, name, content)

    def set_threshold(self, value: float) -> None:
        self.fill("#threshold", str(value))
        self.until(self.up_to_date, f"no answers at {value}")
        assert self.text("#threshold-value") == f"{value:.2f}"

    def up_to_date(self) -> bool:
        """Whether what is shown answers what the fields say."""
        table = self.find("#table")
        stale = "busy" in (table.get_attribute("class") or "")
        return not stale and table.get_attribute("aria-busy") != "true"

    def resize(self, width: int, height: int = 900, mobile: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.cdp("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, **features: str) -> None:
        listed = [{"name": name.replace("_", "-"), "value": v} for name, v in features.items()]
        self.cdp("Emulation.setEmulatedMedia", features=listed)


@pytest.fixture
def blank(driver, url) -> Iterator[Page]:
    """The page before it is opened."""
    page = Page(driver, url)
    page.resize(1200)
    yield page
    page.js("sessionStorage.clear()")
    page.cdp("Emulation.clearDeviceMetricsOverride")
    page.prefer()
    assert not complaints(driver)


@pytest.fixture
def page(blank) -> Page:
    """The page with its example answered."""
    blank.open()
    texts, labels = blank.example()
    blank.answered(texts, set(labels))
    return blank


@pytest.fixture
def play(blank) -> Iterator[Callable[[str], None]]:
    """Opens the page with a `fetch` that tries `(path, request, real) => Response` first."""
    scripts = []

    def play(script: str) -> None:
        source = f"""
            const real = window.fetch.bind(window), play = {script};
            window.seen = [];
            const json = (status, content, headers = {{}}) =>
                new Response(JSON.stringify(content), {{status, headers}});
            window.fetch = async (path, request) => {{
                const asked = {{path: String(path), body: JSON.parse(request.body ?? "null")}};
                window.seen.push(asked);
                return (await play(asked, request, real, json)) ?? real(path, request);
            }};
        """
        added = blank.cdp("Page.addScriptToEvaluateOnNewDocument", source=f"{{{source}}}")
        scripts.append(added["identifier"])
        blank.open()

    yield play
    for script in scripts:
        blank.cdp("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


def test_example_is_answered_at_once(page):
    texts, labels = page.example()
    assert len(texts) >= 5
    assert len(labels) >= 3
    assert page.column("row") == [str(i) for i in range(1, len(texts) + 1)]
    assert all(re.fullmatch(r"[01]\.\d\d", score) for score in page.column("score"))
    status = page.text("#status")
    assert re.fullmatch(rf"{len(texts)} texts, [\d,]+ ms, \d+ of \d+ vectors from cache", status)
    assert page.find("#status").get_attribute("role") == "status"
    assert page.js("return Object.keys(localStorage).length") == 0


def test_every_score_of_a_row(page):
    _, labels = page.example()
    toggle = page.find("#rows button")
    assert toggle.get_attribute("aria-expanded") == "false"
    toggle.click()
    assert toggle.get_attribute("aria-expanded") == "true"
    names = [item.text for item in page.all(".scores li > span:first-child")]
    scores = [float(item.text) for item in page.all(".scores .number")]
    assert sorted(names) == sorted(labels)
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=0.001 * len(scores))
    toggle.click()
    assert not page.all(".scores")


def test_new_labels_are_answered_without_a_click(page):
    texts, _ = page.example()
    asked = page.requests()
    page.find(".name").click()
    page.press("Ctrl+a", *"gardening")
    page.until(lambda: page.requests() > asked, "the page does not ask")
    page.until(lambda: "gardening: " in page.text("#filter"), "no answers with the new label")
    time.sleep(0.6)
    assert page.requests() == asked + 1, "it asked between the key strokes"
    assert page.column("text") == texts

    page.set_labels("a broken vase", "an invoice")
    page.answered(texts, {"a broken vase", "an invoice"})
    found = dict(zip(texts, page.column("label")))
    assert found["The vase arrived in three pieces."] == "a broken vase"


def test_what_is_known_of_a_label_is_sent(page, play):
    play("() => null")
    page.until(lambda: page.rows(), "no answers")
    page.set_labels("late", "broken")
    page.fill(".description", "the parcel came late", 0)
    page.click(".label:nth-child(2) .toggle")
    page.press(*"in pieces", "Enter", *"cracked", "Tab", *"The vase is broken")
    wanted = [
        {"name": "late", "description": "the parcel came late"},
        {
            "name": "broken",
            "synonyms": ["in pieces", "cracked"],
            "examples": ["The vase is broken"],
        },
    ]
    page.until(lambda: page.js("return seen.at(-1).body.labels") == wanted, "other labels are sent")


def test_pasted_lines_become_labels(page):
    texts, _ = page.example()
    page.set_labels("x")
    script = """
        const clipboardData = new DataTransfer();
        clipboardData.setData("text", "late: it came late\\nbroken\\n\\nRe-order\\tonce more\\n");
        const options = {clipboardData, bubbles: true, cancelable: true};
        const name = document.querySelector(".name");
        name.value = "";
        name.dispatchEvent(new ClipboardEvent("paste", options));
    """
    page.js(script)
    assert page.example()[1] == ["late", "broken", "Re-order"]
    read = "return [...document.querySelectorAll('.description')].map((d) => d.value)"
    assert page.js(read) == ["it came late", "", "once more"]
    page.answered(texts, {"late", "broken", "Re-order"})


def test_sort(page):
    texts, _ = page.example()

    def sorted_by(name: str) -> str:
        page.click(f"[data-sort={name}]")
        return page.find(f"th:has([data-sort={name}])").get_attribute("aria-sort")

    assert sorted_by("score") == "descending"
    scores = [float(score) for score in page.column("score")]
    assert scores == sorted(scores, reverse=True)
    assert page.find("th:has([data-sort=row])").get_attribute("aria-sort") == "none"
    assert sorted_by("score") == "ascending"
    assert [float(score) for score in page.column("score")] == sorted(scores)

    page.set_threshold(0)
    assert sorted_by("label") == "ascending"
    assert page.column("label") == sorted(page.column("label"))
    assert sorted_by("row") == "ascending"
    assert page.column("text") == texts
    assert sorted_by("row") == "descending"
    assert page.column("text") == texts[::-1]


def test_filter_and_search(page):
    page.set_threshold(0)
    labels = page.column("label")
    label = labels[0]
    page.js("arguments[0].value = arguments[1]", page.find("#filter"), f"label {label}")
    page.js("document.getElementById('filter').dispatchEvent(new Event('input'))")
    assert page.column("label") == [label] * labels.count(label)
    assert f"{label}: {labels.count(label)}" in page.text("#filter")
    assert f"({labels.count(label)} row" in page.text("#download")
    page.fill("#filter", "all")
    page.fill("#search", "INVOICE")
    assert page.column("text") == [text for text in page.example()[0] if "invoice" in text.lower()]
    page.fill("#search", "nobody wrote this")
    assert page.rows() == []
    assert page.text("#nothing") == "No row passes the filters."


def test_the_server_compares_with_the_threshold(page, play):
    play("""
        ({path, body}, request, real, json) => body?.threshold !== 1 ? null
            : json(200, {data: body.texts.map((text, index) => ({index, score: 1, truncated: false,
                         label: index ? "late delivery" : null, scores: {}, error: null})),
                         usage: {embedded_texts: 0, cached_texts: 0}})
    """)
    page.until(page.rows, "no answers")
    scores = page.column("score")
    page.set_threshold(0.01)
    assert page.js("return seen.at(-1).body.threshold") == 0.01
    assert page.column("score") == scores
    page.set_threshold(0)
    assert "threshold" not in page.js("return seen.at(-1).body")
    assert "none" not in page.column("label")
    page.click("#threshold")
    page.press("End")
    page.until(lambda: page.text("#threshold-value") == "1.00", "the slider does not move")
    page.until(page.up_to_date, "no new answers")
    assert page.column("label") == ["none"] + ["late delivery"] * (len(scores) - 1)
    page.fill("#filter", "none")
    assert page.column("row") == ["1"]


def test_markup_stays_text(page):
    texts = ["<img src=x onerror='window.ran = 1'>", "<script>window.ran = 2</script> & </td>"]
    labels = ["<b onclick=alert(1)>bold</b>", "__proto__", "none"]
    page.fill("#texts", "\n".join(texts))
    page.set_labels(*labels)
    page.answered(texts, set(labels))
    page.click("#rows button")
    assert texts[1] in page.code("curl")
    assert not page.all("main img, main b, main script")
    assert page.js("return window.ran") is None


CSV = 'id;body\r\n7;"Where is ""my"" parcel;\r\nit is late"\r\n8;\r\n9;=1+1\r\n'


def test_choosing_a_csv(page, tmp_path):
    (tmp_path / "tickets.csv").write_text(CSV, newline="")
    page.choose_file(tmp_path / "tickets.csv")
    texts = ['Where is "my" parcel;\r\nit is late', "", "=1+1"]
    page.until(lambda: page.column("text") == texts, "no answers for the file")
    assert page.text("#texts-error") == ""
    assert page.text("#column-note").startswith("“body” has the longest texts.")
    assert page.column("label")[1] == "text empty"
    assert "errors: 1" in page.text("#filter")
    page.click("#file-remove")
    texts, labels = page.example()
    page.answered(texts, set(labels))


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.csv", 'text,n\n"two\nlines",1\nplain,2\n', ["two\nlines", "plain"]),
        ("a.csv", "\ufeffText\none\n\ntwo", ["one", "two"]),
        ("a.tsv", "n\ttext\n1\ta, b\n", ["a, b"]),
        ("a.txt", "one\r\n\r\ntwo\r\n", ["one", "two"]),
        ("a.jsonl", '{"text": "one"}\n\n{"n": 1, "text": "zwei Äpfel"}\n', ["one", "zwei Äpfel"]),
    ],
)
def test_dropping_a_file(page, name, content, texts):
    page.drop_file(name, content)
    page.answered(texts, set(page.example()[1]))
    assert page.text("#file-name") == name


def test_the_longest_column_is_guessed_and_filters_are_reset(page):
    _, labels = page.example()
    page.fill("#search", "invoice")
    page.fill("#filter", f"label {page.column('label')[0]}")
    page.click("[data-sort=label]")
    rows = [f"{10**12 + i},short,{'a long complaint of somebody ' * 3}{i},x" for i in range(3)]
    page.drop_file("a.csv", "\n".join(["number,title,message,label", *rows]))
    texts = [row.split(",")[2] for row in rows]
    page.answered(texts, set(labels))
    assert page.text("#column-note").startswith("“message” has the longest texts.")
    assert page.js(
        "return [...document.querySelectorAll('#filter, #search')].map(f => f.value)"
    ) == [
        "all",
        "",
    ]
    assert page.find("th:has([data-sort=row])").get_attribute("aria-sort") == "ascending"
    page.find("#column").send_keys("title")
    page.answered(["short"] * 3, set(labels))
    assert page.text("#column-note") == ""


def test_answers_to_something_else_are_marked(page):
    texts, labels = page.example()
    marked = "return document.getElementById(arguments[0]).classList.contains(arguments[1])"
    assert not page.js(marked, "table", "busy")
    page.fill("#texts", "")
    page.until(lambda: page.text("#status").startswith("Not up to date"), "stale without a word")
    assert page.js(marked, "table", "busy")
    assert page.js(marked, "status", "mark")
    page.fill("#texts", "\n".join(texts))
    page.until(lambda: not page.js(marked, "table", "busy"), "marked though they are answered")
    page.answered(texts, set(labels))
    assert not page.js(marked, "status", "mark")
    page.fill("#texts", "new")  # before anything is asked
    assert page.js(marked, "table", "busy")
    page.answered(["new"], set(labels))
    assert not page.js(marked, "table", "busy")


def test_rows_that_moved_with_the_labels_are_marked(page):
    texts, _ = page.example()
    page.set_labels("a broken vase", "an invoice")
    page.set_threshold(0)
    page.answered(texts, {"a broken vase", "an invoice"})
    before = dict(zip(texts, page.column("label")))
    page.click("#add-label")
    page.fill(".name", "a friendly colleague", 2)
    page.until(lambda: "a friendly colleague: " in page.text("#filter"), "no new answers")
    after = dict(zip(texts, page.column("label")))
    moved = [text for text in texts if before[text] != after[text]]
    assert moved, "the test needs a text that moves"
    script = "return [...document.querySelectorAll('tr.moved .text')].map((t) => t.textContent)"
    assert page.js(script) == moved
    said = page.js("return [...document.querySelectorAll('td .mark')].map((m) => m.textContent)")
    assert said == [f"was {before[text]}" for text in moved]
    page.click("#moved")
    assert page.column("text") == moved
    assert page.find("#moved").get_attribute("aria-pressed") == "true"
    page.click("#moved")
    assert page.column("text") == texts
    page.fill("#texts", "another text")
    page.answered(["another text"], {"a broken vase", "an invoice", "a friendly colleague"})
    assert not page.find("#moved").is_displayed()


def test_answers_are_near_on_a_phone(page):
    page.resize(390, 844, mobile=True)
    page.js("scrollTo(0, 0)")
    top = "return document.getElementById('%s').getBoundingClientRect().top"
    assert page.js(top % "answers-title") < 844
    bar = page.find("#to-answers")
    page.until(bar.is_displayed, "no way to the answers")
    assert page.text("#to-answers-status") == page.text("#status")
    bar.click()
    page.until(lambda: 0 <= page.js(top % "table") < 0.7 * 844, "they are not in sight")
    page.until(lambda: not bar.is_displayed(), "it stands over what it leads to")
    page.resize(1280)
    page.js("scrollTo(0, 0)")
    assert not bar.is_displayed()


def test_what_is_written_is_told_from_a_placeholder(page):
    script = "return getComputedStyle(document.querySelector('.description')%s).%s"
    assert page.js(script % ("", "color")) != page.js(script % (", '::placeholder'", "color"))
    assert page.js(script % ("", "fontStyle")) == "normal"
    assert page.js(script % (", '::placeholder'", "fontStyle")) == "italic"


def test_a_link_leads_to_the_document(page):
    assert page.find("#docs").get_attribute("href") == f"{page.url}docs"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pdf", "x", "a.pdf: only .csv, .tsv, .txt and .jsonl can be read."),
        ("a.jsonl", '{"text": "one"}\nno', "a.jsonl: record 2 is not a JSON object."),
        ("a.csv", 'text\n"never closed\n', "a.csv: row 2 has a quote that is not closed"),
        ("a.csv", "text\na,b\n", "a.csv: row 1 has 2 fields, the header 1."),
        ("a.csv", "text\n", "a.csv: there are no texts in it."),
    ],
)
def test_a_file_that_cannot_be_read(page, name, content, said):
    before = page.rows()
    page.drop_file(name, content)
    page.until(lambda: page.text("#texts-error").startswith(said), said)
    assert page.rows() == before


def test_download(page, tmp_path):
    texts = ["=HYPERLINK(1)", "+49 30 1234", "@home", '"quoted", with; comma', "-5", "plain",
             "\u200b=1", "\x01\u202e@x", "x\u200b=1", "'=1"]  # fmt: skip
    page.fill("#texts", "\n".join(texts))
    page.set_labels("late", "=broken")
    page.answered(texts, {"late", "=broken"})
    page.set_threshold(0.6)
    rows = page.download(tmp_path, "texts-classified.csv")
    columns = ["text", "row", "label", "score", "truncated", "error"]
    assert list(rows[0]) == [*columns, "score: late", "score: =broken"]
    guarded = ["'=HYPERLINK(1)", "'+49 30 1234", "'@home", *texts[3:6],
               "'\u200b=1", "'\x01\u202e@x", "x\u200b=1", "''=1"]  # fmt: skip
    assert [row["text"] for row in rows] == guarded
    assert [row["row"] for row in rows] == [str(i) for i in range(1, len(texts) + 1)]
    in_file = {"none": "", "late": "late", "=broken": "'=broken"}
    for shown, row in zip(page.rows(), rows):
        assert row["label"] == in_file[shown["label"]]
        assert f"{float(row['score']):.2f}" == shown["score"]
        assert (row["truncated"], row["error"]) == ("false", "")
        scores = [float(row["score: late"]), float(row["score: =broken"])]
        assert sum(scores) == pytest.approx(1, abs=1e-4)
        assert max(scores) == pytest.approx(float(row["score"]), abs=1e-5)


def test_download_keeps_the_columns_of_the_file(page, tmp_path):
    page.set_threshold(0)
    page.drop_file("week.csv", "id,label,text\n007,old,The vase is broken\nA-2,,late parcel\n")
    page.answered(["The vase is broken", "late parcel"], set(page.example()[1]))
    page.fill("#search", "late")
    [row] = page.download(tmp_path, "week-classified.csv")
    assert (row["id"], row["label"], row["text"], row["row"]) == ("A-2", "", "late parcel", "2")
    assert row["label (answer)"] == page.column("label")[0]


def test_copied_code_gives_the_same_answers(page):
    texts = ["It's $HOME `date` \\ late", "Die Vase ist kaputt 😀", "100% !! {}"]
    page.fill("#texts", "\n".join(texts))
    page.set_labels("it's late", 'broken "goods"')
    page.answered(texts, {"it's late", 'broken "goods"'})
    page.set_threshold(0)
    curl = page.code("curl")
    page.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite"])
    page.click("[data-copy=curl]")
    page.until(lambda: page.text("#copied") == "Copied as curl.", "nothing was copied")
    assert page.driver.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
    ) in (curl, curl.strip())
    shown = page.column("label")
    if shutil.which("curl"):
        run = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60)
        assert [row["label"] for row in json.loads(run.stdout)["data"]] == shown, run.stderr
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(page.code("python"), "copied", "exec"), {})
    lines = printed.getvalue().splitlines()
    assert [line.startswith(label) for line, label in zip(lines, shown)] == [True] * len(texts)


def test_an_error_stands_at_the_labels(page):
    texts, labels = page.example()
    before = page.rows()
    page.fill(".name", labels[0], 1)
    page.until(lambda: "stands twice" in page.text("#labels-error"), "no word of the duplicate")
    assert page.js("return labels.parentElement.contains(document.getElementById('labels-error'))")
    names = page.all(".name")
    assert [name.get_attribute("aria-invalid") for name in names[:2]] == ["false", "true"]
    assert names[1].get_attribute("aria-describedby") == "labels-error"
    page.until(lambda: page.text("#status").startswith("Not up to date"), "stale without a word")
    assert page.rows() == before
    page.fill(".name", "new", 1)
    page.answered(texts, {labels[0], "new", *labels[2:]})
    assert page.text("#labels-error") == ""
    page.fill("#texts", " \n")
    page.until(lambda: page.text("#texts-error") == "Give at least one text.", "no word of it")


def test_a_refusal_of_the_server_stands_where_it_belongs(page):
    page.set_labels("late", "x" * 300)
    page.until(lambda: page.text("#labels-error"), "the server's refusal is not shown")
    assert page.text("#run-error") == ""


def test_keyboard_alone(page):
    def focused() -> str:
        return page.js("const a = document.activeElement; return a.id || a.className")

    def tab_to(*wanted: str) -> None:
        for _ in range(60):
            page.press("Tab")
            outline = "return getComputedStyle(document.activeElement).outlineStyle"
            hidden = focused() in ("file", "rows")  # the file's button has the outline around it
            assert hidden or page.js(outline) != "none", f"{focused()}: focus is not visible"
            if focused() in wanted:
                return
        raise AssertionError(f"Tab does not reach {wanted}")

    page.js("document.activeElement.blur()")
    order = ["docs", "model", "file", "texts", "name", "description", "bare toggle", "bare remove"]
    for place in order:
        tab_to(place)
    page.js("document.getElementById('texts').focus()")
    page.press("Ctrl+a", *"the vase is broken", "Enter", *"where is my parcel")
    tab_to("name")
    page.press("Ctrl+a", *"broken", "Enter", *"late")
    assert page.example()[1][:2] == ["broken", "late"]
    page.press("Enter", "Backspace")
    assert page.example()[1][:2] == ["broken", "late"]
    assert focused() == "name"
    page.press("Ctrl+Enter")
    names = set(page.example()[1])
    page.answered(["the vase is broken", "where is my parcel"], names)
    assert page.column("label")[0] in ("broken", "damaged goods", "none")
    tab_to("threshold")
    page.press("Home")
    page.until(lambda: page.text("#threshold-value") == "0.00", "the slider does not move")
    tab_to("filter")
    tab_to("search")
    script = "return document.activeElement.dataset.sort"
    while page.js(script) != "score":  # past a filter that is there where rows have moved
        page.press("Tab")
    page.press("Enter")
    assert page.find("th:has([data-sort=score])").get_attribute("aria-sort") == "descending"
    page.press("Tab", "Enter")
    assert page.all(".detail")
    assert page.js("return document.activeElement.getAttribute('aria-expanded')") == "true"


def test_names_for_a_screen_reader(page):
    page.click(".toggle")
    nodes = page.cdp("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "textbox", "combobox", "slider", "searchbox", "table", "columnheader"}
    for node in nodes:
        if not node["ignored"] and node["role"]["value"] in controls:
            assert node["name"]["value"].strip(), node
    roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
    assert {"table", "row", "cell", "columnheader", "status", "main"} <= set(roles)


def test_a_phone(page, tmp_path):
    word = "Donaudampfschifffahrtsgesellschaft" * 4
    page.resize(375, 800, mobile=True)
    page.fill("#texts", f"{word}\nA parcel that came late and " + "very " * 60)
    page.set_labels(word[:150], "late")
    page.until(lambda: word[:150] in page.text("#filter"), "no answers")
    page.js("document.querySelector('#rows button').click()")
    page.js("document.querySelector('.toggle').click()")
    page.click("summary")
    page.drop_file(f"{word}.csv", f"id,{word},b\n1,x,{word}\n")
    page.until(lambda: page.text("#column-note"), "no word of the column")
    widths = page.js("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert widths == [375, 375]
    nodes = page.cdp("Accessibility.getFullAXTree")["nodes"]
    roles = {node["role"]["value"] for node in nodes if not node["ignored"]}
    assert {"table", "row", "cell", "columnheader"} <= roles, "the cards are no table any more"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page, scheme):
    page.prefer(prefers_color_scheme=scheme)
    script = """
        const canvas = document.createElement("canvas").getContext("2d");
        const read = (color) => {
            canvas.fillStyle = color;
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        const style = (selector) => getComputedStyle(document.querySelector(selector));
        return arguments[0].map(([text, ground]) =>
            [read(style(text).color), read(style(ground).backgroundColor)]);
    """

    def luminance(color: list[int]) -> float:
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [("body", "body"), (".quiet", "body"), (".best, .none", ".panel"), ("#run", "#run")]
    pairs += [(".description", ".description"), ("#labels-error", "#labels-error")]
    for text, ground in page.js(script, pairs):
        dark, light = sorted([luminance(text), luminance(ground)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    text, ground = page.js(script, [("body", "body")])[0]
    assert (luminance(text) > luminance(ground)) == (scheme == "dark")


def test_reduced_motion(page):
    page.prefer(prefers_reduced_motion="reduce")
    page.js("document.getElementById('table').classList.add('busy')")
    read = "return getComputedStyle(document.getElementById('rows')).transitionProperty"
    assert page.js(read) in ("none", "all")
    page.js("document.getElementById('table').classList.remove('busy')")


def test_an_overloaded_server_is_asked_again(blank, play):
    play("""
        ({path}, request, real, json) => {
            const refused = seen.filter((asked) => asked.path === path).length;
            if (path === "v1/classify" && refused <= 2)
                return json(refused === 1 ? 429 : 503, {error: {message: "busy"}},
                            {"Retry-After": "1"});
        }
    """)
    said = "The server is busy (HTTP 429). Asking again in 1 s"
    blank.until(lambda: said in blank.text("#status"), "no word of the delay")
    blank.until(lambda: "HTTP 503" in blank.text("#status"), "no word of the second delay")
    texts, labels = blank.example()
    blank.answered(texts, set(labels))
    assert blank.text("#run-error") == ""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("json(500, {error: {message: 'The replica died.'}})", "The replica died."),
        ("new Response('<html>', {status: 502})", "The server answers with HTTP 502."),
        ("Promise.reject(new TypeError('failed'))", "The server cannot be reached."),
    ],
)
def test_a_failure_stands_at_the_button(blank, play, answer, said):
    play(f"({{path}}, request, real, json) => path === 'v1/classify' ? {answer} : null")
    blank.until(lambda: blank.text("#run-error").startswith(said), said)
    assert blank.text("#status") == "Failed."
    assert not blank.find("#stop").is_displayed()


def test_a_token_is_asked_for_and_kept_for_the_session(blank, play):
    play("""
        (asked, request, real, json) => request.headers.Authorization === "Bearer open sesame"
            ? null : json(401, {error: {message: "A bearer token is needed."}})
    """)
    blank.until(lambda: blank.text("#token-error") == "A bearer token is needed.", "no question")
    assert blank.js("return document.activeElement.id") == "token"
    assert blank.find("#token").get_attribute("type") == "password"
    blank.press(*"open sesame", "Enter")
    texts, labels = blank.example()
    blank.answered(texts, set(labels))
    assert blank.text("#token-error") == ""
    assert blank.js("return {...sessionStorage}") == {"token": "open sesame"}
    assert blank.js("return Object.keys(localStorage).length") == 0
    assert "Bearer $SCE_TOKEN" in blank.code("curl")
    assert 'os.environ["SCE_TOKEN"]' in blank.code("python")
    assert "sesame" not in blank.code("curl") + blank.code("python")


def test_two_models(blank, play):
    play("""
        ({path, body}, request, real, json) => path === "info"
            ? json(200, {models: [{id: "a"}, {id: "b"}], default_model: "a", limits: {}})
            : json(200, {data: body.texts.map((text, index) => ({index, label: body.model ?? "a",
                         score: 1, scores: {}, truncated: true, error: null})),
                         usage: {embedded_texts: 0, cached_texts: 0}})
    """)
    blank.until(lambda: set(blank.column("label")) == {"a"}, "no answers of the default")
    assert "only its beginning counts" in blank.text("#rows")
    blank.find("#model").send_keys("b")
    blank.until(lambda: set(blank.column("label")) == {"b"}, "no answers of the other")
    assert 'model="b"' in blank.code("python")


def test_more_texts_than_one_request_may_have(blank, play):
    play("""
        async ({path}, request, real, json) => {
            if (path !== "info") return null;
            const info = await (await real(path, request)).json();
            return json(200, {...info, limits: {...info.limits, max_texts: 4}});
        }
    """)
    texts, labels = blank.example()
    blank.answered(texts, set(labels))
    sent = blank.js("return seen.filter((asked) => asked.body).map((asked) => asked.body.texts)")
    assert [len(part) for part in sent] == [4] * (len(texts) // 4) + [len(texts) % 4 or 4]
    assert [text for part in sent for text in part] == texts


def test_a_timeout_makes_smaller_requests(blank, play):
    play("""
        ({path, body}, request, real, json) => path === "v1/classify" && body.texts.length > 3
            ? json(504, {error: {message: "too slow"}}) : null
    """)
    texts, labels = blank.example()
    blank.answered(texts, set(labels))
    assert blank.text("#run-error") == ""


def test_stop_keeps_what_has_come(blank, play):
    play("""
        ({path}, request, real, json) => path === "info"
            ? json(200, {models: [{id: "m"}], default_model: "m", limits: {max_texts: 2}})
            : seen.length < 4 ? null
            : new Promise((_, reject) => request.signal.addEventListener("abort", reject))
    """)
    blank.until(lambda: len(blank.rows()) == 4, "no part of the answers")
    blank.click("#stop")
    assert blank.text("#status") == f"Stopped: 4 of {len(blank.example()[0])} texts."
    assert len(blank.rows()) == 4
    assert not blank.find("#stop").is_displayed()


def test_ten_thousand_rows_stay_quick(blank, play):
    play("""
        ({path, body}, request, real, json) => path !== "v1/classify" ? null
            : json(200, {data: body.texts.map((text, index) => {
                const p = (text.length * 37 + index * 13) % 100 / 100;
                const scores = {"late delivery": p, billing: 1 - p};
                const label = p > 0.5 ? "late delivery" : "billing";
                return {index, label, score: Math.max(p, 1 - p), scores, truncated: false,
                        error: null};
            }), usage: {embedded_texts: body.texts.length, cached_texts: 2}})
    """)
    blank.until(lambda: blank.rows(), "no answers")
    blank.set_labels("late delivery", "billing")
    lines = [f"text number {i} " + "word " * (i % 40) for i in range(10_000)]
    blank.drop_file("many.txt", "\n".join(lines))
    blank.until(lambda: blank.text("#status").startswith("10,000 texts, "), "not all answered")
    assert len(blank.rows()) == 200
    script = """
        const [id, value] = arguments, field = document.getElementById(id);
        const began = performance.now();
        field.value = value;
        field.dispatchEvent(new Event("input", {bubbles: true}));
        return new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(
            () => resolve(performance.now() - began))));
    """
    assert blank.js(script, "search", "number 9") < 1000
    blank.fill("#search", "")
    assert blank.text("#more-rows") == "Show 200 more (200 of 10,000 shown)"
    blank.click("#more-rows")
    assert len(blank.rows()) == 400
    assert blank.js("return document.activeElement.dataset.row") == "200"


def choose_set(page: Page, name: str) -> None:
    page.until(lambda: page.find("#label-set").is_displayed(), "no choice of label sets")
    page.find("#label-set").send_keys(name)


def test_a_label_set_of_the_server(blank, play):
    play("() => null")
    page = blank
    texts, labels = page.example()
    page.answered(texts, set(labels))
    page.set_threshold(0)
    choose_set(page, "tickets")
    page.answered(texts, set(SET_NAMES))
    sent = page.js("return seen.at(-1).body")
    assert sent["label_set"] == "tickets"
    assert "labels" not in sent
    assert [item.text for item in page.all("#set-labels li")] == SET_NAMES
    assert not page.all("#from-set input, #from-set textarea, #from-set b")
    assert page.text("#labels-count") == "3 labels"
    assert page.text("#set-facts") == "Fitted to 800 texts; trust: default."
    assert not page.find("#labels").is_displayed()
    assert not page.find("#add-label").is_displayed()
    assert all(f"{name}: " in page.text("#filter") for name in SET_NAMES)

    shown = page.column("label")
    assert '"label_set": "tickets"' in page.code("curl")
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(page.code("python"), "copied", "exec"), {})
    lines = printed.getvalue().splitlines()
    assert [line.startswith(label) for line, label in zip(lines, shown)] == [True] * len(texts)

    page.find("#label-set").send_keys("labels of your own")
    page.answered(texts, set(labels))
    assert page.find("#labels").is_displayed()
    assert not page.find("#from-set").is_displayed()
    assert page.example()[1] == labels


@pytest.mark.parametrize("token", ["", "of-a-server-that-wants-one"])
def test_the_report_of_a_label_set(page, token):
    choose_set(page, "tickets")
    page.answered(page.example()[0], {*SET_NAMES})
    page.js("if (arguments[0]) sessionStorage.setItem('token', arguments[0])", token)
    first = page.driver.current_window_handle
    page.click("#report")
    page.until(lambda: len(page.driver.window_handles) == 2, "no tab opens")
    try:
        page.driver.switch_to.window(page.driver.window_handles[1])
        page.until(lambda: page.driver.title == "Tickets", "no report")
        assert page.driver.current_url.startswith("blob:" if token else page.url)
        style = "return getComputedStyle(document.querySelector('p')).color"
        assert page.js(style) == "rgb(255, 0, 0)", "its styles are refused"
    finally:
        page.driver.close()
        page.driver.switch_to.window(first)


def test_a_real_report_looks_right_under_its_policy(blank):
    blank.driver.get(f"{blank.url}v1/label_sets/drawn/report")
    assert blank.driver.title == "Drawn"
    assert blank.js("return document.images[0].naturalWidth") > 0
    assert blank.js("return getComputedStyle(document.querySelector('td')).textAlign") == "left"
    assert blank.js("return document.querySelector('svg').getBoundingClientRect().width") > 100


def test_the_document_of_the_interface_works_under_its_policy(blank):
    blank.driver.get(f"{blank.url}docs")
    blank.until(lambda: len(blank.all(".opblock")) > 5, "no operations")
    blank.click("#operations-Server-health .opblock-summary-control")
    blank.until(lambda: blank.all(".try-out__btn"), "no button")
    blank.click(".try-out__btn")
    blank.until(lambda: blank.all(".execute"), "no button")
    blank.click(".execute")
    blank.until(lambda: '"status": "ok"' in blank.text("body"), "no answer")


def test_a_strange_script_does_not_run(blank):
    """One that got into the page, as by a fault of it, is refused."""
    blank.open()
    blank.js("""
        const script = document.createElement("script");
        script.textContent = "window.strange = true";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src=x: onerror='strange = true'>");
    """)
    blank.until(lambda: len(complaints(blank.driver)) >= 1, "nothing is refused")
    time.sleep(0.3)
    assert blank.js("return window.strange") is None
    complaints(blank.driver)


def test_a_label_set_by_keyboard_and_on_a_phone(page):
    page.resize(360, 800, mobile=True)
    page.until(lambda: page.find("#label-set").is_displayed(), "no choice of label sets")
    page.js("document.getElementById('file').focus()")
    focused = "return document.activeElement.id"
    for _ in range(3):
        page.press("Tab")
        if page.js(focused) == "label-set":
            break
    page.press(*"tick")
    page.answered(page.example()[0], {*SET_NAMES})
    options = ("several", "whole", "none-of-these", "sets")
    for wanted in ("set-labels", "report", *options, "run"):
        page.press("Tab")
        assert page.js(focused) == wanted
        outline = "return getComputedStyle(document.activeElement).outlineStyle"
        assert page.js(outline) != "none", f"{wanted}: focus is not visible"
    widths = page.js("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert widths == [360, 360]
    nodes = page.cdp("Accessibility.getFullAXTree")["nodes"]
    for node in nodes:
        if not node["ignored"] and node["role"]["value"] in ("combobox", "link", "list"):
            assert node["name"]["value"].strip() or node["role"]["value"] == "list", node


def test_label_sets_are_offered_by_the_models_that_have_them(blank, play):
    play("""
        ({path, body}, request, real, json) => path === "info"
            ? json(200, {models: [{id: "a"}, {id: "b", label_sets: {odd: {}}}], default_model: "a",
                         limits: {}})
            : path === "v1/label_sets"
            ? json(200, {data: [{id: "odd", labels: ["x", "y"], rows: 1, trust: "none",
                                 models: ["b"], report_page: false}]})
            : body.label_set && seen.length > 5
            ? json(404, {error: {message: "It is gone.", param: "label_set"}})
            : json(200, {data: body.texts.map((text, index) => ({index, score: 1,
                         scores: body.label_set ? {x: 1, y: 0} : {},
                         label: body.label_set ?? "-", truncated: false, error: null})),
                         usage: {embedded_texts: 0, cached_texts: 0}})
    """)
    blank.until(lambda: set(blank.column("label")) == {"-"}, "no answers of the default")
    assert not blank.find("#label-set").is_displayed()
    blank.find("#model").send_keys("b")
    choose_set(blank, "odd")
    blank.until(lambda: set(blank.column("label")) == {"odd"}, "no answers of the set")
    assert not blank.find("#report").is_displayed()
    blank.click("#run")
    blank.until(lambda: blank.text("#labels-error") == "It is gone.", "no word of the refusal")
    blank.find("#model").send_keys("a")
    blank.until(lambda: set(blank.column("label")) == {"-"}, "no answers with own labels")
    assert not blank.find("#label-set").is_displayed()
    assert blank.find("#labels").is_displayed()


def test_long_texts_are_read_whole_and_the_part_is_marked(page):
    dull = "The committee met again on Tuesday and agreed on the minutes. " * 25
    said = "The goalkeeper saved two penalties and the football team won the cup. " * 8
    texts = [f"😀 {dull}{said}{dull}".strip(), "A short text about football"]
    page.fill("#texts", "\n".join(texts))
    page.set_labels("football match", "cooking recipe")
    page.answered(texts, {"football match", "cooking recipe"})
    page.until(lambda: "only its beginning counts" in page.text("#rows"), "nothing is cut")
    page.click("#whole")
    page.until(lambda: page.all("#rows mark"), "no part is marked")
    assert "only its beginning counts" not in page.text("#rows")
    assert page.column("text") == texts
    assert page.column("label")[0] == "football match"
    (marked,) = [part.get_attribute("textContent") for part in page.all("#rows mark")]
    assert "goalkeeper" in marked
    assert len(marked) < len(texts[0]) / 3
    assert '"long_text": "chunk"' in page.code("curl")
    assert 'long_text="chunk"' in page.code("python")


def test_several_labels_a_text_are_shown_and_what_their_scores_mean(page):
    texts = ["The goalkeeper saved two penalties", "Bake the bread and watch the match"]
    page.fill("#texts", "\n".join(texts))
    page.set_labels("football match", "cooking recipe", "weather")
    page.answered(texts, {"football match", "cooking recipe", "weather"})
    assert "one right label" in page.text("#meaning")
    page.click("#several")
    page.until(lambda: "need not add up" in page.text("#meaning"), "not said what it means")
    page.set_threshold(0)
    page.until(lambda: len(page.all("#rows .several .best")) == 6, "not every label is shown")
    assert len(page.all("#rows .several .bar")) == 6
    page.set_threshold(1)
    assert not page.all("#rows .several"), "labels below the threshold are shown"
    assert page.column("label") == ["none", "none"]
    page.set_threshold(0.01)
    assert '"mode": "multi"' in page.code("curl")
    assert 'mode="multi"' in page.code("python")
    assert "found.labels" in page.code("python")


TREES = {
    "lines": "billing: invoices\n  refund: money: back\n  wrong invoice\n\n# later\npraise",
    "paths": "billing/refund: money back\nbilling / wrong invoice\npraise",
    "yaml": """
        billing: [refund, {wrong invoice: "it has errors, as in: VAT"}]
        delivery:
        - late: the order came late
        - lost: {synonyms: [never arrived, "gone: away"], examples: ['Where is it?']}
        'praise, thanks':
        """,
    "fields": """
        delivery:
          description: of parcels
          children:
            late:
              synonyms: [delayed]
              examples:
              - Still nothing
            lost:
        """,
    "objects": "- name: billing\n  children:\n  - name: refund\n    description: money\n- praise",
    "one line": "{billing: [refund, invoice], delivery: {late: it came late, lost: null}, praise}",
    "json": '[{"name": "billing", "children": ["refund", {"name": "in\\u0076oice"}]}, "praise"]',
}


@pytest.mark.parametrize("form", TREES)
def test_the_page_reads_trees_as_yaml_has_them(blank, form):
    blank.open()
    text = inspect.cleandoc(TREES[form])
    read = {"tree": blank.js("return readTree(arguments[0])", text)}
    wanted: Any = {"tree": yaml.safe_load(text)} if form not in ("lines", "paths") else {
        "lines": {"tree": [{"name": "billing", "description": "invoices", "children": [
            {"name": "refund", "description": "money: back"}, "wrong invoice"]}, "praise"]},
        "paths": {"tree": [{"name": "billing/refund", "description": "money back"},
                           "billing/wrong invoice", "praise"]},
    }[form]  # fmt: skip
    assert LabelTree.parse(read).fingerprint == LabelTree.parse(wanted).fingerprint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("billing: [refund, invoice", "line 1: “[” is not closed."),
        ("a\nb: [c: d] e", "line 2: “e” stands behind the end."),
        ("{a: [b], a: [c]}", "“a” stands twice."),
        ("{a: {b c: d e: f}}", "“,” or “}” is missing before"),
        ("[a, , b]", "a name is missing."),
        ("", "Give at least one label."),
        ("a\n  b\n  b", "the path 'a/b' stands twice"),  # the server's word
    ],
)
def test_a_tree_that_cannot_be_read(page, text, said):
    before = page.rows()
    page.js("document.getElementById('tree').value = arguments[0]", text or "x")
    page.click("#as-tree")
    page.fill("#tree", text)
    page.until(lambda: said in page.text("#labels-error"), said)
    assert not text or page.rows() == before


def test_a_tree_is_typed_and_answered_at_any_depth(page, tmp_path):
    texts, labels = page.example()
    page.click("#as-tree")
    leaves = {"delivery/late", "delivery/damaged", "billing/double charge", "billing/refund",
              "billing/wrong invoice", "technical problem", "praise"}  # fmt: skip
    inner = {"delivery", "billing"}
    page.set_threshold(0.35)
    page.answered(texts, leaves | inner)
    assert page.text("#labels-count") == "9 nodes"
    assert "sum of those below it" in page.text("#meaning")
    page.set_threshold(0)
    page.answered(texts, leaves)
    ways = page.js("return answers.rows.map(({path}) => path.map(({score}) => score))")
    above, below = max((way for way in ways if len(way) > 1), key=lambda way: way[0] - way[1])
    page.set_threshold(round((above + below) / 2, 2))
    stopped = inner & set(page.column("label"))
    assert stopped, "the test needs a text that is answered at an inner node"
    assert all(f"{name}: " in page.text("#filter") for name in leaves | stopped)
    at = next(i for i, name in enumerate(page.column("label")) if name in inner)
    label = "return document.querySelectorAll('#rows td.c-label')[arguments[0]].innerText"
    shown = page.js(label, at)
    name, way = shown.split("\n")[:2]
    assert re.fullmatch(rf"{name} 0\.\d\d › [a-z ]+ 0\.\d\d", way)
    assert page.column("score")[at] in way
    page.js("document.querySelectorAll('#rows button')[arguments[0]].click()", at)
    assert len(page.all(".levels li")) == 2
    assert len(page.all(".leaves li")) == 7

    rows = page.download(tmp_path, "texts-classified.csv")
    assert rows[at]["label"] == name
    assert re.fullmatch(rf"{name} 0\.\d\d; {name}/[a-z ]+ 0\.\d\d", rows[at]["path"])
    assert f"score: {sorted(leaves)[0]}" in rows[at]
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(page.code("python"), "copied", "exec"), {})
    lines = [line.replace("None", "none", 1) for line in printed.getvalue().splitlines()]
    assert all(line.startswith(label) for line, label in zip(lines, page.column("label")))
    page.click("#as-tree")
    page.answered(texts, set(labels))
    assert page.example()[1] == labels


def test_none_of_these_sets_and_why(page, tmp_path):
    texts = ["The parcel came late", "A recipe for bread with olives", "The vase is broken"]
    page.fill("#texts", "\n".join(texts))
    page.set_labels("late delivery", "broken goods")
    page.click(".label:nth-child(1) .toggle")
    page.fill(".examples", "My parcel is late\nStill nothing came", 0)
    page.set_threshold(0)
    page.answered(texts, {"late delivery", "broken goods"})
    assert not page.find("#none-threshold").is_displayed()
    page.click("#none-of-these")
    page.until(lambda: "No label fits:" in page.text("#meaning"), "not said what it means")
    page.until(page.up_to_date, "no answers")
    said = page.js(
        "return [...document.querySelectorAll('.c-score .quiet')].map((n) => n.textContent)"
    )
    scores = [float(line.removeprefix("no label fits ")) for line in said]
    assert max(scores) == scores[1]
    between = sorted(scores)[1:]
    page.fill("#none-threshold", f"{sum(between) / 2:.3f}")
    page.until(page.up_to_date, "no answers")
    assert [label == "none" for label in page.column("label")] == [False, True, False]
    page.fill("#none-threshold", "2")
    page.until(lambda: "from 0 to 1" in page.text("#run-error"), "no word of it")
    page.fill("#none-threshold", "0.99")
    page.until(lambda: not page.text("#run-error"), "the word stays")

    page.click("#sets")
    page.fill("#cut", "0")
    page.until(lambda: len(page.all("#rows .several .bar")) == 6, "not every label is shown")
    assert "coverage" in page.text("#meaning")
    rows = page.download(tmp_path, "texts-classified.csv")
    assert {"late delivery", "broken goods"} == set(rows[0]["labels"].split("; "))
    assert float(rows[1]["none_score"]) == pytest.approx(scores[1], abs=0.006)
    assert '"coverage_cut": 0' in page.code("curl")
    assert "none_of_these=True" in page.code("python")
    page.click("#sets")
    page.until(lambda: not page.all("#rows .several"), "sets are still shown")

    page.click("#rows button")
    page.click(".ask-why")
    page.until(lambda: page.all(".why"), "no reasons")
    why = page.text(".why")
    assert page.text(".why li").startswith("“My parcel is late” similarity 0.")
    assert re.search(r"Strongest competitor: broken goods, 0\.\d\d\.", why)
    page.click("#several")
    page.until(lambda: "need not add up" in page.text("#meaning"), "no other mode")
    page.until(page.up_to_date, "no answers")
    assert not page.find("#sets").is_enabled()
    assert "no label fits 0." in page.text("#rows")
    assert not page.all(".ask-why")
