"""The OpenAPI documents that the router serves about itself: what clients may ask, and what the planner may. Pure.

Bodies of completions are described as far as the router reads them; whatever else stands in them goes to the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

VERSION = "3.1.0"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_WHY = {
    "400": "The request is malformed, or the engine refuses it.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model, or path.",
    "405": "Another method is needed.",
    "408": "The request took too long to arrive.",
    "413": "The body is too long.",
    "422": "The engine refuses the request.",
    "429": "More requests than are admitted; Retry-After says when to come back.",
    "431": "The headers are too long.",
    "502": "The engines failed before they answered.",
    "503": "The model is asleep or starting; Retry-After says when to come back.",
    "504": "The engine took too long.",
}
_PRIORITY = {"type": "integer", "description": "Higher goes first.", "minimum": -(2**31) + 1, "maximum": 2**31 - 1}
_TARGET = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e9}
_COMMON: dict[str, Any] = {
    "model": {"type": "string", "minLength": 1, "description": "A name that /v1/models lists."},
    "stream": {"type": "boolean", "default": False},
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}},
    "max_tokens": {"type": ["integer", "null"], "minimum": 1},
    "extra_args": {
        "type": "object",
        "description": "Latency targets of this request, ms.",
        "properties": {"ttft_target": _TARGET, "itl_target": _TARGET},
    },
    "nvext": {
        "type": "object",
        "properties": {"agent_hints": {"type": "object", "properties": {"priority": _PRIORITY}}},
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string"},
        "content": {"type": ["string", "array", "null"], "items": {"type": "object"}},
    },
}
_HEADERS = [
    {"name": name, "in": "header", "required": False, "schema": schema, "description": about}
    for name, schema, about in (
        (
            "X-Request-Id",
            {"type": "string", "maxLength": 128, "pattern": "^[A-Za-z0-9._-]+$"},
            "Comes back, and goes to engines.",
        ),
        ("X-TTFT-Target-Ms", _TARGET, "Where the body names no target."),
        ("X-ITL-Target-Ms", _TARGET, "Where the body names no target."),
        ("X-Request-Priority", _PRIORITY, "Where the body names no priority."),
    )
]


def _json(schema: Mapping[str, Any], about: str) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: str) -> dict[str, Any]:
    return {
        status: {"description": _WHY[status], "content": {"application/json": {"schema": {"$ref": _REF}}}}
        for status in statuses
    }


_REF = "#/components/schemas/Error"


def _completion(summary: str, properties: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": {**_COMMON, **properties}, "additionalProperties": True}
    answer = {
        "description": "The engine's answer.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}},
    }
    return {
        "summary": summary,
        "parameters": _HEADERS,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": answer, **_errors("400", "401", "404", "408", "413", "422", "429", "431", "502", "503", "504")},
    }


def _document(title: str, about: str, paths: Mapping[str, Any], schemas: Mapping[str, Any], *, keys: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "openapi": VERSION,
        "info": {"title": title, "version": "1", "description": about},
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR, **schemas}},
    }
    if keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


_CARD = {
    "type": "object",
    "required": ["id", "object"],
    "properties": {"id": {"type": "string"}, "object": {"const": "model"}},
}
_STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}
_READY = {"type": "object", "required": ["ready"], "properties": {"ready": {"type": "boolean"}}}


def public(*, keys: bool) -> dict[str, Any]:
    """The document of the clients' listener; `keys`: it wants API keys."""
    chat = {
        "messages": {"type": "array", "items": _MESSAGE},
        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1},
    }
    prompt = {"prompt": {"type": ["string", "array"], "items": {"type": ["string", "integer", "array"]}}}
    listed = {"type": "object", "required": ["object", "data"], "properties": {"data": {"type": "array", "items": _CARD}}}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    unready = {"503": _json(_READY, "No endpoint is known, or the router is stopping.")}
    open_to_all: list[Any] = []
    paths = {
        "/v1/chat/completions": {"post": _completion("Answer a conversation", chat, ["model", "messages"])},
        "/v1/completions": {"post": _completion("Continue a text", prompt, ["model", "prompt"])},
        "/v1/models": {"get": {"summary": "The models", "responses": {"200": _json(listed, "All of them."), **_errors("401")}}},
        "/v1/models/{model}": {
            "get": {
                "summary": "One model",
                "parameters": [name],
                "responses": {"200": _json(_CARD, "It is here."), **_errors("400", "401", "404", "431")},
            }
        },
        "/health": {"get": {"summary": "Alive", "security": open_to_all, "responses": {"200": _json(_STATUS, "Yes.")}}},
        "/ready": {
            "get": {"summary": "Can serve", "security": open_to_all, "responses": {"200": _json(_READY, "Yes."), **unready}}
        },
    }
    return _document("pool-router", "OpenAI API over pools of inference engines.", paths, {}, keys=keys)


def admin(messages: Mapping[str, type[BaseModel]], *, token: bool) -> dict[str, Any]:
    """The document of the planner's listener. `messages`: what "PUT /admin/endpoints" and the like take."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for operation, message in messages.items():
        method, path = operation.split(" ")
        schema = message.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        paths.setdefault(path, {})[method.lower()] = {
            "summary": (message.__doc__ or "").split("\n")[0] or operation,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {
                "200": _json({"type": "object"}, "In force now."),
                **_errors("400", "401", "404", "413", "431"),
                "409": _json({"$ref": _REF}, "It contradicts the configuration."),
            },
        }
    answers = {"200": _json({"type": "object"}, "What the router knows."), **_errors("401")}
    paths["/admin/state"] = {"get": {"summary": "Endpoints, load, queues", "responses": answers}}
    text = {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    paths["/metrics"] = {"get": {"summary": "Metrics", "responses": {"200": text, **_errors("401")}}}
    paths["/health"] = {"get": {"summary": "Alive", "security": [], "responses": {"200": _json(_STATUS, "Yes.")}}}
    return _document("pool-router admin", "What a planner tells the router and asks of it.", paths, schemas, keys=token)
