"""[I/O: reads certificates] For clients that come over the open web: TLS, and what web pages of other origins may ask."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from router.config import ConfigError, TlsConfig
from router.message import Request

# A page may send any header that clients of the API send, and ask again for a day without asking whether it may.
PREFLIGHT = (
    b"access-control-allow-methods: GET, POST, OPTIONS\r\n"
    b"access-control-allow-headers: authorization, content-type, x-request-id, x-ttft-target-ms, x-itl-target-ms, "
    b"x-request-priority, x-stainless-arch, x-stainless-async, x-stainless-lang, x-stainless-os, "
    b"x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, "
    b"x-stainless-timeout\r\n"
    b"access-control-max-age: 86400\r\n"
)


_READABLE = b"access-control-allow-origin: %b\r\nvary: origin\r\naccess-control-expose-headers: x-request-id, retry-after\r\n"


class Origins:
    """The origins whose pages may ask."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._all = "*" in origins
        self._origins = frozenset(origin.rstrip("/").lower().encode() for origin in origins)

    def answer(self, request: Request) -> bytes:
        """The header lines of the answer; empty: pages of that origin may not read it."""
        if not self._all and request.origin.lower() not in self._origins:
            return b""
        shown = b"*" if self._all else request.origin
        return (
            b"access-control-allow-origin: %b\r\nvary: origin\r\naccess-control-expose-headers: x-request-id, retry-after\r\n"
            % shown
        )


def tls_of(config: TlsConfig) -> ssl.SSLContext:
    """The server's side of TLS, 1.2 or newer. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.certificate, config.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"listen.tls: {config.certificate} and {config.key} are no certificate with its key: {error}"
        ) from error
    return context
