"""One HTTP request as the router keeps it, and the fixed texts of HTTP/1.1. Pure."""

from __future__ import annotations

REASONS = {
    100: "Continue",
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_STATUS_LINES = {status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in REASONS.items()}

CONTINUE = _STATUS_LINES[100] + b"\r\n"

# Header -> what it sets for a request whose body does not.
HINT_HEADERS = {b"x-ttft-target-ms": "ttft_ms", b"x-itl-target-ms": "itl_ms", b"x-request-priority": "priority"}

# Headers that belong to one connection and not to the message (RFC 9110 section 7.6.1), and those that the router sets itself.
NOT_FORWARDED = frozenset(
    [
        b"host",
        b"connection",
        b"content-length",
        b"transfer-encoding",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
        b"x-request-id",
        b"accept-encoding",
        b"authorization",
        b"origin",
    ]
)


def status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Status\r\n".encode()


class Request:
    """One request as read from the socket. `forward` holds the header lines that go on to an engine, ready to be sent;
    `hints` what headers say about targets and priority; `origin` is the web page's that asks."""

    __slots__ = (
        "authorization",
        "body",
        "forward",
        "hints",
        "keep_alive",
        "method",
        "origin",
        "path",
        "query",
        "request_id",
        "version",
    )

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.query = b""
        self.version = "1.1"
        self.body = b""
        self.forward: list[bytes] = []
        self.authorization = b""
        self.hints: dict[str, bytes] = {}
        self.request_id = b""
        self.origin = b""
        self.keep_alive = True
