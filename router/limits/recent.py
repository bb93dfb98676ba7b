"""A bounded memory of what was made lately."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, TypeVar

T = TypeVar("T")

_MOST: Final = 4096


class Recent(dict[Hashable, T]):
    """A dict that begins anew when it is full. What is missing has to be made again."""

    def __setitem__(self, key: Hashable, value: T) -> None:
        if len(self) >= _MOST:
            self.clear()
        super().__setitem__(key, value)
