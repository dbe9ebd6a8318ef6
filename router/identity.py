"""Who asks: API keys, and what a key or a header says about a request that its body does not. Pure.

Keys are configured as SHA-256 digests; the key itself is nowhere. A digest is found by its own value, which an attacker
cannot steer, and is then compared in constant time.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256

from router.config import KeyConfig
from router.message import HINT_HEADERS
from router.metrics import MAX_KEYS, OTHER, TenantMetrics
from router.openai import BadRequest, Call


class Keys:
    """The keys that may be used; empty: everybody may ask."""

    def __init__(self, keys: Sequence[KeyConfig]) -> None:
        self._keys = {bytes.fromhex(key.sha256): key for key in keys}

        # By name: a key that is being replaced and its successor may be one tenant's. Who is one too many shares a series.
        rest = TenantMetrics(OTHER)
        self.tenants: dict[str, TenantMetrics] = {}
        for key in keys:
            if key.name not in self.tenants:
                self.tenants[key.name] = TenantMetrics(key.name) if len(self.tenants) < MAX_KEYS else rest

    @property
    def required(self) -> bool:
        return bool(self._keys)

    def owner(self, authorization: bytes) -> KeyConfig | None:
        """Whose key a header `Bearer <key>` holds; None where no key is required. Raises BadRequest (401)."""
        if not self._keys:
            return None
        scheme, _, secret = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not secret.strip():
            raise BadRequest(401, "You did not provide an API key.", code="missing_api_key")
        digest = sha256(secret.strip()).digest()
        key = self._keys.get(digest)
        if key is None or not hmac.compare_digest(bytes.fromhex(key.sha256), digest):
            raise BadRequest(401, "Incorrect API key provided.", code="invalid_api_key")
        return key


def complete(call: Call, hints: Mapping[str, bytes], key: KeyConfig | None) -> None:
    """Fill in priority and targets that the body does not give: from headers, else from the key. A key's `max_priority`
    bounds what a client may claim. Raises BadRequest for a header that is not a number."""
    for name, value in hints.items():
        number = _number(name, value)
        if name == "priority":
            call.priority = int(number) if call.priority is None else call.priority
        elif getattr(call, name) is None and number > 0:
            setattr(call, name, number)
    if key is not None:
        call.priority = key.priority if call.priority is None else call.priority
        call.ttft_ms = key.ttft_ms if call.ttft_ms is None else call.ttft_ms
        call.itl_ms = key.itl_ms if call.itl_ms is None else call.itl_ms
        if key.max_priority is not None and call.priority is not None:
            call.priority = min(call.priority, key.max_priority)


def _number(name: str, value: bytes) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not abs(number) < 1e9:
        header = next(header for header, sets in HINT_HEADERS.items() if sets == name).decode()
        raise BadRequest(400, f"The header {header} must be a number.", param=header, code="invalid_header")
    return number
