"""Errors that users can cause. Each message says what, where, and what is allowed.

`ROW_ERRORS` are values, not exceptions: what is wrong with one row, whose neighbours go on.

A job turns any `InputError` into exit code 2; every other exception is a bug or a
broken machine and ends with exit code 1 and a traceback.

No message tells a password: `without_secrets` takes those of URLs out of whatever is shown, logged
or written down.
"""

import re
import reprlib
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
_VALUE = r"""((?:[^&#\s"']|'(?![\s,.;:)\]}]|$))+)"""
_SECRETS = [
    # user:password@, up to the last @, since some write it as it is; but a port is none.
    re.compile(r"""(://[^\s/?#@:"]{0,500}:)(?!\d+(?:[/\s"]|$))([^\s"]{0,2000})(?=@)"""),
    re.compile(r"""(https?://)([^\s/?#@:"]{1,500})(?=@)""", re.I),
    re.compile(
        r"([?&;#][\w.-]{0,60}(?:pass(?:word|wd|phrase)|pwd|secret|token|api_?-?key|access_?-?key|"
        rf"signature|credential|odbc_connect)[\w.-]{{0,60}}=){_VALUE}",
        re.I,
    ),
    re.compile(rf"([?&;#](?:sig|key|auth|authorization|code|pass)=){_VALUE}", re.I),
    # As drivers of databases write it.
    re.compile(r"""((?:^|[\s;,({'"])(?:ssl)?(?:password|passwd|pwd)\s?=\s?)([^\s;,&'"]+)""", re.I),
]


def without_secrets(text: str, uri: str = "") -> str:
    """A text with `***` for passwords, tokens and keys in the URLs in it, and for those that `uri`
    has, wherever they stand: libraries quote them in other forms."""
    for pattern in _SECRETS:
        text = pattern.sub(rf"\1{HIDDEN}", text)
    for pattern in _SECRETS if uri else ():
        for _, secret in pattern.findall(uri):
            for form in {secret, unquote(secret)} - {"", HIDDEN}:
                text = text.replace(form, HIDDEN)
    return text


def hide_secrets(value: Any) -> Any:
    """Plain lists, dictionaries and texts `without_secrets`; other values as they are."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {hide_secrets(key): hide_secrets(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_secrets(item) for item in value]
    return value


class SCEError(Exception):
    """Base of every error that this package raises on purpose. Its message has no secrets.

    Args:
        message: what, where, and what is allowed.
        quotes: what follows it from the content of a file (column names, a value), for those who
            may read the file, and not for a caller over HTTP who only names it.
    """

    def __init__(self, message: str = "", quotes: str = "") -> None:
        super().__init__(*map(hide_secrets, [message, *([quotes] if quotes else [])]))

    @property
    def without_quotes(self) -> str:
        return str(self.args[0])

    def __str__(self) -> str:
        return " ".join(map(str, self.args))


class InputError(SCEError):
    """The user's input or configuration is wrong; running again will not help."""


class ConfigError(InputError):
    """A setting is unknown, missing or out of range."""


class LabelError(InputError):
    """A label set is empty, has duplicates, or holds something that is not a label."""


class DataError(InputError):
    """A data file cannot be read, or a row of it breaks the contract."""


class TooManyErrors(SCEError):
    """A job ended over its limit of rows with errors. The rows that were done are kept."""


class EmbedderError(InputError):
    """The text embedder cannot be loaded (unknown, not reachable, damaged)."""


class FingerprintMismatch(InputError):
    """Vectors or a model were made by another embedder than the one in use."""


ECHO_CHARS = 200
"""Of what a user gave, so much stands in a message."""


_SHORT = reprlib.Repr()
"""Some of a value, however much and deep it is."""
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, ECHO_CHARS, ECHO_CHARS


def clipped(text: str, most: int = ECHO_CHARS) -> str:
    """A text that may be of any length, for a message: its beginning, and how long it was."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def quoted(value: object) -> str:
    """What a user gave, for a message: as `repr`, but no more than `clipped` leaves of it."""
    if not isinstance(value, str):
        return clipped(_SHORT.repr(value))
    shown = repr(value[:ECHO_CHARS])
    if len(value) <= ECHO_CHARS and len(shown) <= ECHO_CHARS + 2:
        return shown
    end = shown[0] if len(shown) > ECHO_CHARS + 2 else ""
    return f"{shown[: ECHO_CHARS + 2 - len(end)]}{end}... ({len(value)} characters)"


MAX_NAME_CHARS = 200
MAX_ID_CHARS = 512
MAX_NORM_ERROR = 0.01
MAX_TEXT_BYTES = 16 * 2**20
"""Of a text in UTF-8: some three million words."""

ROW_ERRORS = {
    "line_unreadable": "the line is not JSON, or has not the fields of its file",
    "line_too_long": f"the line has more than {2 * MAX_TEXT_BYTES:,} characters",
    "line_not_utf8": "the line is not UTF-8",
    "id_missing": "the id column is null",
    "id_too_long": f"the id has more than {MAX_ID_CHARS} characters",
    "text_null": "there is no text",
    "text_empty": "the text is empty or blank",
    "text_not_string": "the text is a number, a list or an object",
    "text_not_unicode": "the text has a lone surrogate",
    "text_too_large": f"the text has more than {MAX_TEXT_BYTES:,} bytes",
    "text_too_long": "the text is longer than the endpoint takes in a request",
    "labels_missing": "the row's list of labels is null or empty",
    "labels_not_a_list": "the row's labels are not a list of texts",
    "label_empty": "a label of the row is null or blank",
    "label_too_long": f"a label of the row has more than {MAX_NAME_CHARS} characters",
    "label_duplicate": "a label stands twice in the row's list",
    "embedding_missing": "there is no embedding",
    "embedding_not_numbers": "the embedding is not a list of numbers",
    "embedding_wrong_size": "the embedding has not the embedder's number of dimensions",
    "embedding_not_finite": "the embedding holds NaN, infinity or null",
    "embedding_not_unit": f"the embedding's norm is not 1 (within {MAX_NORM_ERROR})",
}
"""Every word of the column `error`, and what it says."""
