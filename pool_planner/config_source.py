"""[I/O] Reads a planner configuration from a file (JSON or YAML) or from a text given inline."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from pool_planner.compatibility import ConfigError, Reading, read_config


def load_config(source: str, *, environ: Mapping[str, str] | None = None) -> Reading:
    """The configuration in the file that `source` names, or in `source` itself. `environ` defaults to the process's.

    JSON is YAML's subset, so one parser would do; JSON is tried first because its messages name line and column of what
    JSON forbids. Raises ConfigError: unreadable, neither JSON nor YAML, or anything that `read_config` refuses.
    """
    text, origin = _text(source)
    try:
        given = json.loads(text)
    except json.JSONDecodeError as not_json:
        if text.lstrip().startswith("{") and origin.endswith(".json"):
            raise ConfigError(origin, (f"not JSON: {not_json}",)) from not_json
        try:
            given = yaml.safe_load(text)
        except yaml.YAMLError as not_yaml:
            raise ConfigError(origin, (f"neither JSON ({not_json}) nor YAML ({not_yaml})",)) from not_yaml
    if isinstance(given, str):
        raise ConfigError(origin, (f"{source!r} is neither a file nor a JSON or YAML mapping",))
    return read_config({} if given is None else given, origin=origin, environ=os.environ if environ is None else environ)


def _text(source: str) -> tuple[str, str]:
    inline = "\n" in source or source.lstrip().startswith("{")
    path = Path(source)
    try:
        if not inline and path.is_file():
            return path.read_text(encoding="utf-8"), source
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(source, (f"cannot be read: {error}",)) from error
    if not inline and path.suffix.lower() in {".json", ".yaml", ".yml"}:
        raise ConfigError(source, ("no such file",))
    return source, "inline configuration"
