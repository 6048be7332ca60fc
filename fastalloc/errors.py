"""What can go wrong: every exception is a FastallocError, and the builtin that one would catch without knowing us."""


class FastallocError(Exception):
    """The base of all exceptions of fastalloc."""


class ArgumentError(FastallocError, ValueError):
    """An argument is out of its range; the message names the argument, its value and the limit."""


class ArgumentTypeError(FastallocError, TypeError):
    """An argument is of a type that is not taken."""


class OutOfMemoryError(FastallocError, MemoryError):
    """No memory, no address space, a full arena, or the limit of a manager."""


class InUseError(FastallocError, BufferError):
    """Arrays, blocks or buffers are in the way; nothing has been changed."""


class ClosedError(FastallocError, ValueError):
    """The arena or manager has been closed."""


class StaleMarkError(FastallocError, ValueError):
    """The mark has been rewound past, is of before a reset, or is another arena's."""


class ForeignBlockError(FastallocError, ValueError):
    """The block belongs to another manager or arena."""


class FreedBlockError(FastallocError, ValueError):
    """The block has been freed before."""


class ScopeError(FastallocError, RuntimeError):
    """A scope was entered twice, or not left in the reverse order of entering."""


class LockError(FastallocError, OSError):
    """Memory could not be locked in RAM, and lock="require" (or secret_memory=True, which implies it) was asked for."""

    limit: int | None = None
    """Bytes that the process may lock (RLIMIT_MEMLOCK); None where that is not known."""
    locked: int = 0
    """Bytes of the arena that are locked."""
    wanted: int = 0
    """Bytes of the arena that would have had to be."""


class SealedError(FastallocError, ValueError):
    """The arena is sealed: it hands nothing out before unseal(), or outside of `with arena.unsealed()`."""


class UnsupportedError(FastallocError, NotImplementedError):
    """A protection that was required does not exist on this platform."""


class CorruptionError(FastallocError, RuntimeError):
    """The C library found its memory damaged."""
