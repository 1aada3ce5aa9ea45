"""One mechanism for every setting: a YAML file, then the environment, then the command line.

A setting `train.batch_size` is the YAML key `train: {batch_size: 3}`, the environment variable
`SCE_TRAIN__BATCH_SIZE=3` and the flag `--train.batch-size 3`; the later of the three wins. Unknown
keys are refused wherever they stand.

What several files share stands in one, which the others name at their top: `include: [data.yaml]`.
An included file lies beside the one that names it, and the including one wins, key by key.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError

from sce.errors import HIDDEN, ConfigError, without_secrets
from sce.storage import Place, RemotePath, to_place
from sce.storage.cache import CACHE_BYTES
from sce.storage.recipes import read_settings

log = logging.getLogger(__name__)

VERSION = "0.1.0"
"""The version of this software."""
ENV_PREFIX = "SCE_"
MAX_ERRORS_SHOWN = 20
DASHBOARD = f"{ENV_PREFIX}DASHBOARD"
"""Of the environment: set where a job was asked for Ray's dashboard, however it was asked."""
SECRETS = ("SCE_TOKENS", "SCE_TOKENS_FILE", "SCE_ENDPOINT_TOKEN")
"""They belong into a machine's environment, where others' programs find them as well."""


def forget_secrets() -> None:
    """Take the secrets out of this process's environment, once the settings are read: whatever it
    starts would inherit them, and keep them where others can look."""
    for name in list(os.environ):
        if name.upper() in SECRETS and not name.upper().endswith("_FILE"):
            del os.environ[name]


class Section(BaseModel):
    """Base of one group of settings. Frozen, unknown keys refused, docstrings become help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _whole_above_one(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("a part of a GPU, or whole GPUs: Ray gives no others")
    return gpus


Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole_above_one)]
"""How many GPUs one actor has."""


def _quoted(umask: Any) -> Any:
    if isinstance(umask, int):
        raise ValueError('write it in quotes, umask: "022": YAML reads 022 as 18, and 22 as 22')
    return umask


Umask = Annotated[str, Field(pattern="^0{1,2}[0-7]{2}$"), BeforeValidator(_quoted)]
"""In octal digits; the owner may do everything."""


class JobConfig(BaseSettings):
    """Base of a job's whole configuration. Build it with `load_config`."""

    # Left out of every dump: who may read an output is no part of what it is.
    umask: Umask = Field("077", exclude=True)
    """Who may not read what is written (outputs, models, mlflow.db), in octal digits: 077 all
    others, 027 who is not of your group, 022 nobody, for those who share with everyone on the
    machine. The workers of a Ray that others started have the umask of their node."""
    dashboard: bool = Field(False, exclude=True)
    """Start Ray's dashboard (http://127.0.0.1:8265) with a Ray of this machine's own, some ten
    processes more. A cluster that is joined has its own."""
    from_files: ClassVar[dict[str, Any]] = {}
    """What `--config` and the files that it includes say."""
    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        cli_avoid_json=True,
        cli_implicit_flags=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
    )

    def apply_umask(self) -> int:
        """Before anything is written, and before a Ray of this process's own starts, whose workers
        inherit it. Returns the umask before."""
        return os.umask(int(self.umask, 8))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: Any,
        env_settings: Any,
        dotenv_settings: Any,
        file_secret_settings: Any,
    ) -> tuple[Any, ...]:
        names = env_settings.env_vars
        env_settings.env_vars = {k: v for k, v in names.items() if not _is_service_link(k, v)}
        return init_settings, env_settings, InitSettingsSource(settings_cls, cls.from_files)


def _is_service_link(name: str, value: str | None) -> bool:
    """Whether Kubernetes has set a variable: into every container, for a service of its namespace.
    Those of services named `sce` or `sce-...` look like settings."""
    by_name = re.fullmatch(r"SCE(_\w+)?_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_\w+)", name.upper())
    by_value = re.match(r"(tcp|udp|sctp)://", value or "") and name.upper().endswith("_PORT")
    return bool(by_name or by_value)


ConfigT = TypeVar("ConfigT", bound=JobConfig)


class _Verbatim:
    """Marks a list whose flags are taken to the letter (`Verbatim`)."""


Verbatim = Annotated[list[str], _Verbatim()]
"""A list of what users name themselves: labels, files, columns. `--labels NAME` is that one name,
whatever stands in it, and may be given again; or one JSON list of texts is the whole list. Other
lists of flags may also be written with commas."""


def _take_verbatim(
    config_class: type[JobConfig], argv: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """What the flags of `Verbatim` settings say, and the other arguments."""
    flags = {
        f"--{name.replace('_', '-')}": name
        for name, field in config_class.model_fields.items()
        if any(isinstance(item, _Verbatim) for item in field.metadata)
    }
    found: dict[str, list[str]] = {}
    rest: list[str] = []
    items = iter(argv)
    for item in items:
        flag, equals, value = item.partition("=")
        if flag not in flags:
            rest.append(item)
            continue
        if not equals:
            following = next(items, None)
            if following is None:
                rest.append(item)  # argparse says that it lacks its value
                break
            value = following
        found.setdefault(flags[flag], []).append(value)
    lists = {name: _one_list(values) for name, values in found.items()}
    for name, values in found.items():
        if len(values) == 1 and "," in values[0] and lists[name] == values:
            log.warning(
                "--%s: %r is one, commas and all. Several are given by several flags, or by one "
                'JSON list: \'["one", "two"]\'.',
                name.replace("_", "-"),
                values[0],
            )
    return lists, rest


def _one_list(values: list[str]) -> list[str]:
    if len(values) == 1 and values[0].lstrip().startswith("["):
        try:
            listed = json.loads(values[0])
        except (ValueError, RecursionError):
            return values
        if isinstance(listed, list) and all(isinstance(x, str) for x in listed):
            return listed
    return values


def load_config(config_class: type[ConfigT], argv: Sequence[str], prog: str, doc: str) -> ConfigT:
    """Read a job's configuration from `--config FILE` (a path or URI), the environment and `argv`.

    Raises:
        ConfigError: unreadable file, unknown key, wrong value; names each with its place.
        SystemExit: `--help` (0), a malformed command line (2).
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", metavar="FILE")
    known, rest = parser.parse_known_args(argv)
    files = {} if known.config is None else read_settings(known.config)
    _check_environment(config_class)
    given, rest = _take_verbatim(config_class, rest)
    _check_spelling(rest)

    content = {
        "__module__": config_class.__module__,
        "__doc__": f"{_as_typed(doc, prog).strip()}\n\n--config FILE: these settings as YAML keys.",
        "model_config": SettingsConfigDict(cli_prog_name=prog),
        "from_files": files,
    }
    loaded = type(config_class.__name__, (config_class,), content)
    helper = partial(_HelpFormatter, config_class)
    try:
        with _argparse_without_secrets():
            flags = CliSettingsSource[Any](loaded, cli_parse_args=rest, formatter_class=helper)
            return loaded(_cli_settings_source=flags, **given)
    except ValidationError as error:
        raise ConfigError(_explain(error, known.config, _secret_fields(config_class))) from None
    except SettingsError as error:
        group = re.search(r'parsing value for field "(\w+)" from', str(error))
        if group is None:
            raise ConfigError(f"{prog}: {error}") from None
        raise ConfigError(
            f"{group[1]}: a group of settings, or a list, is given as JSON; of a group also one at "
            f"a time, --{group[1].replace('_', '-')}.NAME VALUE. See --help."
        ) from None
    except RecursionError:
        raise ConfigError(f"{prog}: a setting is JSON that is nested too deep.") from None


def build_config(config_class: type[ConfigT], settings: dict[str, Any], where: str) -> ConfigT:
    """A configuration of the settings that stand at `where`. Raises `ConfigError`."""
    try:
        return config_class(**settings)
    except ValidationError as error:
        said = _explain(error, None, _secret_fields(config_class))
        raise ConfigError(f"{where}: {said}") from None


def _as_typed(doc: str, prog: str) -> str:
    """A job's docstring with its commands as those of `sce`, where it was that which was typed."""
    if not prog.startswith("sce "):
        return doc
    doc = re.sub(r"^( +)python jobs/\w+\.py|python -m serve\.app", rf"\1{prog}", doc, flags=re.M)
    return re.sub(r"--config configs/(\w+)(/sce|/\w+)\.yaml", _recipe_typed, doc)


def _recipe_typed(found: re.Match[str]) -> str:
    return f"--config {found[1]}{found[2].removesuffix('/sce')}"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A job's own settings first, then by the class that has them; the usage in a line."""

    def __init__(self, config_class: type[BaseModel], prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=min(shutil.get_terminal_size()[0], 100))
        self._class = config_class

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        super().add_usage("%(prog)s [--config FILE] [settings]", [], [], prefix)

    def start_section(self, heading: str | None) -> None:
        name = (heading or "").removesuffix(" options")
        for kind in _classes(self._class, name):
            heading = f"{name}: {_first_sentence(kind)}"
        super().start_section(heading)
        self._heading = heading

    def add_text(self, text: str | None) -> None:
        super().add_text(text and text.removeprefix("default: None (undefined)\n"))

    def add_arguments(self, actions: Any) -> None:
        if self._heading != "options":
            super().add_arguments(actions)
            return
        left = list(actions)
        for kind in self._class.__mro__:
            own = [a for a in left if a.dest in vars(kind).get("__annotations__", {})]
            if kind is JobConfig:
                own, title = left, "every command"
            else:
                title = "settings" if kind is self._class else _first_sentence(kind)
            left = [action for action in left if action not in own]
            self.end_section()
            self.start_section(title)
            super().add_arguments(own)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        shown = super()._format_args(action, default_metavar)
        return _METAVARS.get(shown, shown)

    def _expand_help(self, action: argparse.Action) -> str:
        nothing = r" ?\(default( factory)?: (None|False|list|\[.*\]|\{\}|)\)$"
        return re.sub(nothing, "", super()._expand_help(action))


_METAVARS = {
    "{Path,RemotePath}": "PATH", "str": "TEXT", "SecretStr": "TEXT", "int": "INT",
    "float": "NUMBER", "Path": "PATH",
    "list[str]": "LIST", "list[int]": "LIST", "list[JSON]": "JSON",
    "{auto,bool}": "{auto,true,false}",
}  # fmt: skip


def _first_sentence(kind: type) -> str:
    return re.split(r"\.(?=\s|$)", " ".join((kind.__doc__ or "").split()))[0]


def _classes(settings: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """The classes of a section that is called so; none where it is no section."""
    field = settings.model_fields.get(name)
    kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


@contextmanager
def _argparse_without_secrets() -> Iterator[None]:
    """It writes to standard error by itself, and quotes the command line."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    finally:
        text = re.sub(r"(?<=unrecognized arguments: ).*", _flags_alone, said.getvalue())
        print(without_secrets(text), end="", file=sys.stderr)


def _flags_alone(found: re.Match[str]) -> str:
    """What is behind a misspelt flag may be a token."""
    words = found[0].split()
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    return " ".join(flags or words)


def _secret_fields(settings: Any) -> set[str]:
    """Names of the settings that hold a secret, those of sections too."""
    found: set[str] = set()
    for name, field in settings.model_fields.items():
        if SecretStr in (field.annotation, *get_args(field.annotation)):
            found.add(name)
        for kind in _classes(settings, name):
            found |= _secret_fields(kind)
    return found


def _check_spelling(argv: Sequence[str]) -> None:
    """Flags had underscores once; argparse would name the new spelling to nobody."""
    for item in argv:
        flag = item.partition("=")[0]
        if flag.startswith("--") and "_" in flag:
            raise ConfigError(f"{flag}: flags are spelt with hyphens, {flag.replace('_', '-')}.")


def check_writable(place: Place, setting: str) -> None:
    """Raises `ConfigError` where a folder of this machine cannot be made or written to."""
    if isinstance(place, RemotePath):
        return
    above = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise ConfigError(f"{setting}: {str(place)!r} cannot be a folder: {above} is a file.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{setting}: {str(place)!r} cannot be written: no right to write in {above}."
        )


def resolve_output(path: str | Place) -> Place:
    """Absolute form of an output folder; a URI as it is.

    Raises:
        ConfigError: the path is relative and this process runs in the upload folder of a
            submitted Ray job, which Ray deletes: what is written there would be lost.
    """
    path = to_place(path)
    if isinstance(path, RemotePath):
        return path
    path = path.expanduser()
    if not path.is_absolute() and "working_dir_files" in Path.cwd().parts:
        raise ConfigError(
            f"run_dir: {str(path)!r} is relative, and a submitted job runs in a folder that Ray "
            f"deletes. Give an absolute path that the cluster keeps (--run-dir /data/{path}), or a "
            "URI (s3://bucket/folder)."
        )
    return path.absolute()


def _check_environment(config_class: type[JobConfig]) -> None:
    """pydantic-settings skips variables that name no field; a typing error must not pass."""
    known = {f"{ENV_PREFIX}{name}".upper() for name in config_class.model_fields}
    for variable, value in os.environ.items():
        name = variable.upper()
        ours = name.startswith(ENV_PREFIX) and name not in (*SECRETS, CACHE_BYTES)
        ours = ours and not _is_service_link(name, value)
        if ours and name.split("__")[0] not in known:
            raise ConfigError(
                f"environment variable {variable}: no such setting. Sections: "
                f"{', '.join(sorted(config_class.model_fields))}."
            )


def _explain(error: ValidationError, file: str | None, secret: set[str]) -> str:
    where = f" (with --config {file})" if file else ""
    lines = [f"{error.error_count()} wrong setting(s){where}"]
    for item in error.errors(include_url=False)[:MAX_ERRORS_SHOWN]:
        where = ".".join(str(part) for part in item["loc"])[:200] or "(top level)"
        if item["type"] == "extra_forbidden":
            lines.append(f"  {where}: no such setting")
        elif secret.intersection(map(str, item["loc"])):
            lines.append(f"  {where}: {item['msg']}")
        else:
            # Hidden before it is cut: a part of a password looks like anything.
            got = without_secrets(repr(_without(item["input"], secret)))
            lines.append(f"  {where}: {item['msg']}; got {got:.100}")
    if error.error_count() > MAX_ERRORS_SHOWN:
        lines.append(f"  and {error.error_count() - MAX_ERRORS_SHOWN} more")
    return "\n".join(lines)


def _without(value: Any, secret: set[str]) -> Any:
    """A value without its secret settings, also where it is a whole section."""
    if not isinstance(value, dict):
        return value
    return {k: HIDDEN if k in secret else _without(v, secret) for k, v in value.items()}
