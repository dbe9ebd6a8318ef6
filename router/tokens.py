"""[I/O] Prompt lengths from a model's own tokenizer: a local `tokenizer.json`, read with the library of the extra `tokenizer`.

Short prompts are counted at once; longer ones in a thread, so that no other request waits for them. Of very long ones only the
beginning is counted and the rest estimated from it: a length decides a pool, and needs not be exact.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from router.config import ConfigError
from router.openai import Call

AT_ONCE_CHARS = 2_000
MAX_CHARS = 400_000


class Tokenizer:
    """The tokenizer in a file. Raises ConfigError when the extra is not installed, or the file is no tokenizer."""

    def __init__(self, path: str) -> None:
        try:
            from tokenizers import Tokenizer as Loaded
        except ImportError as error:
            raise ConfigError(
                f"tokenizer: {path}: needs the extra 'tokenizer' (pip install 'global-planner[tokenizer]')"
            ) from error
        if not Path(path).is_file():
            raise ConfigError(f"tokenizer: {path} is not a file")
        try:
            self._loaded: Any = Loaded.from_file(path)
        except Exception as error:
            raise ConfigError(f"tokenizer: {path} is not a tokenizer.json: {error}") from error

    async def count(self, call: Call) -> int:
        """Tokens of the prompt's texts, without what a chat template adds."""
        if call.chars <= AT_ONCE_CHARS:
            return self._count(call.texts)
        return await asyncio.to_thread(self._count, call.texts)

    def _count(self, texts: list[str]) -> int:
        taken, left = [], MAX_CHARS
        for text in texts:
            if left <= 0:
                break
            # Lone surrogates are no text to the library; engines replace them too.
            taken.append(text[:left].encode("utf-8", "replace").decode("utf-8"))
            left -= len(text)
        if not taken:
            return 0
        counted = sum(len(one.ids) for one in self._loaded.encode_batch_fast(taken, add_special_tokens=False))
        whole, part = sum(map(len, texts)), sum(map(len, taken))
        return counted if whole <= part else round(counted * whole / part)
