"""What an engine is and what goes in and out of its model: the records of `engine`, and their JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

from global_planner.replay.engine_cost import BLOCK_TOKENS, blocks
from pool_planner.performance.profile import Profile, ProfileError, profile_from_raw, raw_profile
from pool_planner.types import Role

Refusal = Literal["starting", "draining", "too_long", "kv_too_small", "cannot_decode"]
EventKind = Literal["first_token", "tokens", "finished", "kv_expired"]


class EngineSpecError(ValueError):
    """A specification that no engine can be built from; the text names the field, the value and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine shape. Every engine computes prompts (a decode engine those whose blocks it lost), so all need the prefill
    curve; `decode` and `agg` also need the decode curve.

    `prefill_chunk_tokens` is the token budget of one step, `max_num_seqs` how many sequences may hold KV at once.
    `max_kv_tokens` None: what the decode curve says, or unlimited without one. `tokens_per_chunk` is how many tokens a
    streamed chunk carries after the first. A finished prefill's blocks are kept for `kv_hold_s` (model seconds) at most.

    `front_ms` passes before the scheduler sees a request (HTTP, tokenizer, the way to the engine's process): a delay, for many
    at once. 0 where the prefill curve was measured through the server, as profilers do: the curve holds it already.

    `prefix_cache_tokens` of prompts are kept by an engine process and need not be computed again (0: none are). Replay keeps
    account of them by itself, from the blocks that a trace names.
    """

    role: Role
    profile: Profile
    model: str = "mock"
    max_model_len: int = 131_072
    prefill_chunk_tokens: int = 8192
    max_num_seqs: int = 256
    max_kv_tokens: int | None = None
    tokens_per_chunk: int = 4
    kv_transfer_ms: float = 50.0
    kv_hold_s: float = 120.0
    front_ms: float = 0.0
    prefix_cache_tokens: int = 0

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise EngineSpecError(f"role: {self.role!r} is not one of {', '.join(get_args(Role))}")
        for name in ("max_model_len", "prefill_chunk_tokens", "max_num_seqs", "tokens_per_chunk"):
            if getattr(self, name) < 1:
                raise EngineSpecError(f"{name}: {getattr(self, name)} must be >= 1")
        for name in _NUMBERS:
            if not 0 <= getattr(self, name) < float("inf"):
                raise EngineSpecError(f"{name}: {getattr(self, name)} must be finite and >= 0")
        if self.prefix_cache_tokens < 0:
            raise EngineSpecError(f"prefix_cache_tokens: {self.prefix_cache_tokens} must be >= 0 (0: no prefix cache)")
        if self.max_kv_tokens is not None and self.max_kv_tokens < 1:
            raise EngineSpecError(f"max_kv_tokens: {self.max_kv_tokens} must be >= 1 (or absent)")
        if self.profile.prefill is None:
            raise EngineSpecError("profile: has no prefill curve, and every engine computes prompts")
        if self.role != "prefill" and self.profile.decode is None:
            raise EngineSpecError(f"profile: has no decode curve, which a {self.role} engine needs")

    @property
    def kv_capacity_tokens(self) -> int | None:
        """What the KV cache holds (tokens); None: unlimited."""
        if self.max_kv_tokens is not None or self.profile.decode is None:
            return self.max_kv_tokens
        return self.profile.decode.max_kv_tokens

    def refusal(self, request: EngineRequest) -> Refusal | None:
        """Why an engine of this shape can never serve the request, or None."""
        if request.isl + request.osl > self.max_model_len:
            return "too_long"
        if request.osl > 1 and self.profile.decode is None:
            return "cannot_decode"
        capacity = self.kv_capacity_tokens
        if capacity is not None and blocks(request.isl - 1 + request.osl) > capacity // BLOCK_TOKENS:
            return "kv_too_small"
        return None


# A replay makes millions of the next two: plain classes, because those are what can be compiled; nobody changes them.


class EngineRequest:
    """One request as an engine sees it: `isl` prompt tokens, exactly `osl` output tokens. The first `cached_tokens` of the
    prompt are in the prefix cache. `kv_transferred`: a prefill engine holds the prompt's blocks, and they are fetched.
    `hold_kv`: keep the prompt's blocks after the last token, for a decode engine to fetch."""

    __slots__ = ("cached_tokens", "hold_kv", "id", "isl", "kv_transferred", "osl")

    def __init__(
        self, *, id: str, isl: int, osl: int, cached_tokens: int = 0, kv_transferred: bool = False, hold_kv: bool = False
    ) -> None:
        self.id = id
        self.isl = isl
        self.osl = osl
        self.cached_tokens = cached_tokens
        self.kv_transferred = kv_transferred
        self.hold_kv = hold_kv

    def __repr__(self) -> str:
        return (
            f"EngineRequest(id={self.id!r}, isl={self.isl}, osl={self.osl}, cached_tokens={self.cached_tokens}, "
            f"kv_transferred={self.kv_transferred}, hold_kv={self.hold_kv})"
        )


class EngineEvent:
    """What happened to a request at `at_s` (model seconds, exact). `tokens` have come out by then. `kv_expired`: a finished
    prefill's blocks were not fetched in time."""

    __slots__ = ("at_s", "id", "kind", "tokens")

    def __init__(self, *, kind: EventKind, id: str, at_s: float, tokens: int = 0) -> None:
        self.kind: EventKind = kind
        self.id = id
        self.at_s = at_s
        self.tokens = tokens

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EngineEvent):
            return NotImplemented
        mine, theirs = (self.kind, self.id, self.at_s, self.tokens), (other.kind, other.id, other.at_s, other.tokens)
        return mine == theirs

    def __hash__(self) -> int:
        return hash((self.kind, self.id, self.at_s, self.tokens))

    def __repr__(self) -> str:
        return f"EngineEvent(kind={self.kind!r}, id={self.id!r}, at_s={self.at_s!r}, tokens={self.tokens})"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """Gauges of one engine. `active_prefill_tokens` of the prompts that wait or are being computed; `active_decode_blocks`
    of the sequences that decode; `pending_kv` finished prefills whose blocks are not fetched yet."""

    running: int
    waiting: int
    pending_kv: int
    kv_usage: float
    active_prefill_tokens: int
    active_decode_blocks: int
    preemptions: int
    draining: bool


# ---- JSON ----------------------------------------------------------------------------------------------------------

_INTEGERS = ("max_model_len", "prefill_chunk_tokens", "max_num_seqs", "tokens_per_chunk", "prefix_cache_tokens")
_NUMBERS = ("kv_transfer_ms", "kv_hold_s", "front_ms")


def raw_spec(spec: EngineSpec) -> dict[str, object]:
    """The specification as a JSON object that carries its profile, so that its reader opens no other file."""
    raw: dict[str, object] = {field.name: getattr(spec, field.name) for field in fields(spec)}
    raw["profile"] = raw_profile(spec.profile)
    return raw


def spec_from_raw(raw: object, *, source: str) -> EngineSpec:
    """The specification that `raw_spec` wrote. Raises EngineSpecError with `source` and the field."""
    if not isinstance(raw, Mapping):
        raise EngineSpecError(f"{source}: expected an object, got {type(raw).__name__}")
    names = [field.name for field in fields(EngineSpec)]
    for key in raw:
        if key not in names:
            raise EngineSpecError(f"{source}: unknown key {key!r} (has: {', '.join(names)})")
    for key in ("role", "profile"):
        if key not in raw:
            raise EngineSpecError(f"{source}: {key} is missing")
    values = dict(raw)
    for key in _INTEGERS:
        if key in values and (not isinstance(values[key], int) or isinstance(values[key], bool)):
            raise EngineSpecError(f"{source}: {key}: {values[key]!r} is not a whole number")
    if not isinstance(values.get("max_kv_tokens"), int | None) or isinstance(values.get("max_kv_tokens"), bool):
        raise EngineSpecError(f"{source}: max_kv_tokens: {values['max_kv_tokens']!r} is not a whole number or null")
    for key in _NUMBERS:
        if key in values and (not isinstance(values[key], int | float) or isinstance(values[key], bool)):
            raise EngineSpecError(f"{source}: {key}: {values[key]!r} is not a number")
    for key in ("role", "model"):
        if key in values and not isinstance(values[key], str):
            raise EngineSpecError(f"{source}: {key}: {values[key]!r} is not text")
    if not isinstance(values["profile"], Mapping):
        raise EngineSpecError(f"{source}: profile: expected an object with prefill and decode")
    try:
        values["profile"] = profile_from_raw(values["profile"], source="profile")
        return EngineSpec(**values)
    except (ProfileError, EngineSpecError) as error:
        raise EngineSpecError(f"{source}: {error}") from error
