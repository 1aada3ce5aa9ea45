"""The arrows between the rooms: the core never imports Ray, MLflow or a web framework."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RIM = {"sce/tracking.py", "sce/experiment.py", "sce/pipeline.py", "sce/measure.py", "sce/paper.py"}
RIM |= {"sce/llama_pipeline.py", "sce/contenders.py"}
RIM |= {f"sce/comparison/{name}.py" for name in ("runs", "view", "job")}
ENGINES = {"ray", "mlflow", "fastapi", "starlette"}
CORE = sorted(
    path
    for path in (ROOT / "sce").rglob("*.py")
    if str(path.relative_to(ROOT)) not in RIM and "distributed" not in path.parts
)


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_neither_engine_nor_rim(path):
    found = imported(path)
    assert not {name for name in found if name.split(".")[0] in ENGINES}
    rim = {r.removesuffix(".py").replace("/", ".") for r in RIM}
    assert not {n for n in found if n in rim or n.startswith("sce.distributed")}
    assert not {n for n in found if n.split(".")[0] in ("jobs", "serve")}


def test_the_predictor_loads_without_ray_and_mlflow():
    code = (
        "import sys, sce.predictor\n"
        "assert not {'ray', 'mlflow', 'fastapi'} & set(sys.modules), 'an engine was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_jobs_that_ask_no_language_model_do_not_load_what_it_needs():
    code = (
        "import sys, sce.pipeline, sce.distributed.classify, sce.distributed.embed_corpus\n"
        "assert not {'peft', 'bitsandbytes'} & set(sys.modules), 'seconds, and a warning'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_gateway_loads_without_torch():
    code = (
        "import sys, serve.deployment\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'it would take 200 MB more'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_ray_workers_that_read_and_write_load_no_torch():
    code = (
        "import sys, sce.distributed.block_io, sce.bulk.meter\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'each would take 100 MB more'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
