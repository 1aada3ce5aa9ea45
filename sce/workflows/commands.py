"""The command `sce`: the jobs and the server from any folder, after `pip install`.

    sce --help
    sce train --config quickstart
    sce classify --model runs/quickstart/model --input tickets/ --labels '["billing"]' --output out

A command calls `main` of a file of `jobs/`, or of the server: `sce classify` and
`python jobs/classify.py` are one program. Without the command: `python -m sce.workflows.commands`.
"""

from __future__ import annotations

import ast
import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from sce.config import VERSION
from sce.storage.recipes import shipped_folder

SERVER = "serve.app"
COMMANDS = {
    "train": "train_sce",
    "evaluate": "evaluate",
    "classify": "classify",
    "adapt": "adapt",
    "tune": "tune",
    "embed": "embed",
    "serve": SERVER,
    "compare": "compare",
    "ablate": "ablate",
    "prepare": "prepare_data",
    "train-llama": "train_llama",
}
"""What `sce NAME` runs: a file of `jobs/`, or the server's module."""
_EPILOGUE = """\
sce COMMAND --help lists the settings of one: each is a flag, a YAML key of
--config, and a variable. --config takes a file, or the name of a recipe that
ships, such as quickstart. A command's last line is JSON; exit code 0 is done, 1
failed, 2 wrong input, 130 Ctrl+C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if name in ("-V", "--version"):
        print(f"sce {VERSION}")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f" Do you mean {close[0]!r}?" if close else ""
        print(f"sce: no command {name!r}.{hint} Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if COMMANDS[name] == SERVER and (found := _other_server()) is not None:
        print(
            f"sce serve: {found} would be loaded by Ray's workers in place of this server's "
            "package of that name. Start it in another folder.",
            file=sys.stderr,
        )
        return 2
    before, sys.argv = sys.argv, [f"sce {name}", *rest]
    try:
        return int(_load(name).main())
    finally:
        sys.argv = before


def _load(name: str) -> Any:
    if COMMANDS[name] == SERVER:
        return import_module(SERVER)
    spec = spec_from_file_location(f"sce_{COMMANDS[name]}", source_of(name))
    assert spec is not None
    assert spec.loader is not None
    job = module_from_spec(spec)
    spec.loader.exec_module(job)
    return job


def help_text() -> str:
    """The commands with a line each, the first of what they say of themselves."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {title(name)}" for name in COMMANDS]
    head = "usage: sce COMMAND [settings]\n\nClassify texts with labels that you make up."
    return "\n".join([head, "", *lines, "", _EPILOGUE])


def title(name: str) -> str:
    """What a command does, in a line: read from its source, so that nothing is imported."""
    doc = ast.get_docstring(ast.parse(source_of(name).read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]


def source_of(name: str) -> Path:
    """The file that a command runs."""
    if COMMANDS[name] == SERVER:
        spec = find_spec(SERVER)
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin)
    return shipped_folder("jobs") / f"{COMMANDS[name]}.py"


def _other_server() -> Path | None:
    """A module of the working folder that has the name of the server's package: workers look
    there first."""
    ours = source_of("serve").parent
    for path in (Path("serve.py"), Path("serve/__init__.py")):
        if path.is_file() and not os.path.samefile(path.absolute().parent, ours):
            return path.absolute()
    return None


if __name__ == "__main__":
    sys.exit(main())
