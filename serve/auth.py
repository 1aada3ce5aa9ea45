"""Who is answered: bearer tokens, or without any only this machine.

"This machine" is told by the peer's address and the header `Host`. Behind a proxy that runs here
everyone has this machine's address, and what a proxy says of itself is only what it chooses to say:
so without tokens nothing that came through one is answered, as far as it can be told.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from sce.errors import ConfigError, clipped
from serve.refusals import ApiError
from serve.settings import ServeConfig

MIN_TOKEN_CHARS = 16
PROXY_HEADERS = ("forwarded", "via", "x-real-ip")
PROXY_PREFIX = "x-forwarded-"
"""Headers by which a proxy says for whom it asks, in small letters."""

log = logging.getLogger(__name__)


def read_tokens(config: ServeConfig) -> list[str]:
    """The tokens of the settings and of the file.

    Raises:
        ConfigError: the file cannot be read, or a token is short enough to guess.
    """
    tokens = config.tokens.get_secret_value().split(",")
    if config.tokens_file is not None:
        try:
            lines = config.tokens_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"tokens_file: cannot be read: {error}") from None
        tokens += [line for line in lines if not line.lstrip().startswith("#")]
        if not any(token.strip() for token in lines):
            raise ConfigError(f"tokens_file: {str(config.tokens_file)!r} holds no token.")
    found = [token.strip() for token in tokens if token.strip()]
    for place, token in enumerate(found):
        if len(token) < MIN_TOKEN_CHARS:
            raise ConfigError(
                f"tokens: the {place + 1}. has {len(token)} characters, fewer than "
                f"{MIN_TOKEN_CHARS}. `openssl rand -hex 32` makes a good one."
            )
    return found


def warn_of_readers(file: Path) -> None:
    """Say in the log that others on this machine may read a file of tokens. One of root's that its
    group reads is meant so: Kubernetes gives secrets to a pod by its group."""
    about = file.stat()
    mode = about.st_mode & 0o777
    if os.name == "posix" and mode & (0o007 if about.st_uid == 0 != os.getuid() else 0o077):
        message = "tokens_file: %s may be read by others than its owner: mode %04o, best is 0600"
        log.warning(message, file, mode)


class Guard:
    """Decides on requests by the SHA-256 of each token; none: only loopback peers are answered."""

    def __init__(self, digests: Iterable[bytes]) -> None:
        self._digests = list(digests)

    @staticmethod
    def digest(token: str) -> bytes:
        return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()

    @property
    def has_tokens(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Mapping[str, str], peer: str | None) -> None:
        """Let a request with these headers (names in small letters), from this address, pass.

        Raises:
            ApiError: 401, no token or a wrong one; 403, not from this machine.
        """
        if not self._digests:
            self._check_local(headers, peer)
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        wanted = {"WWW-Authenticate": "Bearer"}
        if scheme.lower() != "bearer" or not token.strip():
            message = "send one of the server's tokens: Authorization: Bearer ..."
            raise ApiError(401, "token_missing", message, headers=wanted)
        asked = self.digest(token.strip())
        # All of them are compared, so that time does not show which.
        equal = [hmac.compare_digest(asked, digest) for digest in self._digests]
        if not any(equal):
            message = "the token is none of the server's."
            raise ApiError(401, "token_wrong", message, headers=wanted)

    def owner(self, headers: Mapping[str, str]) -> str:
        """Who sent a request that passed, as the name of a folder: it tells nothing of the token.
        All tokens are different owners; without any there is one."""
        if not self._digests:
            return "local"
        token = headers.get("authorization", "").partition(" ")[2].strip()
        return hashlib.sha256(self.digest(token)).hexdigest()[:32]

    def _check_local(self, headers: Mapping[str, str], peer: str | None) -> None:
        """Also by the name in `Host`: a page elsewhere may have a name that leads here."""
        for name in headers:
            if name in PROXY_HEADERS or name.startswith(PROXY_PREFIX):
                raise ApiError(
                    403,
                    "proxy_without_tokens",
                    f"the request came through a proxy (it has the header {clipped(name)}), behind "
                    "which everyone looks like this machine. A server behind a proxy needs "
                    "SCE_TOKENS or tokens_file.",
                )
        try:
            host_name = urlsplit(f"//{headers.get('host', '')}").hostname
        except ValueError:
            host_name = None
        if not (_is_loopback(peer) and _is_loopback(host_name)):
            raise ApiError(
                403,
                "loopback_only",
                "this server has no tokens, so it answers only its own machine, by the names "
                "localhost and 127.0.0.1. To be reached from elsewhere it needs SCE_TOKENS or "
                "tokens_file.",
            )


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
