"""Files of requests and their batches in OpenAI's form. That OpenAI's own client takes them is
tried by hand: it is none of the packages that tests install."""

import fcntl
import json
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sce.errors import ConfigError
from serve import file_batches
from serve.auth import Guard
from serve.files import check_files_root
from serve.ingress import Ingress
from serve.routes import make_app
from serve.settings import BatchSettings
from tests.serve.conftest import make_engine
from tests.serve.test_gateway import LABELS, LIMITS, TEXTS, TOKEN, LocalPort, refusal

OTHER = "another-token-that-is-long"
FINAL = ("completed", "failed", "cancelled")


@pytest.fixture
def port(with_sets) -> LocalPort:
    return LocalPort(make_engine(with_sets))


@pytest.fixture
def ingress(port, tmp_path) -> Ingress:
    ingress = Ingress({"tiny": port}, Guard(map(Guard.digest, (TOKEN, OTHER))), LIMITS)
    ingress.files.settings = BatchSettings(
        files_root=str(tmp_path / "files"), max_file_bytes=50_000, max_files_bytes=100_000
    )
    ingress.file_batches.max_line_bytes = LIMITS.max_body_bytes
    return ingress


@pytest.fixture
def client(ingress):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(make_app(ingress), headers=headers, raise_server_exceptions=False) as client:
        yield client


def line(name: str, url: str = "/v1/classify", **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def upload(client, content: bytes | list[dict[str, Any]], **fields: str):
    if not isinstance(content, bytes):
        content = b"".join(json.dumps(each).encode() + b"\n" for each in content)
    file = {"file": ("requests.jsonl", content, "application/jsonl")}
    return client.post("/v1/files", data={"purpose": "batch"} | fields, files=file)


def start(client, lines: bytes | list[dict[str, Any]], endpoint: str = "/v1/classify"):
    body = {"input_file_id": upload(client, lines).json()["id"], "endpoint": endpoint}
    return client.post("/v1/batches", json=body | {"completion_window": "24h"})


def ended(client, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while (batch := client.get(f"/v1/batches/{name}").json())["status"] not in FINAL:
        assert time.monotonic() < deadline, batch
        time.sleep(0.01)
    return batch


def lines_of(client, file: str | None) -> list[dict[str, Any]]:
    response = client.get(f"/v1/files/{file}/content")
    assert response.status_code == 200, response.text
    return [json.loads(each) for each in response.content.splitlines()]


def test_every_line_is_answered_as_its_route_answers_it(client):
    lines = [line(f"text {i}", texts=[text], labels=LABELS) for i, text in enumerate(TEXTS)]
    lines.append(line("set", texts=TEXTS, label_set="tickets", top_k=2))
    lines.append(line("wrong", texts=TEXTS, labels=["x", "x"]))
    begun = start(client, lines).json()
    assert begun["status"] == "validating"
    batch = ended(client, begun["id"])
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 5, "completed": 4, "failed": 1}
    found = lines_of(client, batch["output_file_id"])
    assert [each["custom_id"] for each in found] == ["text 0", "text 1", "text 2", "set"]
    for each, asked in zip(found, lines):
        direct = client.post("/v1/classify", json=asked["body"]).json()["data"]
        assert each["response"]["status_code"] == 200
        for row, one in zip(each["response"]["body"]["data"], direct, strict=True):
            assert row["label"] == one["label"]
            assert row["score"] == pytest.approx(one["score"], abs=2e-5)
    [failed] = lines_of(client, batch["error_file_id"])
    assert failed["custom_id"] == "wrong"
    assert failed["response"]["status_code"] == 422
    assert failed["response"]["body"]["error"]["code"] == "invalid_labels"
    assert [each["id"] for each in client.get("/v1/batches").json()["data"]] == [batch["id"]]
    outputs = {batch["output_file_id"], batch["error_file_id"]}
    files = {file["id"]: file["purpose"] for file in client.get("/v1/files").json()["data"]}
    assert files == {batch["input_file_id"]: "batch"} | dict.fromkeys(outputs, "batch_output")


def test_vectors_of_a_file(client):
    lines = [line("a", "/v1/embeddings", input=TEXTS, encoding_format="base64")]
    batch = ended(client, start(client, lines, "/v1/embeddings").json()["id"])
    [found] = lines_of(client, batch["output_file_id"])
    direct = client.post("/v1/embeddings", json=lines[0]["body"]).json()["data"]
    assert found["response"]["body"]["data"] == direct
    assert batch["error_file_id"] is None


@pytest.mark.parametrize(
    ("content", "code", "place"),
    [
        (b"", "empty_file", None),
        (b"\n\n", "empty_file", None),
        (b'{"custom_id": "a"\n', "invalid_json_line", 1),
        (b"\xff\xfe\n", "invalid_json_line", 1),
        ([line("a", texts=["x"], labels=["y"]), {"custom_id": "b"}], "invalid_request", 2),
        ([line("a"), line("a")], "duplicate_custom_id", 2),
        ([line("a", "/v1/embeddings")], "mismatched_url", 1),
        ([line("")], "invalid_request", 1),
        ([line("a", texts=["x" * 30_000])], "line_too_long", 1),
        (
            b'{"custom_id": "a", "method": "POST", "url": "/v1/classify", '
            b'"body": {"texts": "x", "labels": {"y": "one", "y": "two"}}}\n',
            "invalid_json_line", 1,
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_requests(client, content, code, place):
    batch = ended(client, start(client, content).json()["id"])
    assert batch["status"] == "failed"
    assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
    problem = batch["errors"]["data"][0]
    assert (problem["code"], problem["line"]) == (code, place)
    assert problem["message"]


def test_another_token_finds_nothing(client):
    batch = ended(client, start(client, [line("a", texts=["x"], labels=["y"])]).json()["id"])
    with TestClient(client.app, headers={"Authorization": f"Bearer {OTHER}"}) as other:
        for file in (batch["input_file_id"], batch["output_file_id"], "file-../x", "no"):
            for path in (f"/v1/files/{file}", f"/v1/files/{file}/content"):
                assert refusal(other.get(path), 404)["code"] in (
                    "file_not_found",
                    "route_not_found",
                )
            assert other.delete(f"/v1/files/{file}").status_code == 404
        body = {"input_file_id": batch["input_file_id"], "endpoint": "/v1/classify"}
        refusal(other.post("/v1/batches", json=body), 404)
        refusal(other.get(f"/v1/batches/{batch['id']}"), 404)
        refusal(other.post(f"/v1/batches/{batch['id']}/cancel"), 404)
        assert other.get("/v1/files").json()["data"] == []
        assert other.get("/v1/batches").json()["data"] == []
    with TestClient(client.app) as stranger:
        assert stranger.get("/v1/files").status_code == 401


def test_only_its_user_reads_the_folder(client, ingress):
    batch = ended(client, start(client, [line("a", texts=["x"], labels=["y"])]).json()["id"])
    root = Path(ingress.files.settings.files_root or "")
    for path in [root, *root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert TOKEN not in "".join(map(str, root.rglob("*")))
    kinds = {path.suffix for path in root.rglob("*") if path.is_file()}
    assert kinds == {".json", ".data"}
    for file in (batch["input_file_id"], batch["output_file_id"]):
        found = client.delete(f"/v1/files/{file}").json()
        assert found == {"id": file, "object": "file", "deleted": True}
        refusal(client.get(f"/v1/files/{file}"), 404)
        refusal(client.delete(f"/v1/files/{file}"), 404)
    assert not list(root.rglob("*.data"))


def test_limits_of_files(client, ingress):
    error = refusal(upload(client, b"x" * 50_001), 413)
    assert (error["code"], error["param"]) == ("limit_exceeded", "max_file_bytes")
    error = refusal(upload(client, b"x" * 200_000), 413)
    assert error["param"] in ("max_file_bytes", "max_files_bytes")
    assert upload(client, b"x" * 50_000).status_code == 200
    assert upload(client, b"x" * 30_000).status_code == 200
    error = refusal(upload(client, b"x" * 20_000), 413)
    assert (error["code"], error["param"]) == ("limit_exceeded", "max_files_bytes")
    content = iter([b"--b\r\n", b"x" * 20_000])  # without a length before it
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    error = refusal(client.post("/v1/files", content=content, headers=form), 413)
    assert error["param"] == "max_files_bytes"
    error = refusal(upload(client, b"x", purpose="fine-tune"), 422)
    assert error["param"] == "purpose"
    refusal(client.post("/v1/files", json={}), 415)
    wrong = {"Content-Type": "multipart/form-data; boundary=b"}
    for content in (b"", b"--b", b"--b\r\nx", b"--c\r\n\r\n\r\n--c--", b"--b--"):
        assert refusal(client.post("/v1/files", content=content, headers=wrong), 422)
    root = Path(ingress.files.settings.files_root or "")
    assert len(list(root.rglob("*.data"))) == len(list(root.rglob("*.json"))) == 2
    assert not list(root.rglob("*.part"))
    assert (ingress._requests, ingress._bytes) == (0, 0)


def test_a_file_comes_back_as_it_was_sent(client):
    content = b'{"a": "\xc3\xa4"}\r\n--boundary\r\n\r\n\x00\xff\n\n'
    file = upload(client, content).json()
    assert (file["bytes"], file["filename"]) == (len(content), "requests.jsonl")
    assert client.get(f"/v1/files/{file['id']}").json() == file
    assert client.get(f"/v1/files/{file['id']}/content").content == content


def test_answers_that_find_no_room_end_a_batch_with_a_word(client, ingress):
    lines = [line(f"{i}", texts=TEXTS, labels=LABELS, return_scores=True) for i in range(200)]
    batch = ended(client, start(client, lines[:130]).json()["id"])
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["code"] == "limit_exceeded"
    assert "max_files_bytes" in batch["errors"]["data"][0]["message"]
    assert 0 < len(lines_of(client, batch["output_file_id"])) < 130


def test_a_batch_is_stopped_and_keeps_its_answers(client, port, monkeypatch):
    monkeypatch.setattr(file_batches, "WINDOW", 1)
    port.hold = threading.Event()
    lines = [line(f"{i}", texts=["x"], labels=["y"]) for i in range(3)]
    begun = start(client, lines).json()
    refused = client.post("/v1/batches", json={k: begun[k] for k in ("input_file_id", "endpoint")})
    assert refusal(refused, 429)["param"] == "max_running"
    error = refusal(client.delete(f"/v1/files/{begun['input_file_id']}"), 409)
    assert error["code"] == "file_in_use"
    stopping = client.post(f"/v1/batches/{begun['id']}/cancel").json()
    assert stopping["status"] == "cancelling"
    port.hold.set()
    batch = ended(client, begun["id"])
    assert batch["status"] == "cancelled"
    assert batch["request_counts"]["completed"] < 3
    assert client.post(f"/v1/batches/{begun['id']}/cancel").json() == batch
    assert client.delete(f"/v1/files/{begun['input_file_id']}").status_code == 200


def test_another_gateway_goes_on_where_one_ended(client, ingress, with_sets, monkeypatch):
    """What a process leaves that is killed: a batch under way, two answers and half of a third."""
    lines = [line(f"{i}", texts=["x"], labels=["y", "z"]) for i in range(5)]
    name = start(client, lines).json()["id"]
    whole = ended(client, name)
    folder = next(Path(ingress.files.settings.files_root or "").iterdir())
    output = folder / f"{whole['output_file_id']}.data"
    answers = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(answers[:2]) + answers[2][:40])
    (folder / f"{whole['output_file_id']}.json").unlink()
    left = whole | {"status": "in_progress", "completed_at": None, "output_file_id": None}
    (folder / f"{name}.json").write_text(json.dumps(left))

    later = Ingress({"tiny": LocalPort(make_engine(with_sets))}, ingress.guard, LIMITS)
    later.files.settings = ingress.files.settings
    with TestClient(make_app(later), headers=client.headers) as second:
        with (folder / f"{name}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # as if the first were alive
            assert second.get(f"/v1/batches/{name}").json()["status"] == "in_progress"
            time.sleep(0.05)
            assert second.get(f"/v1/batches/{name}").json()["status"] == "in_progress"
        found = ended(second, name)
        assert found["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
        assert found["output_file_id"] == whole["output_file_id"]
        ids = [each["custom_id"] for each in lines_of(second, found["output_file_id"])]
    assert ids == ["0", "1", "2", "3", "4"]
    assert output.read_bytes().splitlines(keepends=True)[:2] == answers[:2]


def test_a_line_whose_model_is_away_is_asked_again(client, ingress, monkeypatch):
    monkeypatch.setattr(file_batches, "MOST_WAIT_SECONDS", 0.01)
    port, tries = ingress.models["tiny"], []
    real = port.answer

    async def away_at_first(request):
        tries.append(1)
        if len(tries) < 3:
            raise file_batches.ApiError(503, "model_unavailable", "no")
        return await real(request)

    monkeypatch.setattr(port, "answer", away_at_first)
    batch = ended(client, start(client, [line("a", texts=["x"], labels=["y"])]).json()["id"])
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 1)
    assert len(tries) == 3


def test_without_a_folder_the_refusal_says_which_setting(client, ingress):
    ingress.files.settings = BatchSettings()
    body = {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    for response in (client.post("/v1/batches", json=body), upload(client, b"x")):
        error = refusal(response, 403)
        assert error["code"] == "files_disabled"
        assert "batches.files_root" in error["message"]
    assert client.get("/info").json()["files"] is False


def test_a_folder_that_cannot_be_used_is_refused_at_the_start(tmp_path):
    check_files_root(BatchSettings(files_root=str(tmp_path / "new" / "one")))
    assert stat.S_IMODE((tmp_path / "new" / "one").stat().st_mode) == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "file").touch()
    for root, said in (
        ("relative", "no absolute path"),
        (str(tmp_path / "open"), "may be written by others"),
        (str(tmp_path / "file"), "cannot be used"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_files_root(BatchSettings(files_root=root))
