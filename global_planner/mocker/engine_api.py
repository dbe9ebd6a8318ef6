"""The OpenAI API as a mock engine speaks it: requests in, answers and errors out, as bytes. Pure.

The text of an answer can be checked by whoever asked: token i is four characters that depend on the prompt and on i alone,
so `expected_text(prompt, n)` says what any engine must have answered, whichever engines worked on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

import orjson

from global_planner.replay.engine_cost import BLOCK_TOKENS
from global_planner.replay.engine_spec import EngineRequest, EngineSpec, Refusal

CHARS_PER_TOKEN = 4
DEFAULT_MAX_TOKENS = 16
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
DONE = b"data: [DONE]\n\n"


class ApiError(Exception):
    """A request that gets an OpenAI-shaped error object. `retry_after`: the answer says to come back in a second."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.body = orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteKv:
    """Where the blocks of a finished prefill are, and what the prefill engine accounted for it (model ms)."""

    engine_id: str
    request_id: str
    host: str
    port: int
    engine_model_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One completion request. `hold_kv`: a decode engine will fetch the prompt's blocks; `remote`: this is that engine."""

    chat: bool
    prompt: str
    isl: int
    osl: int
    stream: bool
    include_usage: bool
    hold_kv: bool
    remote: RemoteKv | None


# ---- text ----------------------------------------------------------------------------------------------------------


def expected_text(prompt_text: str, n_tokens: int) -> str:
    """The first `n_tokens` tokens that every mock engine answers to `prompt_text`.

    >>> expected_text("hello", 3)
    'kbo erz qte '
    >>> expected_text("hello", 5).startswith(expected_text("hello", 3))
    True
    """
    return tokens_text(text_seed(prompt_text), 0, n_tokens)


def text_seed(prompt_text: str) -> int:
    return crc32(prompt_text.encode("utf-8", "surrogatepass"))


def tokens_text(seed: int, begin: int, end: int) -> str:
    """Tokens [begin, end): three letters and a blank each, from a 32-bit mix of seed and position."""
    words = []
    for i in range(begin, end):
        x = (seed + i * 0x9E3779B1) & 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        x ^= x >> 16
        words.append(f"{97 + x % 26:c}{97 + (x >> 8) % 26:c}{97 + (x >> 16) % 26:c} ")
    return "".join(words)


def prefix_blocks(prompt_text: str) -> tuple[int, ...]:
    """The prompt's whole blocks of 16 mock tokens, each told by all the text up to its end.

    >>> one, other = prefix_blocks("a" * 64 + "b" * 64), prefix_blocks("a" * 64 + "c" * 70)
    >>> one[0] == other[0], one[1] == other[1], len(other)
    (True, False, 2)
    """
    step, seed, blocks = BLOCK_TOKENS * CHARS_PER_TOKEN, 0, []
    for end in range(step, len(prompt_text) + 1, step):
        seed = crc32(prompt_text[end - step : end].encode("utf-8", "surrogatepass"), seed)
        blocks.append(seed)
    return tuple(blocks)


def text_tokens(text: str) -> int:
    """Mock tokens of a text: four characters each, at least one."""
    return max(1, -(-len(text) // CHARS_PER_TOKEN))


def prompt_of(body: Mapping[str, object]) -> tuple[str, int]:
    """(prompt text, its tokens) of a request body: the contents of all messages in a row, or the prompt; ready-made token ids
    count one each and stand in the text as decimal numbers. Raises ApiError."""
    if "messages" in body:
        text = "".join(_contents(body["messages"]))
        return text, text_tokens(text)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt, text_tokens(prompt)
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return " ".join(map(str, prompt)), len(prompt)
    raise ApiError(400, "prompt must be one text or one list of token ids.", param="prompt")


def _contents(messages: object) -> list[str]:
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list with at least one message.", param="messages")
    texts: list[str] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ApiError(400, f"messages[{index}] must be an object.", param="messages")
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            texts += [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        elif content is not None:
            raise ApiError(400, f"messages[{index}].content must be text or a list of parts.", param="messages")
    return texts


# ---- requests ------------------------------------------------------------------------------------------------------


def parse_call(raw: bytes, *, chat: bool, model: str) -> Call:
    """Read one request body. Raises ApiError: 400 for what cannot be read, 404 for a model that is not served."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The request body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object.", code="invalid_json")
    asked = body.get("model")
    if not isinstance(asked, str):
        raise ApiError(400, "You must provide a model parameter, a string.", param="model")
    if asked != model:
        raise ApiError(404, f"The model `{asked[:256]}` does not exist.", code="model_not_found", param="model")
    if chat and "messages" not in body:
        raise ApiError(400, "messages must be a list with at least one message.", param="messages")
    if body.get("n") not in (None, 1):
        raise ApiError(400, "n must be 1: a mock engine gives one answer a request.", param="n")
    if not chat:
        body.pop("messages", None)
    prompt, isl = prompt_of(body)
    options = body.get("stream_options")
    transfer = body.get("kv_transfer_params")
    transfer = transfer if isinstance(transfer, dict) else {}
    return Call(
        chat=chat,
        prompt=prompt,
        isl=isl,
        osl=_max_tokens(body),
        stream=body.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        hold_kv=transfer.get("do_remote_decode") is True,
        remote=_remote_kv(transfer) if transfer.get("do_remote_prefill") is True else None,
    )


def _max_tokens(body: Mapping[str, object]) -> int:
    for key in ("max_completion_tokens", "max_tokens"):
        value = body.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ApiError(400, f"{key} must be a whole number of at least 1, got {value!r}.", param=key)
        return value
    return DEFAULT_MAX_TOKENS


def _remote_kv(transfer: Mapping[str, object]) -> RemoteKv | None:
    """None where what was handed over names no place: the engine then computes the prompt itself."""
    engine, request, host, port, spent = (
        transfer.get(key) for key in ("remote_engine_id", "remote_request_id", "remote_host", "remote_port", "engine_model_ms")
    )
    if not isinstance(engine, str) or not isinstance(request, str) or not isinstance(host, str) or not isinstance(port, int):
        return None
    return RemoteKv(
        engine_id=engine,
        request_id=request,
        host=host,
        port=port,
        engine_model_ms=float(spent) if isinstance(spent, int | float) else 0.0,
    )


def refused(refusal: Refusal, spec: EngineSpec, request: EngineRequest) -> ApiError:
    """The error that a client gets for a request that the engine does not take."""
    wanted = f"{request.isl + request.osl} tokens ({request.isl} in the prompt, {request.osl} in the completion)"
    if refusal == "too_long":
        return ApiError(
            400,
            f"This model's maximum context length is {spec.max_model_len} tokens, but you requested {wanted}.",
            code="context_length_exceeded",
            param="max_tokens" if request.isl < spec.max_model_len else "messages",
        )
    if refusal == "kv_too_small":
        return ApiError(
            400,
            f"The engine's KV cache holds {spec.kv_capacity_tokens} tokens, but you requested {wanted}.",
            code="context_length_exceeded",
        )
    if refusal == "cannot_decode":
        return ApiError(400, "This engine only computes prompts: max_tokens must be 1.", param="max_tokens")
    return ApiError(
        503, f"The engine is {refusal}; try again.", kind="service_unavailable", code=f"engine_{refusal}", retry_after=True
    )


# ---- answers -------------------------------------------------------------------------------------------------------


class AnswerShape:
    """Writes one answer's chunks or body. `kv_transfer` (a prefill's answer) is what the decode engine will be given."""

    __slots__ = ("_call", "_found", "_head", "_open", "_seed")

    def __init__(self, call: Call, *, name: str, model: str, created: int, cached_tokens: int | None = None) -> None:
        """`cached_tokens`: of the prompt, found in the engine's prefix cache (None: it has none)."""
        self._call = call
        self._found = b"" if cached_tokens is None else b',"prompt_tokens_details":{"cached_tokens":%d}' % cached_tokens
        self._seed = text_seed(call.prompt)
        kind = "chat.completion" if call.chat else "text_completion"
        if call.stream and call.chat:
            kind += ".chunk"
        answer_id = ("chatcmpl-" if call.chat else "cmpl-") + name
        head = orjson.dumps({"id": answer_id, "object": kind, "created": created, "model": model})
        self._head = head[:-1]
        self._open = b"data: " + self._head + b',"choices":[{"index":0,'

    def chunk(self, begin: int, end: int, *, finish: bytes = b"null", extra: bytes = b"") -> bytes:
        """One server-sent event with tokens [begin, end); `extra` holds further fields, each after a comma."""
        text = tokens_text(self._seed, begin, end).encode()
        if not self._call.chat:
            content = b'"text":"%b"' % text
        elif begin:
            content = b'"delta":{"content":"%b"}' % text
        else:
            content = b'"delta":{"role":"assistant","content":"%b"}' % text
        return b'%b%b,"logprobs":null,"finish_reason":%b}]%b}\n\n' % (self._open, content, finish, extra)

    def last_chunks(self, begin: int, *, engine_model_ms: float, engine_ttft_ms: float) -> bytes:
        """The rest of the tokens, the usage where it was asked for, and the end mark."""
        accounts = b',"engine_model_ms":%.3f,"engine_ttft_ms":%.3f' % (engine_model_ms, engine_ttft_ms)
        text = self.chunk(begin, self._call.osl, finish=b'"length"', extra=accounts)
        if self._call.include_usage:
            text += b'data: %b,"choices":[],"usage":%b%b}\n\n' % (self._head, self._usage(), accounts)
        return text + DONE

    def body(self, *, engine_model_ms: float, engine_ttft_ms: float, kv_transfer: Mapping[str, object] | None) -> bytes:
        """The whole answer at once."""
        text = tokens_text(self._seed, 0, self._call.osl).encode()
        content = b'"message":{"role":"assistant","content":"%b"}' if self._call.chat else b'"text":"%b"'
        return b'%b,"choices":[{"index":0,%b,"logprobs":null,"finish_reason":"length"}],"usage":%b,%b%b}' % (
            self._head,
            content % text,
            self._usage(),
            b'"engine_model_ms":%.3f,"engine_ttft_ms":%.3f' % (engine_model_ms, engine_ttft_ms),
            b"" if kv_transfer is None else b',"kv_transfer_params":' + orjson.dumps(kv_transfer),
        )

    def _usage(self) -> bytes:
        isl, osl = self._call.isl, self._call.osl
        return b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d%b}' % (isl, osl, isl + osl, self._found)


def kv_transfer_params(*, replica: str, request_id: str, port: int, engine_model_ms: float) -> dict[str, object]:
    """What a prefill engine hands over. A mock's blocks are one entry a request; the address is the prefill engine's own."""
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": replica,
        "remote_block_ids": [request_id],
        "remote_request_id": request_id,
        "remote_host": "127.0.0.1",
        "remote_port": port,
        "engine_model_ms": round(engine_model_ms, 3),
    }
