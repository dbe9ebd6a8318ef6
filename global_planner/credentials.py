"""Who may say what to the arbiter: bearer tokens, and the pools that each may speak for. Pure.

A token is known by its SHA-256 or by the file that holds it; what a caller may do comes from the topology and from nowhere
else. SLA, weight and priority are no part of any message, so no caller can set them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from global_planner.config import CredentialConfig

BEARER = "Bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A credential whose token was shown. `pools`: those that it may propose for; `wake`: it may wake models."""

    name: str
    pools: frozenset[str]
    wake: bool


def caller_of(
    authorization: str | None, credentials: Sequence[CredentialConfig], tokens: Mapping[str, str], pools: Sequence[str]
) -> Caller | None:
    """Whose token an `Authorization` header shows; None: nobody's. `tokens`: by credential, what its file holds now (absent:
    the file cannot be read, so nobody has it). Every credential is compared, so that time tells nothing."""
    if authorization is None or not authorization.startswith(BEARER):
        return None
    shown = hashlib.sha256(authorization.removeprefix(BEARER).encode("utf-8", "surrogateescape")).hexdigest()
    found: Caller | None = None
    for credential in credentials:
        token = tokens.get(credential.name)
        digest = credential.sha256 if token is None else hashlib.sha256(token.encode()).hexdigest()
        if digest is not None and hmac.compare_digest(digest, shown):
            allowed = frozenset(pool for pool in pools if any(fnmatchcase(pool, pattern) for pattern in credential.pools))
            found = Caller(name=credential.name, pools=allowed, wake=credential.wake)
    return found
