"""What is done to the secret: NumPy's operations, each with the way around what it leaves outside the arena.

An operation gets the Secret, whose arrays are in a witness arena; what it returns is dropped. Rows appear in the table
in this order. A workaround is shown where something is left in spite of the arena.
"""

import copy
import hashlib
import io
import logging
import os
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

COUNT = 192  # numbers: sorted, so that sorting leaves neighbours neighbours
WIDTH = 32


@dataclass(frozen=True)
class Secret:
    """The same secret numbers in several shapes, and 32 lines of secret text."""

    vector: Any
    swapped: Any
    """The numbers in the other byte order, over and over: more than the 8192 elements of NumPy's buffers."""
    long: Any
    """The numbers, as often."""
    text: Any
    triangle: Any
    """A triangular matrix of them, column after column: what LAPACK's factorisations leave as it is."""

    @property
    def matrix(self) -> Any:
        """A square one, its columns one after the other in memory, as LAPACK wants it."""
        return self.vector[:169].reshape(13, 13).T

    @property
    def runs(self) -> Any:
        """Two sorted runs, which a merge copies."""
        return np.roll(self.vector, COUNT // 2)

    @property
    def large_matrix(self) -> Any:
        """Large enough for OpenBLAS to pack it."""
        return self.long[: 120 * 120].reshape(120, 120)

    @property
    def pairs(self) -> Any:
        """Complex numbers: two neighbours each."""
        return self.vector.view(np.complex128)


@dataclass(frozen=True)
class Operation:
    """A row of the table."""

    name: str
    run: Callable[[Secret], Any]
    workaround: str = ""
    """Where wipe_freed_objects() and wipe_stack() do not help."""
    cure: Callable[[], Any] = lambda: None
    """The workaround, where it is something to do afterwards."""


PRODUCT = "a product of zeros of the same shapes: OpenBLAS keeps its packing buffers, and packs them anew"
FILE = "the C library's file buffers: `os.writev(fd, [a])`"
WORKSPACE = "NumPy takes the workspace from malloc: `fastalloc run --zero-on-free -- python ...`"
LINALG = WORKSPACE + ", and a product of zeros (OpenBLAS keeps its packing buffers)"


def _multiply_zeros() -> None:
    """As large as any product of the table, by threads as many."""
    for size in (13, 120):
        _ = np.zeros((size, size)) @ np.zeros((size, size))


def _to_descriptor(array: Any) -> None:
    with tempfile.TemporaryFile(buffering=0) as file:
        os.writev(file.fileno(), [array])


def _to_file(array: Any) -> None:
    with tempfile.TemporaryFile() as file:
        array.tofile(file)


def _saved(array: Any) -> None:
    with tempfile.TemporaryFile() as file:
        np.save(file, array)
        file.seek(0)
        np.load(file)


def _misaligned(s: Secret) -> Any:
    room = np.empty(s.vector.nbytes + 1, np.uint8)
    array = room[1:].view(np.float64)
    array[:] = s.vector
    return array


def _logged(value: object) -> None:
    logger = logging.getLogger("residue")
    logger.addHandler(logging.StreamHandler(io.StringIO()))
    logger.warning("value %s", value)
    logger.handlers.clear()


def _raised(value: bytes) -> None:
    try:
        raise ValueError(value)  # noqa: TRY301 - what is measured
    except ValueError:
        pass


OPERATIONS = [
    # ---- elementwise, and making arrays ----
    Operation("copy", lambda s: s.vector.copy()),
    Operation("arithmetic (`a * 1 + 0`)", lambda s: s.vector * 1.0 + 0.0),
    Operation("arithmetic on 16,128 numbers", lambda s: s.long * 1.0 + 0.0),
    Operation("comparison and mask (`a[a > 0]`)", lambda s: s.vector[s.vector > 0]),
    Operation("fancy index", lambda s: s.vector[np.arange(COUNT)]),
    Operation(
        "`take`, `where`, `clip`",
        lambda s: (s.vector.take(range(9)), np.where(s.vector > 0, s.vector, 0), np.clip(s.vector, 0, 9)),
    ),
    Operation(
        "`concatenate`, `stack`, `tile`, `repeat`",
        lambda s: (
            np.concatenate([s.vector, s.vector]),
            np.stack([s.vector] * 2),
            np.tile(s.vector, 2),
            s.vector.repeat(1),
        ),
    ),
    Operation(
        "`roll`, `pad`, `flip`, transposed copy",
        lambda s: (np.roll(s.vector, 3), np.pad(s.vector, 2), np.flip(s.vector).copy(), s.matrix.T.copy()),
    ),
    Operation("`astype` to the other byte order and back", lambda s: s.vector.astype(">f8").astype("f8")),
    Operation("`byteswap`", lambda s: s.vector.byteswap()),
    Operation("`copy.deepcopy`", lambda s: copy.deepcopy(s.vector)),
    Operation("shuffle, permutation", lambda s: np.random.default_rng(0).permutation(s.vector)),
    Operation("masked array", lambda s: np.ma.masked_less(s.vector, 0) + 0.0),
    # ---- casts ----
    Operation("arithmetic on swapped numbers", lambda s: s.swapped + 0.0),
    Operation("arithmetic on misaligned numbers", lambda s: _misaligned(s) + 0.0),
    Operation("mixed types (`f8 + i4`)", lambda s: s.long + np.zeros(len(s.long), np.int32)),
    Operation("sum of swapped numbers", lambda s: s.swapped.sum()),
    Operation(
        "`nditer`, buffered",
        lambda s: [None for _ in np.nditer(s.swapped, ["buffered", "external_loop"], op_dtypes=["f8"])],
    ),
    # ---- reductions, sorting ----
    Operation(
        "`sum`, `mean`, `std`, `min`", lambda s: (s.vector.sum(), s.vector.mean(), s.vector.std(), s.vector.min())
    ),
    Operation("`cumsum`, `diff`", lambda s: (s.vector.cumsum(), np.diff(s.vector))),
    Operation("`sort`", lambda s: np.sort(s.vector)),
    Operation('`sort(kind="stable")`', lambda s: np.sort(s.runs, kind="stable"), f"the default kind; {WORKSPACE}"),
    Operation("`argsort`", lambda s: np.argsort(s.vector)),
    Operation("`lexsort`", lambda s: np.lexsort([s.swapped]), f"`argsort`; {WORKSPACE}"),
    Operation(
        "`partition`, `median`, `percentile`",
        lambda s: (np.partition(s.vector, 9), np.median(s.vector), np.percentile(s.vector, 9)),
    ),
    Operation("`unique`, `searchsorted`", lambda s: (np.unique(s.vector), np.searchsorted(s.vector, 1.5))),
    # ---- products, FFT, linear algebra ----
    Operation("`dot` of vectors", lambda s: s.vector @ s.vector),
    Operation("matrix product, 13 × 13", lambda s: s.matrix @ s.matrix, PRODUCT, _multiply_zeros),
    Operation(
        "matrix product, 120 × 120",
        lambda s: s.large_matrix @ s.large_matrix,
        PRODUCT,
        _multiply_zeros,
    ),
    Operation("`einsum`, `outer`", lambda s: (np.einsum("i,i->i", s.vector, s.vector), np.outer(s.vector, s.vector))),
    Operation(
        "`convolve`, `interp`", lambda s: (np.convolve(s.vector, [1.0]), np.interp(s.vector, s.vector, s.vector))
    ),
    Operation("`fft.rfft`", lambda s: np.fft.rfft(s.vector), WORKSPACE),
    Operation("`fft.fft` of complex numbers", lambda s: np.fft.fft(s.pairs), WORKSPACE),
    Operation(
        "`linalg.solve`, `inv`, `det`",
        lambda s: (np.linalg.solve(s.triangle, s.vector[:13]), np.linalg.inv(s.triangle), np.linalg.det(s.triangle)),
        LINALG,
        _multiply_zeros,
    ),
    Operation(
        "`linalg.svd`, `qr`, `lstsq`",
        lambda s: (np.linalg.svd(s.triangle), np.linalg.qr(s.triangle), np.linalg.lstsq(s.triangle, s.vector[:13])),
        WORKSPACE,
    ),
    Operation("`linalg.eigh`, `eig`", lambda s: (np.linalg.eigh(s.triangle), np.linalg.eig(s.triangle)), WORKSPACE),
    Operation("`linalg.norm`", lambda s: np.linalg.norm(s.vector)),
    # ---- out of NumPy ----
    Operation("`tobytes`, `bytes(a)`", lambda s: (s.vector.tobytes(), bytes(s.vector))),
    Operation("`bytearray`", lambda s: bytearray(s.vector)),
    Operation("`pickle.dumps` and `loads`", lambda s: pickle.loads(pickle.dumps(s.vector))),
    Operation("`tofile`", lambda s: _to_file(s.vector), FILE),
    Operation("`os.writev(fd, [a])`", lambda s: _to_descriptor(s.vector)),
    Operation("`save` and `load`", lambda s: _saved(s.vector), FILE),
    Operation("`io.BytesIO`", lambda s: io.BytesIO(s.vector)),
    Operation("`hashlib.sha256(a)`", lambda s: hashlib.sha256(s.vector).digest()),
    Operation("`tolist`, one item, of text", lambda s: (s.text.tolist(), s.text[3], s.text.item(4))),
    Operation("array of objects of text", lambda s: s.text.astype(object)),
    Operation("`repr`, `str`, `format` of text", lambda s: (repr(s.text), str(s.text), f"{s.text[1]}")),
    Operation("text in a log", lambda s: _logged(s.text[2])),
    Operation("text in an exception", lambda s: _raised(s.text[2])),
    Operation("`astype(str)` of text, and back", lambda s: s.text.astype("U32").astype("S32")),
    Operation("`int.from_bytes`", lambda s: int.from_bytes(s.text[5])),
]
