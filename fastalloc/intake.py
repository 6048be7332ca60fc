"""Secrets read straight into a witness arena: no Python object, no buffer of a file object ever holds them."""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastalloc import _binding
from fastalloc.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from fastalloc.units import Size, parse_size

if TYPE_CHECKING:
    from fastalloc.block import Block

__all__ = ["SecretIntake"]

_DEEP = 64 << 10
_FIRST_GUESS = 4096  # of what does not tell its size: a pipe, a terminal, a file of /proc


class SecretIntake(_binding.ArenaBase):
    """What Witness adds to Arena."""

    __slots__ = ()

    def read(self, file: Any, nbytes: Size | None = None) -> "Block":
        """Read a file into a new block.

        Parameters
        ----------
        file : str, path, int, or unbuffered binary file
            A path, a file descriptor, or what open(..., "rb", buffering=0) returns. Descriptors and files are read
            from where they are, and stay open.
        nbytes : int or str, optional
            Read no more than this. Unless given, to the end.

        Returns
        -------
        Block
            Of exactly as many bytes as were read.

        Raises
        ------
        ArgumentTypeError
            If it is something else, or a file with a buffer: that would keep a copy.
        ArgumentError
            If `nbytes` is no size, or an int no descriptor.
        OSError
            If it cannot be opened or read.
        OutOfMemoryError, LockError, ClosedError
            As alloc().

        Notes
        -----
        The kernel keeps its own copy of a file's pages, and of what goes through a pipe.

        Examples
        --------
        >>> import fastalloc as fa
        >>> with fa.Witness("64KiB") as witness:
        ...     key = witness.read("/dev/urandom", 32)
        ...     len(key)
        32
        """
        limit = None if nbytes is None else parse_size(nbytes, "nbytes")
        with _descriptor(file) as descriptor:
            status = os.fstat(descriptor)
            room = _FIRST_GUESS
            if stat.S_ISREG(status.st_mode) and status.st_size > 0:
                room = max(status.st_size - os.lseek(descriptor, 0, os.SEEK_CUR), 1)
            if limit is not None:
                room = min(room, limit)
            block = self.alloc(room)
            length = 0
            while limit is None or length < limit:
                if length == len(block):
                    if _is_at_its_end(descriptor, status, length):
                        break
                    block = self._resized(block, length, 2 * length if limit is None else min(2 * length, limit))
                with memoryview(block) as view, view[length:] as rest:
                    read = os.readv(descriptor, [rest])
                if read == 0:
                    break
                length += read
        return block if length == len(block) else self._resized(block, length, length)

    def getpass(self, prompt: str = "Password: ", *, limit: Size = 1024) -> "Block":
        """Ask for a password on the terminal, without showing it, into a new block.

        Parameters
        ----------
        prompt : str
            What to ask.
        limit : int or str
            Bytes that a line may have at most; a terminal gives no more than 4095.

        Returns
        -------
        Block
            The bytes as typed, without the end of the line.

        Raises
        ------
        UnsupportedError
            If the process has no terminal.
        EOFError
            If the input ends.
        ArgumentError
            If the line is longer than the limit; nothing of it is kept.
        OutOfMemoryError, LockError, ClosedError
            As alloc().

        Notes
        -----
        The kernel's terminal driver has had the line in its own buffer, as has whatever the terminal is.
        """
        most = parse_size(limit, "limit", minimum=1)
        block = self.alloc(most + 1)
        with _terminal() as descriptor, _without_echo(descriptor):
            os.write(descriptor, prompt.encode())
            length = _read_line(descriptor, block)
            os.write(descriptor, b"\n")
        if length > most:
            block.free()
            raise ArgumentError(f"limit: the line is longer than {most} bytes")
        return self._resized(block, length, length)

    def token(self, nbytes: Size = 32) -> "Block":
        """Make a block of random bytes, as os.urandom would give them: the kernel writes them into the arena.

        Parameters
        ----------
        nbytes : int or str
            How many.

        Raises
        ------
        OSError
            If the system has no random bytes.
        ArgumentError, OutOfMemoryError, LockError, ClosedError
            As alloc().

        Examples
        --------
        >>> import fastalloc as fa
        >>> with fa.Witness("64KiB") as witness:
        ...     key = witness.token(32)
        ...     len(key), witness.owns(key)
        (32, True)
        """
        block = self.alloc(nbytes)
        _binding.fill_random(block)
        return block

    def _resized(self, block: "Block", length: int, size: int) -> "Block":
        """The first `length` bytes in a block of another size; the old one is wiped and freed."""
        fresh = self.alloc(size)
        with memoryview(block) as source, memoryview(fresh) as target:
            target[:length] = source[:length]
        block.free()
        _binding.wipe_stack(_DEEP)  # the registers that it was copied with may have been saved there
        return fresh


@contextlib.contextmanager
def _descriptor(file: Any) -> Iterator[int]:
    if isinstance(file, int) and not isinstance(file, bool):
        if not 0 <= file < 2**31:
            raise ArgumentError(f"file: {hex(file)[:40]} is not a file descriptor")
        yield file
    elif isinstance(file, str | bytes | os.PathLike):
        opened = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield opened
        finally:
            os.close(opened)
    elif isinstance(file, io.RawIOBase):
        yield file.fileno()
    else:
        what = "with a buffer, which would keep a copy" if isinstance(file, io.IOBase) else f"not {type(file).__name__}"
        raise ArgumentTypeError(f"file: expected a path, a descriptor or a file opened with buffering=0, {what}")


def _is_at_its_end(descriptor: int, status: os.stat_result, length: int) -> bool:
    """Whether a regular file has no more than it had. Of anything else only reading can tell."""
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        return False
    return length > 0 and os.lseek(descriptor, 0, os.SEEK_CUR) >= os.fstat(descriptor).st_size


@contextlib.contextmanager
def _terminal() -> Iterator[int]:
    try:
        opened = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        msg = f"getpass: the process has no terminal ({error.strerror}); read() takes pipes and files"
        raise UnsupportedError(msg) from None
    try:
        yield opened
    finally:
        os.close(opened)


@contextlib.contextmanager
def _without_echo(descriptor: int) -> Iterator[None]:
    import termios

    before = termios.tcgetattr(descriptor)
    silent = list(before)
    silent[3] &= ~termios.ECHO
    try:  # around both: Ctrl-C must not leave the terminal without its echo
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, silent)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


def _read_line(descriptor: int, block: "Block") -> int:
    """The length of a line without its end; if it fills the block, there may be more of it."""
    length = 0
    with memoryview(block) as view:
        while length < len(view):
            with view[length:] as rest:
                read = os.readv(descriptor, [rest])
            if read == 0:
                if length == 0:
                    raise EOFError("getpass: the input has ended")
                return length
            length += read
            if view[length - 1] == ord("\n"):
                view[length - 1] = 0
                return length - 1
    return length
