"""`ray`, but the head's dashboard loads its job server alone, and the part that tells that one of the node: the others are a
process each, which nobody here uses and a busy machine takes long to start.

    python -m tests.jobs.lean_ray start --head …
"""

from __future__ import annotations

from typing import Any

from ray._private import services
from ray.scripts.scripts import main

_start = services.start_ray_process


def _lean(command: list[str], process_type: str, *arguments: Any, **settings: Any) -> Any:
    if process_type == "dashboard":
        command = [*command, "--modules-to-load=JobHead,NodeHead"]
    return _start(command, process_type, *arguments, **settings)


if __name__ == "__main__":
    services.start_ray_process = _lean
    main()
