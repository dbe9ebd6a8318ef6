"""What an engine remembers of prompts: blocks of their tokens, told by the whole prefix that ends with them. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Which blocks of prompts an engine has kept, the least recently used of them going first. `capacity` in blocks of
    `block_tokens`."""

    __slots__ = ("_block_tokens", "_blocks", "_capacity")

    def __init__(self, capacity: int, *, block_tokens: int) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._capacity = max(0, capacity)
        self._block_tokens = block_tokens

    def take(self, blocks: Sequence[int]) -> int:
        """How many tokens of a prompt with these blocks are kept already; all its blocks are kept from now on."""
        kept = self._blocks
        found = 0
        for block in blocks:
            if block not in kept:
                break
            found += 1
        for block in reversed(blocks):  # the beginning last: it is what others share
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > self._capacity:
            kept.popitem(last=False)
        return found * self._block_tokens
