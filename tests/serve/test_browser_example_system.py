"""jobs/examples/browser.html in a browser: a page of another origin asks the endpoint, where its
origin is named."""

import functools
import json
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobs.benchmarks.serve import serve_app
from tests.serve.conftest import settings_of

EXAMPLES = Path(__file__).resolve().parents[2] / "jobs" / "examples"
SECONDS = 60

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def pages():
    """The port of a server of the examples' folder."""
    handler = functools.partial(Quiet, directory=str(EXAMPLES))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def asked(driver, page: str, url: str) -> str:
    """What the page says after a click."""
    driver.get(page)
    driver.execute_script("document.querySelector('[name=url]').value = arguments[0]", url)
    driver.find_element("css selector", "button").click()
    deadline = time.monotonic() + SECONDS
    while (said := driver.find_element("css selector", "output").text) in ("", "..."):
        assert time.monotonic() < deadline, "no answer"
        time.sleep(0.1)
    return said


def test_a_named_origin_is_answered_and_another_is_not(models, pages, driver, tmp_path):
    model = json.loads(settings_of(models).model_dump_json(exclude={"scaling"}))
    settings = {"models": {"tiny": model}, "cors_origins": [f"http://127.0.0.1:{pages}"]}
    with serve_app(tmp_path, settings) as url:
        said = asked(driver, f"http://127.0.0.1:{pages}/browser.html", url)
        label, _, score = said.rstrip(")").rpartition(" (")
        assert label in ("logistics", "accounting", "technicians", "a person")
        assert 0 < float(score) <= 1
        assert asked(driver, f"http://localhost:{pages}/browser.html", url) == "Failed to fetch"
