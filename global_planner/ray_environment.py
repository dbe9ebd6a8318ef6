"""[I/O] The environment of a Ray of our own: loopback only, no usage statistics, token authentication, a folder of its own.

Ray reads these variables when it is first imported, so they are set before; two systems on one machine do not meet.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from pathlib import Path


def prepare() -> Path:
    """Make the folder and the token, and set the environment of this process and its children. Raises RuntimeError when Ray
    was imported before: it would neither use nor check the token."""
    if "ray" in sys.modules:
        raise RuntimeError("Ray was imported before its environment was prepared")
    # Ray puts Unix sockets below its folder, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="gp-", dir="/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.update(
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
        }
    )
    return folder
