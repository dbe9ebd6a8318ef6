"""The full set of manifests for a hierarchical deployment, out of one topology. Pure; `commands.compose` writes the files."""

from global_planner.compose.plan import ComposeError, ComposeOptions, Front, compose

__all__ = ["ComposeError", "ComposeOptions", "Front", "compose"]
