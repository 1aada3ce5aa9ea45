"""The house: which room may import which, how large a file may be, where the engines stand.

Imports are read as text, those in functions and under TYPE_CHECKING included.
"""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    {"errors"},
    {"storage", "labels"},
    {"config", "model"},
    {"embedding", "datasets"},
    {"predictor", "client", "training", "adaptation", "evaluation"},
    {"baselines", "bulk"},
    {"distributed"},
    {"workflows", "serve"},
    {"jobs"},
]
"""A room may import those of the steps before its own, and itself."""
STEP = {room: step for step, rooms in enumerate(ORDER) for room in rooms}
ENGINES = {"ray": {"distributed", "serve", "jobs"}, "mlflow": {"workflows"}, "fastapi": {"serve"}}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in ("sce", "serve", "jobs")
    for path in sorted((ROOT / top).rglob("*.py"))
}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "sce" and len(parts) > 1 else parts[0]


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports: ours as the file that is meant, others as they are named."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in names}
    return found


IMPORTS = {module: imports_of(path) - {module} for module, path in FILES.items()}


@pytest.mark.parametrize("module", FILES)
def test_a_room_imports_only_what_stands_before_it(module):
    room = room_of(module)
    for target in IMPORTS[module]:
        engine = target.split(".")[0]
        assert room in ENGINES.get(engine, {room}), f"{engine} has no place in {room}"
        if target in FILES and room_of(target) != room:
            assert STEP[room_of(target)] < STEP[room], f"{room} may not import {target}"


def test_no_import_goes_in_a_circle():
    ours = {module: {t for t in targets if t in FILES} for module, targets in IMPORTS.items()}
    try:
        TopologicalSorter(ours).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_files_and_functions_can_be_read():
    for path in FILES.values():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno + 1 <= 80, f"{path}: {node.name}"


def test_the_rooms_are_few():
    loose = [p for p in (ROOT / "sce").glob("*.py") if p.name != "__init__.py"]
    assert len(loose) <= 6
    assert len([p for p in (ROOT / "sce").iterdir() if (p / "__init__.py").is_file()]) <= 12


def test_the_predictor_loads_no_engine_and_jobs_load_no_peft():
    code = (
        "import sys, sce.predictor\n"
        "assert not {'ray', 'mlflow', 'fastapi'} & set(sys.modules), 'an engine was imported'\n"
        "import sce.workflows.train, sce.workflows.classify, sce.distributed.embed\n"
        "assert not {'peft', 'bitsandbytes'} & set(sys.modules), 'seconds, and a warning'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_gateway_and_workers_that_read_and_write_load_no_torch():
    code = (
        "import sys, serve.gateway, sce.distributed.block_io, sce.bulk.counts\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'each would take 200 MB more'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
