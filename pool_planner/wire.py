"""The one msgpack codec of every message and record: `{"v": schema version, "k": record kind, "d": fields}`. Pure.

Strict on input: unknown kinds, unknown or missing fields, wrong types (a number written as text is taken), non-finite numbers
and other schema versions are refused with the path of the offending value. Kinds are registered by the package that owns
them, so this module imports no sibling. Validation is pydantic's, over the plain dataclasses.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import msgpack
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pool_planner import types as _types

SCHEMA_VERSION = 1
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


class WireError(ValueError):
    """A message that is not one of ours; the text says where and why."""


# A float in msgpack is 0xcb and its eight bytes, the exponent first: all ones in what is not finite. Records of large fleets
# have 100,000 numbers, and only those few are looked at one by one whose bytes happen to hold this somewhere.
_LIKE_NON_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]", re.DOTALL)

_STRICT = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)
_adapters: dict[str, TypeAdapter[Any]] = {}
_kinds: dict[type, str] = {}


def register(*records: type) -> None:
    """Make dataclasses encodable under their class name. Registering the same class twice is harmless."""
    for record in records:
        known = _adapters.get(record.__name__)
        if known is not None and record not in _kinds:
            raise ValueError(f"two records are named {record.__name__!r}")
        if known is None:
            _kinds[record] = record.__name__
            _adapters[record.__name__] = TypeAdapter(record)


def strict(record: type) -> None:
    """Give a dataclass (and what it nests must be given the same) the codec's validation rules."""
    record.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]


def register_module(module: Any) -> None:
    """Register every dataclass that `module` defines."""
    records = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
    ]
    for record in records:
        strict(record)
    register(*records)


def encode(record: object) -> bytes:
    """Bytes of one record. Raises WireError when its type is not registered or a number in it is not finite."""
    kind = _kinds.get(type(record))
    if kind is None:
        raise WireError(f"{type(record).__name__} is not a registered record")
    fields = _adapters[kind].dump_python(record, mode="python")
    body: bytes = msgpack.packb({"v": SCHEMA_VERSION, "k": kind, "d": fields}, use_bin_type=True)
    if _LIKE_NON_FINITE.search(body) is not None:
        _refuse_non_finite(fields, kind)
    return body


def _refuse_non_finite(value: object, path: str) -> None:
    """NaN and infinity would make a record that nobody can read back: refuse them where they are made."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise WireError(f"{path} is {value}; only finite numbers can be sent")
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_non_finite(item, f"{path}[{index}]")


def decode(message: bytes, *, expect: type | None = None) -> Any:
    """The record in `message`. Raises WireError; with `expect`, also when it is of another kind."""
    if len(message) > MAX_MESSAGE_BYTES:
        raise WireError(f"message of {len(message)} bytes is longer than {MAX_MESSAGE_BYTES}")
    try:
        body = msgpack.unpackb(message, raw=False, strict_map_key=True, use_list=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"not msgpack: {error}") from error
    if not isinstance(body, dict) or set(body) != {"v", "k", "d"}:
        raise WireError("not an envelope with exactly v, k and d")
    if body["v"] != SCHEMA_VERSION:
        raise WireError(f"schema version {body['v']!r}; this build speaks {SCHEMA_VERSION}")
    adapter = _adapters.get(body["k"]) if isinstance(body["k"], str) else None
    if adapter is None:
        raise WireError(f"unknown record kind {body['k']!r}")
    if expect is not None and body["k"] != expect.__name__:
        raise WireError(f"expected {expect.__name__}, got {body['k']}")
    try:
        return adapter.validate_python(body["d"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise WireError(f"{body['k']}.{path}: {first['msg']} ({error.error_count()} problems in all)") from error


register_module(_types)
