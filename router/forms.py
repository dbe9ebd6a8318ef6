"""[I/O] The files that a configuration is made of: itself, in any of its forms, and the profiles that it names.

Our own form and the JSON of existing global routers are read here. Other packages of an installation may know further forms,
such as a whole deployment's topology: they register a reader under the entry point group `pool_router.forms`, and the router
needs to know nothing of them. A reader is called with the raw mapping and the path; it answers None for what is not its form.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

from pool_planner.performance.profile import ProfileError, load_profile
from router.adaptive import Predictor
from router.config import ConfigError, RouterConfig, read, validate
from router.config_pools import ANY_MODEL, ModelConfig, PoolConfig
from router.foreign import is_foreign, translate

GROUP = "pool_router.forms"


def load(
    path: Path, *, model: str = ANY_MODEL, default_ttft_ms: float | None = None, default_itl_ms: float | None = None
) -> RouterConfig:
    """The configuration in a file of any form; its paths count from the file's folder. Raises ConfigError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    raw = read(text, source=path.name)
    if is_foreign(raw):
        return translate(raw, source=path.name, model=model, default_ttft_ms=default_ttft_ms, default_itl_ms=default_itl_ms)
    if "models" not in raw:
        for form in entry_points(group=GROUP):
            config = form.load()(raw, path)
            if config is not None:
                return _absolute(config, path.parent)
    return _absolute(validate(raw, source=path.name), path.parent)


def _absolute(config: RouterConfig, folder: Path) -> RouterConfig:
    def at(path: str | None) -> str | None:
        return None if path is None else str((folder / path).resolve())

    def placed(pool: PoolConfig) -> PoolConfig:
        found = pool.discovery
        if found is not None:
            found = found.model_copy(update={"file": at(found.file), "kubeconfig": at(found.kubeconfig)})
        return pool.model_copy(update={"profile": at(pool.profile), "discovery": found})

    models = tuple(
        model.model_copy(update={"pools": tuple(map(placed, model.pools)), "tokenizer": at(model.tokenizer)})
        for model in config.models
    )
    tls = config.listen.tls
    if tls is None:
        return config.model_copy(update={"models": models})
    placed_tls = tls.model_copy(update={"certificate": at(tls.certificate), "key": at(tls.key)})
    return config.model_copy(update={"models": models, "listen": config.listen.model_copy(update={"tls": placed_tls})})


def predictors_of(model: ModelConfig) -> Mapping[str, Predictor]:
    """By pool: what adaptive selection and grids know of it. Empty where the model needs none. Raises ConfigError."""
    if model.selection != "adaptive":
        return {}
    return every_predictor(model)


def every_predictor(model: ModelConfig) -> Mapping[str, Predictor]:
    """The same for a model however it selects. Raises ConfigError where a pool has no profile, or one that lacks a curve."""
    found = {}
    for pool in model.pools:
        if pool.profile is None:
            raise ConfigError(f"pool {pool.name!r} has no profile")
        try:
            found[pool.name] = Predictor(pool, load_profile(Path(pool.profile)), ttft_ms=model.default_ttft_ms or 1000.0)
        except ProfileError as error:
            raise ConfigError(str(error)) from error
    return found
