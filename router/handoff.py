"""How prefill hands a request's KV blocks to decode, for each engine: the bodies of the two calls, and what the first answer
means. Pure.

vLLM: prefill first, with one token to make; its answer's `kv_transfer_params` go to decode, which pulls the blocks. Without
them decode prefills itself. TensorRT-LLM: prefill first, as `context_only`; its answer's `disaggregated_params` go to decode
as `generation_only`, with the prompt's tokens; an answer that is already complete (it ended at its first token) is the
client's. SGLang: the same request to both at once, which meet in a random room at the prefill engine's bootstrap server;
prefill pushes the blocks, the answer comes from decode, and a decode engine never prefills itself.

Whatever the client sent stays: fields are spliced in before the last brace of its own bytes where none of them is there yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import orjson

from router.openai import Call, dump

Engine = Literal["vllm", "sglang", "trtllm"]
KV_REQUEST = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
# A context_only answer that ends so has not ended: decode goes on from its first token.
_GOES_ON = frozenset(["length", "not_finished", None])


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where an SGLang pair meets: the prefill engine's host, the port of its bootstrap server, and a room of their own."""

    host: str
    port: int
    room: int


def at_once(engine: Engine) -> bool:
    """Whether prefill and decode are called at the same time."""
    return engine == "sglang"


def decodes_alone(engine: Engine) -> bool:
    """Whether a decode engine prefills a request itself when nothing was handed over."""
    return engine != "sglang"


def with_fields(call: Call, fields: dict[str, Any]) -> bytes:
    """The client's body with these top-level fields set."""
    if not fields:
        return call.raw
    if any(name in call.body for name in fields):
        return dump({**call.body, **fields})
    end = call.raw.rindex(b"}")
    # An object that is not empty: it names a model.
    return b"%b,%b}" % (call.raw[:end], dump(fields)[1:-1])


def meeting_body(call: Call, meeting: Meeting) -> bytes:
    """SGLang: the body of both calls."""
    host = f"[{meeting.host}]" if ":" in meeting.host else meeting.host
    return with_fields(call, {"bootstrap_host": host, "bootstrap_port": meeting.port, "bootstrap_room": meeting.room})


def prefill_body(call: Call, engine: Engine) -> bytes:
    """The body of the prefill call where prefill comes first: not streamed; for vLLM one token."""
    body = dict(call.body)
    body.pop("stream_options", None)
    if engine == "trtllm":
        body.update(stream=False, disaggregated_params={"request_type": "context_only"})
        return dump(body)
    body.update(max_tokens=1, max_completion_tokens=1, stream=False, kv_transfer_params=KV_REQUEST)
    if "min_tokens" in body:
        # More than max_tokens is refused by engines, and one token is all that this call makes.
        body["min_tokens"] = min(1, body["min_tokens"]) if isinstance(body["min_tokens"], int) else body["min_tokens"]
    return dump(body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """What a prefill answer means: the body of the decode call, or an answer that is complete already."""

    decode: bytes = b""
    complete: bytes | None = None


def handed_over(call: Call, answer: bytes, engine: Engine) -> Handed:
    """What comes after the prefill answer. Where it hands nothing over, decode gets the client's own bytes."""
    try:
        parsed = orjson.loads(answer)
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        return Handed(decode=call.raw)
    if engine == "trtllm":
        return _context(call, parsed)
    params = parsed.get("kv_transfer_params")
    return Handed(decode=with_fields(call, {"kv_transfer_params": params}) if isinstance(params, dict) else call.raw)


def _context(call: Call, answer: dict[str, Any]) -> Handed:
    """TensorRT-LLM's answer to a `context_only` request."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return Handed(decode=call.raw)
    params = choice.pop("disaggregated_params", None)
    if choice.get("finish_reason") not in _GOES_ON:
        answer.pop("prompt_token_ids", None)
        return Handed(complete=dump(answer))
    if not isinstance(params, dict):
        return Handed(decode=call.raw)
    fields: dict[str, Any] = {"disaggregated_params": {**params, "request_type": "generation_only"}}
    ids = answer.get("prompt_token_ids")
    if isinstance(ids, list) and ids:
        # Decode need not tokenize again, and cannot come to other tokens than prefill did.
        fields["prompt_token_ids" if "messages" in call.body else "prompt"] = ids
    return Handed(decode=with_fields(call, fields))


def as_stream(answer: bytes, *, include_usage: bool) -> bytes:
    """A complete answer as the server-sent events that a streaming client waits for."""
    parsed = orjson.loads(answer)
    usage = parsed.pop("usage", None)
    events = []
    for choice in parsed.get("choices", ()):
        if "message" in choice:
            choice["delta"] = choice.pop("message")
    if parsed.get("object") == "chat.completion":
        parsed["object"] = "chat.completion.chunk"
    events.append(parsed)
    if include_usage and usage is not None:
        events.append({**parsed, "choices": [], "usage": usage})
    return b"".join(b"data: %b\n\n" % dump(event) for event in events) + b"data: [DONE]\n\n"
