"""The one way in which every route says no."""

from __future__ import annotations

from typing import Any

from sce.errors import clipped

MESSAGE_CHARS = 2000
"""What a message quotes is cut where it is written (`sce.errors.quoted`); this bounds the whole."""
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "limit_error",
    429: "overloaded_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: HTTP's.
        code, param: as in `sce.client.wire.ErrorBody`; `message` and `param`, which may hold what
            was sent, are cut.
        headers: that the status obliges to.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers
        self.message = clipped(message, MESSAGE_CHARS)
        self.param = None if param is None else clipped(param)

    def body(self) -> dict[str, Any]:
        """As `sce.client.wire.ErrorResponse`."""
        other = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status, other)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}
