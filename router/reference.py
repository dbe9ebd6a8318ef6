"""The configuration, told from its own classes: every section, what it means, its keys with their types and defaults. Pure."""

from __future__ import annotations

import inspect
import textwrap
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from router.config import RouterConfig
from router.config_pools import Section

WIDTH = 96


def sections() -> dict[str, type[Section]]:
    """Every section by its path: "listen", "models[]", "models[].pools[]", …; "" is the top."""
    found: dict[str, type[Section]] = {"": RouterConfig}
    _collect(RouterConfig, "", found)
    return found


def _collect(section: type[Section], path: str, found: dict[str, type[Section]]) -> None:
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is not None:
            place = f"{path}.{name}" if path else name
            origin = get_origin(field.annotation)
            place += "[]" if origin is tuple else ".<role>" if origin is dict else ""
            found[place] = inner
            _collect(inner, place, found)


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((inner for part in get_args(annotation) if (inner := _section_in(part))), None)


def described(path: str) -> str:
    """One section as text. Raises KeyError for a path that is none."""
    section = sections()[path]
    title = path or "top level"
    lines = [title, "=" * len(title)]
    for paragraph in inspect.cleandoc(section.__doc__ or "").split("\n\n"):
        lines += [*textwrap.wrap(" ".join(paragraph.split()), WIDTH), ""]
    rows = []
    for name, field in section.model_fields.items():
        rows.append((name, _type(field.annotation), _default(field)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines += [f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {default}".rstrip() for name, kind, default in rows]
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "" if _section_in(field.annotation) else _shown(field.default)


def _shown(default: Any) -> str:
    if default is None:
        return "absent"
    if isinstance(default, tuple | dict):
        return "empty" if not default else str(default)
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:.4g}" if isinstance(default, float) else str(default) or '""'


def _type(annotation: Any) -> str:
    """A type in an operator's words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return " | ".join(_type(part) for part in parts if part is not type(None))
    if origin is tuple:
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"mapping of {_type(parts[0])} to {_type(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return {str: "text", int: "whole number", float: "number", bool: "true | false"}.get(annotation, "anything")


def whole() -> Iterator[str]:
    """All sections, the top first."""
    for path in sections():
        yield described(path)
