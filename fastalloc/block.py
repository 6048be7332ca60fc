"""Raw bytes in an arena or a manager. The type is C (native/src/adapters/python_block.c)."""

from fastalloc._binding import Block

__all__ = ["Block"]
