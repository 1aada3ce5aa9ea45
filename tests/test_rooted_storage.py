"""Places below a root: nothing outside is read, written or deleted, whatever is linked there."""

import json
import os
import pickle
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from sce.embedding.store import MANIFEST, EmbeddingStore
from sce.errors import DataError
from sce.storage import (
    RemotePath,
    filesystem_of,
    open_input,
    put,
    readable,
    remove,
    replace_folder,
    rooted_place,
    to_place,
    write_text,
)


@pytest.fixture
def root(tmp_path) -> Path:
    """A root with a space in its name, and beside it what must not be reached."""
    (tmp_path / "a root").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x.csv").write_text("password\nhunter2\n")
    return tmp_path / "a root"


def below(root: Path, inside: str = "") -> RemotePath:
    found = to_place(rooted_place(f"{root}/{inside}", [str(root)]))
    assert isinstance(found, RemotePath)
    return found


def secrets(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (root.parent / "secret").iterdir()}


def test_a_rooted_place_reads_and_writes_as_a_path(root):
    place = below(root, "new/folder/a #1?.txt")
    assert not place.exists()
    write_text(place, "ü")
    write_text(place, "ü2")
    assert (root / "new/folder/a #1?.txt").read_text() == place.read_text() == "ü2"
    assert place.is_file()
    assert place.parent.is_dir()
    assert [p.name for p in place.parent.iterdir()] == ["a #1?.txt"]
    assert pickle.loads(pickle.dumps(filesystem_of(place))) == filesystem_of(place)
    assert readable(f"{str(place)!r} there") == f"{str(root / 'new/folder/a #1?.txt')!r} there"
    assert below(root).exists()
    (root.parent / "one.txt").write_text("1")
    put(root.parent / "one.txt", below(root, "put/one.txt"))
    assert open_input(below(root, "put/one.txt")).read() == b"1"
    with replace_folder(below(root, "put"), "last.json") as folder:
        (folder / "last.json").write_text("{}")
    assert [path.name for path in (root / "put").iterdir()] == ["last.json"]
    place.unlink()
    remove(below(root, "put"))
    assert [path.name for path in root.rglob("*")] == ["new", "folder"]


def test_a_root_that_is_not_there_yet_is_made_when_it_is_written_to(tmp_path):
    place = to_place(rooted_place(f"{tmp_path}/new/out/a.txt", [f"{tmp_path}/new"]))
    assert not place.parent.parent.exists()
    assert not place.is_file()
    place.check("output")
    write_text(place, "a")
    assert (tmp_path / "new/out/a.txt").read_text() == "a"


def test_what_lies_below_no_root_is_refused(root):
    roots = [str(root), "s3://bucket/texts"]
    for place in (root.parent, f"{root}x", f"{root}/../secret", "s3://bucket/textsx/a", "s3://b/c"):
        with pytest.raises(DataError, match="does not lie below"):
            rooted_place(str(place), roots)
    assert rooted_place("s3://bucket/texts/a", roots) == "s3://bucket/texts/a"
    assert readable(rooted_place("/etc/x", ["/"])) == "/etc/x"
    assert to_place(rooted_place("/tmp", ["/"])).is_dir()
    with pytest.raises(DataError, match=r"'\.\.' cannot be"):
        below(root) / ".." / "secret"


def test_links_pipes_and_devices_are_refused_where_they_are_opened(root):
    (root / "x.csv").symlink_to(root.parent / "secret" / "x.csv")
    (root / "folder").symlink_to(root.parent / "secret")
    os.mkfifo(root / "pipe")
    for inside in ("x.csv", "folder/x.csv"):
        for work in (
            lambda place: open_input(place),
            lambda place: place.read_text(),
            lambda place: filesystem_of(place)[0].open_output_stream(filesystem_of(place)[1]),
        ):
            with pytest.raises(DataError, match=r"is a link, and links below .* are not followed"):
                work(below(root, inside))
    with pytest.raises(DataError, match="is a link"):
        write_text(below(root, "folder/new.txt"), "written")
    with pytest.raises(DataError, match="not a regular file"):
        open_input(below(root, "pipe"))
    with pytest.raises(DataError, match="not a regular file"):
        open_input("/dev/zero")
    with pytest.raises(DataError, match="not a regular file"):
        open_input(root / "pipe")
    write_text(below(root, "x.csv"), "takes the link's place")
    remove(below(root, "folder"))
    assert secrets(root) == {"x.csv": "password\nhunter2\n"}
    assert (root / "x.csv").read_text() == "takes the link's place"


def test_a_folder_that_is_swapped_for_a_link_all_the_while_leads_nowhere(root):
    """Another process makes the folder a link and a folder again, as fast as it can."""
    (root / "in").mkdir()
    (root / "in" / "x.csv").write_text("text\nmine\n")
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            shutil.rmtree(root / "in", ignore_errors=True)
            with suppress(OSError):
                (root / "in").symlink_to(root.parent / "secret")
                (root / "in").unlink()
                (root / "in").mkdir()
                (root / "in" / "x.csv").write_text("text\nmine\n")

    thread = threading.Thread(target=swap)
    thread.start()
    read, refused = set(), 0
    try:
        for _ in range(3000):
            try:
                read.add(open_input(below(root, "in/x.csv")).read())
                write_text(below(root, "in/y.csv"), "written")
            except (DataError, OSError):
                refused += 1
    finally:
        over.set()
        thread.join()
    assert read <= {b"", b"text\nmine\n"}
    assert refused
    assert secrets(root) == {"x.csv": "password\nhunter2\n"}


def test_a_root_is_listed_without_what_links_lead_to(root):
    (root / "folder").symlink_to(root.parent / "secret")
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "c.txt").write_text("c")
    files, path = filesystem_of(below(root))
    found = files.get_file_info(pafs.FileSelector(path, recursive=True))
    kinds = {info.path: info.type for info in found}
    assert kinds == {
        "a": pafs.FileType.Directory,
        "a/b": pafs.FileType.Directory,
        "a/b/c.txt": pafs.FileType.File,
        "folder": pafs.FileType.Unknown,
    }
    with pytest.raises(DataError, match="is a link"):
        files.get_file_info(pafs.FileSelector("folder"))


@pytest.mark.parametrize(
    "part",
    ["../secret/other.parquet", "/etc/passwd", "a/../../x.parquet", "part-1/../x.parquet", 7],
)
def test_a_manifest_names_files_of_its_folder_alone(tmp_path, part):
    (tmp_path / "secret").mkdir()
    pq.write_table(pa.table({"row_id": ["1"]}), tmp_path / "secret" / "other.parquet")
    store = tmp_path / "store"
    store.mkdir()
    about = {
        "embedder": {"id": "x"}, "source": "s", "rows": 1, "truncated": 0, "embed_seconds": 1.0,
        "texts_per_second": 1.0, "created": "now", "parts": [part], "format_version": 1,
    }  # fmt: skip
    (store / MANIFEST).write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"a part is no file of this folder|damaged, at parts\.0"):
        EmbeddingStore.open(store)
    (store / MANIFEST).write_text(json.dumps(about | {"parts": ["part-00000_x_000000.parquet"]}))
    assert EmbeddingStore.open(store).paths == [str(store / "part-00000_x_000000.parquet")]
