"""A terminal for tests of what is drawn on one."""

from __future__ import annotations


class Screen:
    """A terminal that remembers."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        """Yes."""
        return True
