"""A complete, zero-knowledge STARK in NumPy: the kind of program fastalloc is made for.

**The statement.** "I know eight field elements ``s`` (a secret of 247 bits) such that ``P^N(s) + s = output``", where
``P^N`` is ``N`` rounds of a public permutation of GF(p)^8: add the round's constants, raise every element to the 7th
power, multiply by an MDS matrix (the full rounds of Poseidon, 2019/458); the constants repeat after 64 rounds. Adding
the start to the end (Davies-Meyer) is what makes the secret a secret: a permutation alone could be run backwards from
its public end. This permutation is an illustration that nobody has attacked in earnest.

**The proof.** The ``N`` states are a trace of 8 columns and ``N`` rows (STARK, 2018/046), and one constraint per column
holds on every row: ``round(row) == next(row)``, where the row after the last is ``output - first``. The prover

1. interpolates the columns, masks them, extends them to a domain 7 to 14 times larger, and commits to that (Merkle);
2. combines the constraints by random weights, divides by ``x^N - 1``, which leaves a polynomial exactly if all of them
   hold, and commits to it in six chunks of the columns' degree (degree 7 less the division);
3. opens all columns at one random point ``z`` outside the domain (DEEP, 2019/336; ethSTARK, 2021/582), where the
   verifier checks the constraints;
4. proves by FRI (Ben-Sasson et al., ICALP 2018) that the quotients ``(f(x) - f(z)) / (x - z)`` are of low degree.

All randomness is hashed from the transcript (Fiat-Shamir), whose first entry is the statement and every parameter.

**Soundness.** Challenges come from GF(p^4), 123.6 bits. `soundness` computes the figures. *Proved*, at least 100 bits
for up to 2^20 rounds in the random-oracle model: the smallest round-by-round error (2023/1071), in the unique-decoding
regime of FRI (proximity gaps, 2020/654, theorems 1.5 and 1.6), which rests on no conjecture: 105 queries, of which each
catches a cheat with probability ``(1 - rate) / 2``, after 16 bits of proof of work. *Conjectured*: 122 bits by the
formula of ethSTARK, where the field is the limit. That conjecture was refuted near capacity in 2025 (2025/2010,
2025/2046): do not lean on it; the queries here are many so that nobody has to.

**Zero knowledge.** The proof hides the witness statistically (honest verifier, random oracle; 2024/1037), given that
ChaCha20 with the secret as its key looks random. Each column gets a random multiple of ``x^N - 1`` with as many
coefficients as a proof reveals values: one for each query, one for the next row that the opened quotient then implies,
and 4 + 4 for ``z`` and ``g z`` in the extension. The chunks mask each other, FRI runs on a sum with a random
polynomial, and Merkle leaves are salted. The masks follow from the secret and the statement: a proof is reproducible.
The arithmetic does not run in constant time.

**Memory.** Given a `fastalloc.Arenas`, what the secret can be read from (state, trace, coefficients, masks) lives in
the witness arena, vectors in the polynomial arena, hashing's temporaries in the scratch arena. The code keeps secrets
out of everything else: no Python int, no bytes object, no cast that NumPy buffers, no array of numba's. The extended
columns are polynomial vectors from which the trace can be interpolated: they are overwritten before they are freed,
temporaries made from them only when that arena is wiped or closed. Without arenas the same code runs on plain NumPy
and gives the same bytes.

Numbers such as 2018/046 are papers at https://eprint.iacr.org/.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastalloc import Arenas

__all__ = ["ProofError", "PublicInput", "prove", "public_output", "read_secret", "soundness", "verify"]

Vector: TypeAlias = NDArray[np.uint64]  # elements of GF(p) below p; extension elements have a leading axis of 4
Words: TypeAlias = NDArray[np.uint32]  # the same, as they are hashed, sent, and given to galois
Progress: TypeAlias = Callable[[str, float], None]

# The field ("BabyBear"): p - 1 = 2^27 * 3 * 5, so there are NTTs up to 2^27 points and x -> x^7 is a permutation.
# p < 2^31 also means that four products fit in 64 bits before they have to be reduced: 4 (p - 1)^2 < 2^64.
P = 15 * 2**27 + 1
GENERATOR = 31
EXTENSION = 11  # GF(p^4) = GF(p)[X] / (X^4 - 11)

WIDTH = 8  # columns: elements of a state
PERIOD = 64  # the round constants repeat, so that the verifier can evaluate their columns in constant time
SHIFT = GENERATOR  # the extension's domain is a coset, and so disjoint from the trace's
CHUNKS = 6  # the quotient of degree 7 N - N, cut in pieces of the columns' degree
QUERIES = 105
GRINDING = 16  # bits of proof of work before the queries
MASK = 2 * QUERIES + 2 * 4  # coefficients that hide a column: see "Zero knowledge" above
CHUNK_MASK = QUERIES + 1
ARITY = 8  # FRI folds eight values into one
FINAL = 256  # FRI stops below this degree and sends the coefficients
MIN_ROUNDS, MAX_ROUNDS = PERIOD, 2**22
HASH, SALT = 32, 4  # bytes of SHA-256; words of a leaf's salt: 128 bits
MAGIC = b"FASTARK1"

_P = np.uint64(P)
_X4 = np.uint64(EXTENSION)


class ProofError(ValueError):
    """A proof that does not prove its statement."""


# --- The statement and the shape of its proof --------------------------------------------------------------------


@dataclass(frozen=True)
class PublicInput:
    """What prover and verifier agree on: ``rounds`` (a power of two from 64) and the 8 elements of the output."""

    rounds: int
    output: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_rounds(self.rounds)
        if len(self.output) != WIDTH or not all(type(v) is int and 0 <= v < P for v in self.output):
            raise ValueError(f"output must be {WIDTH} integers from 0 to {P - 1}")

    @classmethod
    def from_hex(cls, rounds: int, text: str) -> PublicInput:
        """Read the output from 64 hexadecimal digits: eight little-endian 32-bit words."""
        data = bytes.fromhex(text)
        if len(data) != 4 * WIDTH:
            raise ValueError(f"output must be {8 * WIDTH} hexadecimal digits, not {len(text)}")
        return cls(rounds, tuple(int(v) for v in np.frombuffer(data, "<u4")))

    def hex(self) -> str:
        """Return the output as 64 hexadecimal digits."""
        return np.array(self.output, "<u4").tobytes().hex()

    def encode(self) -> bytes:
        """Return the statement and every parameter, with which a transcript begins."""
        names = (P, EXTENSION, GENERATOR, WIDTH, PERIOD, CHUNKS, QUERIES, GRINDING, MASK, CHUNK_MASK, ARITY, FINAL)
        return f"{names} {self.rounds} {self.hex()}".encode()


def _check_rounds(rounds: int) -> None:
    if type(rounds) is not int or not MIN_ROUNDS <= rounds <= MAX_ROUNDS or rounds & (rounds - 1):
        raise ValueError(f"rounds must be a power of two from {MIN_ROUNDS} to {MAX_ROUNDS}, not {rounds!r}")


@dataclass(frozen=True)
class Shape:
    """Degrees and sizes that follow from the number of rounds; a "bound" is a number of coefficients."""

    rounds: int
    column: int  # bound of a masked column
    chunk: int  # coefficients of the quotient in a chunk, before its mask
    bound: int  # bound of everything that FRI tests
    domain: int  # points of the extension
    folds: int
    final: int  # coefficients of FRI's last polynomial

    @classmethod
    def of(cls, rounds: int) -> Shape:
        column = rounds + MASK
        quotient = 7 * (column - 1) + 1 - rounds
        chunk = -(-quotient // CHUNKS)
        bound = chunk + CHUNK_MASK
        # The rate bound / domain stays below 1/7, on which the number of queries rests, and all 6 chunks fit.
        domain = 1 << (7 * bound - 1).bit_length()
        folds, final = 0, bound
        while final > FINAL:
            folds, final = folds + 1, -(-final // ARITY)
        return cls(rounds, column, chunk, bound, domain, folds, final)


@dataclass(frozen=True)
class Soundness:
    """Bits of soundness: without any conjecture, and by the formula of ethSTARK; see the module's text."""

    proved: float
    conjectured: float


def soundness(rounds: int) -> Soundness:
    """Compute the bits of soundness of a proof of `rounds` rounds."""
    shape = Shape.of(rounds)
    field = 4 * math.log2(P)
    rate = shape.final * ARITY**shape.folds / shape.domain  # of the code that FRI really tests
    errors = {  # of each round of the protocol; the cheater can try each round again, so the weakest one counts
        "weights of the constraints": -field,
        "point z": math.log2(7 * (shape.bound + 1)) - field,
        "weights of the quotients": math.log2(shape.domain) - field,
        "folding": math.log2((ARITY - 1) * shape.domain / ARITY) - field,
        "queries": QUERIES * math.log2((1 + rate) / 2) - GRINDING,
    }
    return Soundness(-max(errors.values()), min(field, GRINDING - QUERIES * math.log2(rate)) - 1)


# --- The field: NumPy vectors below p ----------------------------------------------------------------------------


def _mod(x: Vector) -> Vector:
    """Reduce modulo p. NumPy divides by a scalar with SIMD multiplications, which is 5 times as fast as ``x % p``."""
    return x - x // _P * _P


def _mul(a: Vector, b: Vector | np.uint64) -> Vector:
    return _mod(a * b)


def _power(x: Vector, exponent: int, multiply: Callable[[Vector, Vector], Vector] = _mul) -> Vector:
    result = x
    for bit in f"{exponent:b}"[1:]:
        result = multiply(result, result)
        if bit == "1":
            result = multiply(result, x)
    return result


def _inverse(x: Vector) -> Vector:
    """Invert every element: three products each and one inversion of few, halving as in Montgomery's trick."""
    if x.size < 64 or x.size % 2:
        return _power(x, P - 2)
    low, high = x[: x.size // 2], x[x.size // 2 :]
    both = _inverse(_mul(low, high))
    return np.concatenate([_mul(both, high), _mul(both, low)])


def _powers(base: int, count: int, start: int = 1) -> Vector:
    """Return ``start * base^i`` for i below `count`, by doubling."""
    result = np.empty(count, np.uint64)
    result[0], done = start, 1
    while done < count:
        more = min(done, count - done)
        result[done : done + more] = _mul(result[:more], np.uint64(pow(base, done, P)))
        done += more
    return result


def _root(order: int) -> int:
    """Return the element of order `order` that galois uses too."""
    return pow(GENERATOR, (P - 1) // order, P)


def _ext(values: Iterable[int]) -> Vector:
    return np.array(list(values), np.uint64).reshape(4, -1)


def _ext_mul(a: Vector, b: Vector) -> Vector:
    """Multiply in GF(p^4); shapes (4, ...) that broadcast. Every sum below is less than 2^64."""
    a0, a1, a2, a3 = a
    b0, b1, b2, b3 = b
    return np.stack(
        [
            _mod(a0 * b0 + _X4 * _mod(a1 * b3 + a2 * b2 + a3 * b1)),
            _mod(a0 * b1 + a1 * b0 + _X4 * _mod(a2 * b3 + a3 * b2)),
            _mod(a0 * b2 + a1 * b1 + a2 * b0 + _X4 * _mod(a3 * b3)),
            _mod(a0 * b3 + a1 * b2 + a2 * b1 + a3 * b0),
        ]
    )


def _ext_inverse(a: Vector) -> Vector:
    """Invert in GF(p^4), shape (4, n): the conjugates' product over the norm, which is in GF(p)."""
    frobenius = _powers(pow(EXTENSION, (P - 1) // 4, P), 4)[:, None]  # by which a -> a^p scales the coordinates
    first = _mul(a, frobenius)
    second = _mul(first, frobenius)
    conjugates = _ext_mul(_ext_mul(first, second), _mul(second, frobenius))
    norm = _ext_mul(a, conjugates)[0]
    return _mul(conjugates, _inverse(norm))


def _ext_powers(base: Vector, count: int) -> Vector:
    """Return ``base^i`` for i below `count`, shape (4, count)."""
    result, square = _ext([1, 0, 0, 0]), base
    while result.shape[1] < count:
        result = np.concatenate([result, _ext_mul(result, square)], axis=1)
        square = _ext_mul(square, square)
    return result[:, :count]


def _minus(a: Vector, b: Vector | np.uint64) -> Vector:
    return _mod(a + (_P - b))


def _sum(terms: Vector) -> Vector:
    """Add along the last axis, at most 2^33 terms."""
    return _mod(terms.sum(axis=-1))


def _encode(elements: Vector) -> bytes:
    """Return extension elements, shape (4, n), as 16 bytes each."""
    return elements.T.astype("<u4").tobytes()


# --- The permutation ---------------------------------------------------------------------------------------------


@functools.cache
def _round_constants() -> tuple[int, ...]:
    """Derive PERIOD x WIDTH constants, of 128 bits each so that reducing them leaves no bias.

    A tuple, as an array that is kept for good must not be born in an arena.
    """
    data = hashlib.shake_256(b"fastalloc stark: round constants").digest(16 * PERIOD * WIDTH)
    return tuple(int.from_bytes(data[i : i + 16], "little") % P for i in range(0, len(data), 16))


def _constants() -> Vector:
    return np.array(_round_constants(), np.uint64).reshape(PERIOD, WIDTH)


def _matrix() -> Vector:
    """Return the 8 x 8 Cauchy matrix ``1 / (i + j + 8)``: all its minors are invertible, so it is MDS."""
    return np.array([[pow(i + j + WIDTH, -1, P) for j in range(WIDTH)] for i in range(WIDTH)], np.uint64)


def _fill_trace(trace: Vector, final: Vector, work: Vector, constants: Vector, matrix: Vector) -> None:
    """Run the rounds from column 0 of ``trace[8, N]``; `final` gets the last state. Compiled by numba.

    Nothing is allocated here: numba's own arrays come from malloc and would keep parts of the secret.
    """
    for row in range(trace.shape[1]):
        for j in range(WIDTH):
            x = (trace[j, row] + constants[row % PERIOD, j]) % _P
            square = x * x % _P
            work[j] = square * square % _P * square % _P * x % _P
        for i in range(WIDTH):
            total = matrix[i, 0] * work[0] % _P
            for j in range(1, WIDTH):
                total += matrix[i, j] * work[j] % _P
            if row + 1 < trace.shape[1]:
                trace[i, row + 1] = total % _P
            else:
                final[i] = total % _P


def _trace(secret: Words, rounds: int) -> tuple[Vector, Vector]:
    """Return the trace, shape (8, rounds), and the output, shape (8,)."""
    trace = np.zeros((WIDTH, rounds), np.uint64)
    final = np.zeros(WIDTH, np.uint64)
    trace[:, 0] = secret
    _compiled("_fill_trace")(trace, final, np.zeros(WIDTH, np.uint64), _constants(), _matrix())
    return trace, _mod(final + trace[:, 0])


# --- Number-theoretic transforms ---------------------------------------------------------------------------------


def _ntt_rows(rows: Vector, roots: Vector) -> None:
    """Transform every row in place (radix 2, Cooley-Tukey); ``roots[i] = root^i`` for i < n / 2. Compiled by numba.

    This is for what the secret can be read from. galois works in buffers of numba's runtime, which come from malloc
    and are never wiped; it does all the other transforms.
    """
    n = rows.shape[1]
    for r in range(rows.shape[0]):
        row = rows[r]
        j = 0
        for i in range(1, n):  # bit reversal: j counts with its bits mirrored
            bit = n >> 1
            while j & bit:
                j ^= bit
                bit >>= 1
            j |= bit
            if i < j:
                row[i], row[j] = row[j], row[i]
        half = 1
        while half < n:
            step = n // (2 * half)
            for start in range(0, n, 2 * half):
                for k in range(half):
                    a = row[start + k]
                    b = row[start + k + half] * roots[k * step] % _P
                    row[start + k] = (a + b) % _P
                    row[start + k + half] = (a + _P - b) % _P
            half *= 2


@functools.cache
def _compiled(name: str) -> Callable[..., None]:
    numba = _import_demo("numba")
    compiled: Callable[..., None] = numba.njit(globals()[name])
    return compiled


def _import_demo(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"proving needs {name}: pip install 'fastalloc[demo]'") from error


@functools.cache
def _warm_up(size: int) -> Any:
    """Return galois' field, all compiled and cached for transforms of `size`: caches must not be born in an arena."""
    galois = _import_demo("galois")
    galois.intt(galois.ntt(galois.GF(P)(np.ones(1, np.uint32)), size=size))
    _trace(np.zeros(WIDTH, np.uint32), MIN_ROUNDS)
    _transform(np.zeros((1, 2), np.uint64))
    return galois


def _transform(rows: Vector, inverse: bool = False) -> None:
    """Turn coefficients into evaluations at the powers of the root of unity, or back, in place."""
    size = rows.shape[1]
    root = _root(size)
    _compiled("_ntt_rows")(rows, _powers(pow(root, -1, P) if inverse else root, size // 2))
    if inverse:
        rows *= np.uint64(pow(size, -1, P))
        rows %= _P


def _interpolate(evaluations: Vector, shift: int) -> Vector:
    """Return the coefficients, shape (rows, n), of evaluations at the points ``shift * root^i`` (galois)."""
    size = evaluations.shape[1]
    galois = _warm_up(size)
    field = galois.GF(P)
    result = np.stack([galois.intt(field(row.astype(np.uint32))).view(np.ndarray) for row in evaluations])
    return _mul(result.astype(np.uint64), _powers(pow(shift, -1, P), size))


def _extend(coefficients: Vector, size: int, shift: int) -> list[Words]:
    """Return for each row the evaluations at the `size` points ``shift * root^i`` (galois)."""
    galois = _warm_up(size)
    scale = _powers(shift, coefficients.shape[1])
    field = galois.GF(P)
    return [galois.ntt(field(_mul(row, scale).astype(np.uint32)), size=size).view(np.ndarray) for row in coefficients]


# --- Randomness of the masks -------------------------------------------------------------------------------------


class _ChaCha20:
    """ChaCha20 (RFC 8439) as a stream of words, in NumPy so that key and stream stay in the current allocator."""

    def __init__(self, key: Words, nonce: bytes) -> None:
        self._key, self._nonce, self._counter = key, np.frombuffer(nonce, "<u4"), 0

    def words(self, count: int) -> Words:
        """Return the next words; each call begins a new block of 16."""
        blocks = -(-count // 16)
        state = np.empty((4, 4, blocks), np.uint32)
        state[0] = np.frombuffer(b"expand 32-byte k", "<u4")[:, None]
        state[1], state[2] = self._key[:4, None], self._key[4:, None]
        state[3, 0] = np.arange(self._counter, self._counter + blocks, dtype=np.uint32)
        state[3, 1:] = self._nonce[:, None]
        self._counter += blocks
        a, b, c, d = state.copy()
        for turn in (1, -1) * 10:  # columns, then diagonals: turning the rows makes one into the other
            for x, y, z, left in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                np.add(x, y, out=x)
                np.bitwise_xor(z, x, out=z)
                z[:] = z << left | z >> (32 - left)
            b, c, d = (np.roll(row, -turn * i, axis=0) for i, row in enumerate((b, c, d), 1))
        state += np.stack([a, b, c, d])
        return state.reshape(16, blocks).T.reshape(-1)[:count]

    def elements(self, *shape: int) -> Vector:
        """Return field elements of the given shape, from 128 bits each: 2^-97 from uniform."""
        words = self.words(4 * math.prod(shape)).reshape(4, -1).astype(np.uint64)
        value = _mod(words[0])
        for word in words[1:]:
            value = _mod(value << np.uint64(32) | word)
        return value.reshape(shape)


# --- Transcript and Merkle trees ---------------------------------------------------------------------------------


class _Transcript:
    """Fiat-Shamir: a SHA-256 chain over everything sent, from which the challenges are drawn."""

    def __init__(self, public: PublicInput) -> None:
        self._state = hashlib.sha256(b"fastalloc stark v1").digest()
        self.absorb(b"statement", public.encode())

    def absorb(self, label: bytes, data: bytes) -> None:
        head = len(label).to_bytes(8, "little") + label + len(data).to_bytes(8, "little")
        self._state = hashlib.sha256(self._state + head + data).digest()

    def _draw(self, label: bytes, count: int) -> list[int]:
        """Return `count` numbers of 128 bits."""
        self.absorb(b"draw " + label, count.to_bytes(8, "little"))
        data = hashlib.shake_256(self._state).digest(16 * count)
        return [int.from_bytes(data[i : i + 16], "little") for i in range(0, len(data), 16)]

    def challenges(self, label: bytes, count: int = 1) -> Vector:
        """Return extension elements, shape (4, count)."""
        return _ext(v % P for v in self._draw(label, 4 * count))

    def point(self) -> Vector:
        """Return the point z, shape (4, 1), outside the base field and so outside every domain."""
        while not (z := self.challenges(b"point"))[1:].any():
            pass
        return z

    def positions(self, size: int) -> NDArray[np.int64]:
        """Return the query positions below `size`, a power of two, sorted and without duplicates."""
        return np.unique(np.array([v % size for v in self._draw(b"queries", QUERIES)], np.int64))

    def works(self, nonce: bytes) -> bool:
        """Tell whether `nonce` is a proof of work for what was absorbed so far."""
        digest = hashlib.sha256(b"work" + self._state + nonce).digest()
        return int.from_bytes(digest[:8], "big") >> (64 - GRINDING) == 0


def _leaf_hash(row: bytes) -> bytes:
    return hashlib.sha256(b"\0" + row).digest()


def _node_hash(pair: bytes) -> bytes:
    return hashlib.sha256(b"\1" + pair).digest()


class _Tree:
    """A Merkle tree whose i-th leaf is the i-th element of all `columns`."""

    def __init__(self, columns: Sequence[NDArray[Any]], places: _Places) -> None:
        self.columns = columns
        self.levels: list[NDArray[np.uint8]] = []
        size = columns[0].size
        with places.polynomial():
            while size:
                self.levels.append(np.empty((size, HASH), np.uint8))
                size //= 2
        with places.scratch() as scratch:
            self._fill(scratch)

    def _fill(self, scratch: Any) -> None:
        """Hash leaves and nodes. A method of its own, so that no array is left when the scope ends."""
        n = self.columns[0].size
        rows = scratch.empty((n, 1 + 4 * len(self.columns)), np.uint8)
        rows[:, 0] = 0  # what _leaf_hash and _node_hash put in front
        for i, column in enumerate(self.columns):
            rows[:, 1 + 4 * i : 5 + 4 * i] = column.astype("<u4").view(np.uint8).reshape(n, 4)
        _hash_rows(rows, self.levels[0])
        pairs = scratch.empty((n // 2, 1 + 2 * HASH), np.uint8)
        pairs[:, 0] = 1
        for below, level in zip(self.levels, self.levels[1:], strict=False):
            pairs[: len(level), 1:] = below.reshape(-1, 2 * HASH)
            _hash_rows(pairs[: len(level)], level)

    @property
    def root(self) -> bytes:
        return self.levels[-1].tobytes()

    def open(self, positions: NDArray[np.int64]) -> bytes:
        """Return the rows at sorted `positions`, then the siblings their paths lack, from the leaves up."""
        proof = [np.stack([c[positions] for c in self.columns], axis=1).astype("<u4").tobytes()]
        for level in self.levels[:-1]:
            proof.append(level[np.setdiff1d(positions ^ 1, positions)].tobytes())
            positions = np.unique(positions >> 1)
        return b"".join(proof)


def _hash_rows(rows: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Set each row of `out` to the SHA-256 of the row of `rows`; in blocks, to keep the list of digests short."""
    sha256, width, block = hashlib.sha256, rows.shape[1], 4096
    data = rows.reshape(-1).data
    for begin in range(0, len(rows), block):
        end = min(begin + block, len(rows))
        digests = b"".join([sha256(data[i : i + width]).digest() for i in range(begin * width, end * width, width)])
        out[begin:end] = np.frombuffer(digests, np.uint8).reshape(-1, HASH)


# --- Arenas ------------------------------------------------------------------------------------------------------


class _Places:
    """The three places for arrays: arenas if there are any, else NumPy's default for all."""

    def __init__(self, memory: Arenas | None) -> None:
        self._memory = memory

    def _using(self, arena: str) -> AbstractContextManager[Any]:
        if self._memory is None:
            return nullcontext()
        import fastalloc

        context: AbstractContextManager[Any] = fastalloc.using_allocator(getattr(self._memory, arena))
        return context

    def witness(self) -> AbstractContextManager[Any]:
        return self._using("witness")

    def polynomial(self) -> AbstractContextManager[Any]:
        return self._using("polynomial")

    @contextmanager
    def scratch(self) -> Iterator[Any]:
        """Give a scope of the scratch arena, in which temporaries come from it too; without arenas, NumPy itself."""
        if self._memory is None:
            yield np
        else:
            with self._memory.scratch.scope() as scope, self._using("scratch"):
                yield scope


def arena_sizes(rounds: int) -> dict[str, int]:
    """Return capacities in bytes for ``fastalloc.Arenas(**arena_sizes(rounds))`` that a proof does not exceed."""
    _check_rounds(rounds)
    shape = Shape.of(rounds)
    return {
        "witness": (8 << 20) + 512 * shape.column,
        "polynomial": (32 << 20) + 1024 * shape.domain,
        "scratch": (4 << 20) + 256 * shape.domain,
    }


# --- Prover ------------------------------------------------------------------------------------------------------


def read_secret(path: str, memory: Arenas | None = None) -> Words:
    """Read a secret state from 32 bytes in a file, or from stdin if `path` is ``-``.

    Each word keeps 31 bits, reduced modulo p: 30.9 bits of entropy per element, 247 in all (min-entropy 240).

    Returns
    -------
    ndarray
        Shape (8,), uint32, in the witness arena. Unbuffered ``readinto``: no copy is left in a Python object.

    """
    with _Places(memory).witness():
        secret = np.zeros(WIDTH, np.uint32)
        buffer = secret.data.cast("B")
        source = sys.stdin.fileno() if path == "-" else path
        with open(source, "rb", buffering=0, closefd=path != "-") as file:
            done = 0
            while done < len(buffer) and (count := file.readinto(buffer[done:])):
                done += count
            if done < len(buffer) or file.read(1):
                raise ValueError(f"the secret must be exactly {len(buffer)} bytes")
        secret &= np.uint32(0x7FFFFFFF)
        np.subtract(secret, np.uint32(P), out=secret, where=secret >= P)
        return secret


def public_output(secret: Words, rounds: int, memory: Arenas | None = None) -> PublicInput:
    """Run the permutation and return the public statement about `secret`, shape (8,), uint32, below p."""
    _check_rounds(rounds)
    _check_secret(secret)
    _warm_up(Shape.of(rounds).domain)
    with _Places(memory).witness():
        _, output = _trace(secret, rounds)
        return PublicInput(rounds, tuple(int(v) for v in output))


def _check_secret(secret: Words) -> None:
    if secret.dtype != np.uint32 or secret.shape != (WIDTH,) or (secret >= P).any():
        raise ValueError(f"secret must be an array of {WIDTH} uint32 below {P}")


def prove(secret: Words, rounds: int, memory: Arenas | None = None, progress: Progress | None = None) -> bytes:
    """Prove knowledge of `secret`.

    Parameters
    ----------
    secret : ndarray
        Shape (8,), uint32, elements below p: see `read_secret`.
    rounds : int
        A power of two, at least 64.
    memory : fastalloc.Arenas, optional
        Where the arrays go; plain NumPy without.
    progress : callable, optional
        Called with the name of each stage and the fraction of the work done before it.

    Returns
    -------
    bytes
        A proof of ``public_output(secret, rounds)`` for `verify`.

    """
    _check_rounds(rounds)
    _check_secret(secret)
    places, shape = _Places(memory), Shape.of(rounds)
    report = progress or (lambda *_: None)
    report("compile", 0.0)
    _warm_up(shape.domain)

    report("trace", 0.0)
    with places.witness():
        trace, output = _trace(secret, rounds)
        public = PublicInput(rounds, tuple(int(v) for v in output))
        transcript = _Transcript(public)
        # The secret keys a single block, from which come two keys that do not lead back to it: one for the masks that
        # cover the trace, one for masks and salts that may be drawn outside the witness arena.
        nonce = hashlib.sha256(b"masks" + public.encode()).digest()[:12]
        keys = _ChaCha20(secret, nonce).words(16)
        columns = _mask(trace, _ChaCha20(keys[:8], nonce))
        noise = _ChaCha20(keys[8:], nonce)
        del trace, keys

    report("extend the trace", 0.01)
    with places.polynomial():
        extended = np.zeros((WIDTH, shape.domain), np.uint64)
        _extend_witness(columns, extended)
        blind = _extend(noise.elements(4, shape.bound), shape.domain, SHIFT)
        salt = noise.words(SALT * shape.domain).reshape(SALT, -1)
    report("commit to the trace", 0.14)
    trace_tree = _Tree([*salt, *extended, *blind], places)
    transcript.absorb(b"trace", trace_tree.root)

    report("compose", 0.28)
    with places.polynomial():
        quotient = _quotient(extended, public, transcript.challenges(b"constraints", WIDTH))
        chunks = _split(quotient, shape, noise)
        del quotient
    report("extend the quotient", 0.43)
    with places.polynomial():
        pieces = _extend(chunks.reshape(4 * CHUNKS, -1), shape.domain, SHIFT)
        salt = noise.words(SALT * shape.domain).reshape(SALT, -1)
    report("commit to the quotient", 0.71)
    quotient_tree = _Tree([*salt, *pieces], places)
    transcript.absorb(b"quotient", quotient_tree.root)

    report("open", 0.86)
    z = transcript.point()
    with places.polynomial():
        powers = _ext_powers(z, shape.bound)
        next_powers = _mul(powers, _powers(_root(rounds), shape.bound))
        values = [_sum(_ext_mul(chunk, powers)) for chunk in chunks]
    with places.witness():
        values = [_sum(_mul(p[:, : shape.column], c)) for p in (powers, next_powers) for c in columns] + values
    del chunks, columns, powers, next_powers
    opened = np.stack(values, axis=1)
    transcript.absorb(b"opened", _encode(opened))

    report("combine", 0.87)
    with places.polynomial():
        weights = transcript.challenges(b"quotients", opened.shape[1])
        word = _combine(extended, blind, pieces, rounds, z, opened, weights)
    report("fold", 0.97)
    with places.polynomial():
        layers, final = _fold_all(word, shape, transcript, places)
    transcript.absorb(b"final", _encode(final))
    work = next(w for i in range(1 << 64) if transcript.works(w := i.to_bytes(8, "little")))
    transcript.absorb(b"work", work)

    positions = transcript.positions(shape.domain)
    proof = [MAGIC, trace_tree.root, quotient_tree.root, _encode(opened)]
    proof += [*(layer.root for layer in layers), _encode(final), work]
    proof += [trace_tree.open(positions), quotient_tree.open(positions)]
    for layer in layers:
        positions = np.unique(positions % layer.columns[0].size)
        proof.append(layer.open(positions))
    extended.fill(0)  # see "Memory" above
    report("done", 1.0)
    return b"".join(proof)


def _mask(trace: Vector, masks: _ChaCha20) -> Vector:
    """Interpolate the trace in place and return ``f + (x^N - 1) mask`` for every column, shape (8, N + MASK)."""
    rounds = trace.shape[1]
    _transform(trace, inverse=True)
    columns = np.zeros((WIDTH, rounds + MASK), np.uint64)
    columns[:, :rounds] = trace
    mask = masks.elements(WIDTH, MASK)
    columns[:, rounds:] = mask
    columns[:, :MASK] = _minus(columns[:, :MASK], mask)  # where the two overlap, MASK > N, both have been counted
    return columns


def _extend_witness(columns: Vector, extended: Vector) -> None:
    """Evaluate the masked columns on the extension's domain, without any temporary array."""
    part = extended[:, : columns.shape[1]]
    np.multiply(columns, _powers(SHIFT, columns.shape[1]), out=part)
    part %= _P
    _transform(extended)


def _quotient(extended: Vector, public: PublicInput, weights: Vector) -> Vector:
    """Return the weighted constraints divided by ``x^N - 1`` on the domain, shape (4, n).

    Row by row the constraint is ``round(row) = next + last (output - 2 next)``, where ``last`` is 1 on the last row and
    0 on the others: there, ``next`` is the first row again and has to be ``output - round(row)``.
    """
    size, rounds = extended.shape[1], public.rounds
    step = size // rounds
    x = _powers(_root(size), size, SHIFT)
    vanishing = _minus(_powers(_root(step), step, pow(SHIFT, rounds, P)), np.uint64(1))  # x^N - 1 repeats
    end = pow(_root(rounds), -1, P)
    last = _mul(_inverse(_minus(x, np.uint64(end))), np.tile(vanishing, rounds))
    last = _mul(last, np.uint64(end * pow(rounds, -1, P) % P))

    # The constants are polynomials in x^(N / PERIOD), so their extension repeats too.
    constants = np.zeros((WIDTH, PERIOD * step), np.uint64)
    period = _constants().T.copy()
    _transform(period, inverse=True)
    constants[:, :PERIOD] = _mul(period, _powers(pow(SHIFT, rounds // PERIOD, P), PERIOD))
    _transform(constants)

    through_matrix = _mod(
        _mul(weights[:, :, None], _matrix()).sum(axis=1)
    )  # first weigh, then mix: 32 products, not 96
    rounded = np.zeros((4, size), np.uint64)
    following = np.zeros((4, size), np.uint64)
    for i, column in enumerate(extended):
        rounded += _mul(_power(_mod(column + np.tile(constants[i], rounds // PERIOD)), 7), through_matrix[:, i, None])
        following += _mul(np.roll(column, -step), weights[:, i, None])
    output = _sum(_mul(weights, np.array(public.output, np.uint64)))
    following = _mod(following)
    target = following + _mul(last, _minus(output[:, None], _mod(following + following)))
    inverse = np.tile(_inverse(vanishing), rounds)
    return _mul(_minus(_mod(rounded), _mod(target)), inverse)


def _split(quotient: Vector, shape: Shape, noise: _ChaCha20) -> Vector:
    """Return the coefficients of the masked chunks, shape (6, 4, bound): ``quotient = sum x^(i chunk) chunks[i]``.

    What a mask adds above the end of its chunk it takes away at the beginning of the next.
    """
    chunks = np.zeros((CHUNKS, 4, shape.bound), np.uint64)
    coefficients = _interpolate(quotient, SHIFT)[:, : CHUNKS * shape.chunk]
    chunks[:, :, : shape.chunk] = coefficients.reshape(4, CHUNKS, shape.chunk).transpose(1, 0, 2)
    masks = noise.elements(CHUNKS - 1, 4, CHUNK_MASK)
    chunks[:-1, :, shape.chunk :] = masks
    chunks[1:, :, :CHUNK_MASK] = _minus(chunks[1:, :, :CHUNK_MASK], masks)
    return chunks


def _combine(
    extended: Vector, blind: list[Words], pieces: list[Words], rounds: int, z: Vector, opened: Vector, weights: Vector
) -> Vector:
    """Return the random sum of the quotients ``(f(x) - f(z)) / (x - z)`` and the blinding polynomial, shape (4, n)."""
    size = extended.shape[1]
    distance = np.empty((4, size), np.uint64)
    distance[0] = _minus(_powers(_root(size), size, SHIFT), z[0])
    distance[1:] = _P - z[1:]  # not zero here or below: see _Transcript.point
    distance[1:] = _mod(distance[1:])
    near = _ext_inverse(distance)
    del distance
    # 1 / (g x - g z) is 1 / (x - z), divided by g and a few rows further down.
    far = _mul(np.roll(near, size // rounds, axis=1), np.uint64(pow(_root(rounds), -1, P)))

    here = np.zeros((4, size), np.uint64)
    there = np.zeros((4, size), np.uint64)
    for i, column in enumerate(extended):
        here += _mul(column, weights[:, i, None])
        there += _mul(column, weights[:, WIDTH + i, None])
    for i in range(CHUNKS):
        chunk = np.stack(pieces[4 * i : 4 * i + 4]).astype(np.uint64)
        here += _ext_mul(chunk, weights[:, 2 * WIDTH + i, None])
    constants = _ext_mul(opened, weights)
    at_next = slice(WIDTH, 2 * WIDTH)
    here = _minus(_mod(here), _sum(np.delete(constants, at_next, axis=1))[:, None])
    there = _minus(_mod(there), _sum(constants[:, at_next])[:, None])
    return _mod(_ext_mul(here, near) + _ext_mul(there, far) + np.stack(blind).astype(np.uint64))


def _fold_all(word: Vector, shape: Shape, transcript: _Transcript, places: _Places) -> tuple[list[_Tree], Vector]:
    """Run FRI's commit phase: return the trees and the coefficients of the last polynomial, shape (4, final)."""
    shift, trees = SHIFT, []
    for _ in range(shape.folds):
        tree = _Tree([half for part in np.split(word, ARITY, axis=1) for half in part], places)
        transcript.absorb(b"fold", tree.root)
        challenge = transcript.challenges(b"fold")
        for _ in range(3):  # f(x) = even(x^2) + x odd(x^2); folding 8 values is folding in half three times
            word = _halve(word, challenge, shift)
            challenge, shift = _ext_mul(challenge, challenge), shift * shift % P
        trees.append(tree)
    final = word.copy()
    _transform(final, inverse=True)
    return trees, _mul(final, _powers(pow(shift, -1, P), final.shape[1]))[:, : shape.final]


def _halve(word: Vector, challenge: Vector, shift: int) -> Vector:
    size = word.shape[1]
    plus, minus = word[:, : size // 2], word[:, size // 2 :]  # f(x) and f(-x)
    even = _mul(plus + minus, np.uint64(pow(2, -1, P)))
    odd = _mul(plus + _P - minus, _powers(pow(_root(size), -1, P), size // 2, pow(2 * shift, -1, P)))
    return _mod(even + _ext_mul(odd, challenge))


# --- Verifier: shares with the prover the field, the permutation, the transcript and the hash, and nothing else ---


class _Reader:
    """Takes a proof apart; whatever is not exactly as it must be is a `ProofError`."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        self._at += count
        if self._at > len(self._data):
            raise ProofError("the proof is too short")
        return self._data[self._at - count : self._at]

    def elements(self, count: int) -> tuple[Vector, bytes]:
        """Read `count` extension elements, shape (4, count), and return their bytes too."""
        data = self.take(16 * count)
        return _below_p(np.frombuffer(data, "<u4")).reshape(count, 4).T.copy(), data

    def rows(self, positions: NDArray[np.int64], width: int, leaves: int, root: bytes) -> NDArray[np.uint32]:
        """Read the rows of `width` words at sorted `positions` of a tree, and check their paths."""
        data = self.take(4 * width * len(positions))
        level = {int(p): _leaf_hash(data[4 * width * i : 4 * width * (i + 1)]) for i, p in enumerate(positions)}
        while leaves > 1:
            above: dict[int, bytes] = {}
            for p, digest in level.items():
                if p // 2 not in above:
                    sibling = level[p ^ 1] if p ^ 1 in level else self.take(HASH)
                    above[p // 2] = _node_hash(sibling + digest if p % 2 else digest + sibling)
            level, leaves = above, leaves // 2
        if level[0] != root:
            raise ProofError("a Merkle path does not lead to its root")
        return np.frombuffer(data, "<u4").reshape(len(positions), width)

    def finish(self) -> None:
        if self._at != len(self._data):
            raise ProofError("the proof is too long")


def _below_p(words: NDArray[np.uint32]) -> Vector:
    if (words >= P).any():
        raise ProofError("a field element is not below p")
    return words.astype(np.uint64)


def verify(public: PublicInput, proof: bytes) -> bool:
    """Check a proof of `public`; needs neither galois nor numba, and time polylogarithmic in the rounds.

    Returns
    -------
    bool
        True.

    Raises
    ------
    ProofError
        If the proof does not prove the statement, whatever is wrong with it.

    """
    if not isinstance(proof, bytes):
        raise ProofError(f"a proof is bytes, not {type(proof).__name__}")
    shape, reader, transcript = Shape.of(public.rounds), _Reader(proof), _Transcript(public)
    if reader.take(len(MAGIC)) != MAGIC:
        raise ProofError("this is not a proof of this version")
    trace_root, quotient_root = reader.take(HASH), reader.take(HASH)
    transcript.absorb(b"trace", trace_root)
    constraint_weights = transcript.challenges(b"constraints", WIDTH)
    transcript.absorb(b"quotient", quotient_root)
    z = transcript.point()
    opened, data = reader.elements(2 * WIDTH + CHUNKS)
    transcript.absorb(b"opened", data)
    _check_constraints(public, shape, constraint_weights, z, opened)

    weights = transcript.challenges(b"quotients", opened.shape[1])
    roots = [reader.take(HASH) for _ in range(shape.folds)]
    challenges = []
    for root in roots:
        transcript.absorb(b"fold", root)
        challenges.append(transcript.challenges(b"fold"))
    final, data = reader.elements(shape.final)
    transcript.absorb(b"final", data)
    work = reader.take(8)
    if not transcript.works(work):
        raise ProofError("the proof of work is wrong")
    transcript.absorb(b"work", work)
    positions = transcript.positions(shape.domain)

    # The values that FRI begins with, from the opened rows.
    rows = reader.rows(positions, SALT + WIDTH + 4, shape.domain, trace_root)
    trace, blind = _below_p(rows[:, SALT : SALT + WIDTH]), _below_p(rows[:, SALT + WIDTH :]).T
    rows = reader.rows(positions, SALT + 4 * CHUNKS, shape.domain, quotient_root)
    pieces = _below_p(rows[:, SALT:]).reshape(-1, CHUNKS, 4).transpose(2, 0, 1)
    columns = np.zeros((4, len(positions), opened.shape[1]), np.uint64)
    columns[0, :, :WIDTH] = columns[0, :, WIDTH : 2 * WIDTH] = trace
    columns[:, :, 2 * WIDTH :] = pieces
    points = np.tile(z, opened.shape[1])
    points[:, WIDTH : 2 * WIDTH] = _mul(z, np.uint64(_root(public.rounds)))
    x = _points(positions, shape.domain, SHIFT)
    distance = _minus(_embed(x)[:, :, None], points[:, None, :])
    inverse = _ext_inverse(distance.reshape(4, -1)).reshape(distance.shape)
    quotients = _ext_mul(_minus(columns, opened[:, None, :]), inverse)
    values = _mod(_sum(_ext_mul(quotients, weights[:, None, :])) + blind)

    size, shift = shape.domain, SHIFT
    for root, challenge in zip(roots, challenges, strict=True):
        step = size // ARITY
        cosets, where = np.unique(positions % step, return_inverse=True)
        rows = reader.rows(cosets, 4 * ARITY, step, root)
        coset_values = _below_p(rows).reshape(-1, ARITY, 4).transpose(2, 0, 1)
        if not np.array_equal(coset_values[:, where, positions // step], values):
            raise ProofError("a folded value is not the one committed to")
        values = _fold_cosets(coset_values, _points(cosets, size, shift), challenge)
        positions, size, shift = cosets, step, pow(shift, ARITY, P)
    x = _points(positions, size, shift)
    result = np.zeros_like(values)
    for coefficient in final.T[::-1]:
        result = _mod(_mul(result, x) + coefficient[:, None])
    if not np.array_equal(result, values):
        raise ProofError("the last polynomial has other values than the folded ones")
    reader.finish()
    return True


def _embed(x: Vector) -> Vector:
    """Return elements of GF(p) as elements of the extension."""
    return np.stack([x, *np.zeros((3, *x.shape), np.uint64)])


def _points(positions: NDArray[np.int64], size: int, shift: int) -> Vector:
    return np.array([shift * pow(_root(size), int(p), P) % P for p in positions], np.uint64)


def _check_constraints(public: PublicInput, shape: Shape, weights: Vector, z: Vector, opened: Vector) -> None:
    """Check at z: weighted constraints = (z^N - 1) quotient. See `_quotient` for the constraint."""
    row, following, chunks = np.split(opened, [WIDTH, 2 * WIDTH], axis=1)
    vanishing = _minus(_power(z, public.rounds, _ext_mul), _ext([1, 0, 0, 0]))

    # Lagrange's basis on the subgroup of order PERIOD, at y = z^(N / PERIOD): h (y^PERIOD - 1) / (PERIOD (y - h)).
    y = _power(z, public.rounds // PERIOD, _ext_mul)
    subgroup = _powers(_root(PERIOD), PERIOD)
    basis = _ext_mul(_ext_inverse(_minus(y, _embed(subgroup))), vanishing)
    basis = _mul(_mul(basis, subgroup), np.uint64(pow(PERIOD, -1, P)))
    constants = _sum(_mul(basis[:, None, :], _constants().T))

    end = np.uint64(pow(_root(public.rounds), -1, P))
    last = _ext_mul(vanishing, _ext_inverse(_minus(z, _ext([int(end), 0, 0, 0]))))
    last = _mul(_mul(last, end), np.uint64(pow(public.rounds, -1, P)))

    seventh = _power(_mod(row + constants), 7, _ext_mul)
    rounded = _sum(_mul(seventh[:, None, :], _matrix()))
    output = _embed(np.array(public.output, np.uint64))
    target = _mod(following + _ext_mul(last, _minus(output, _mod(following + following))))
    constraint = _sum(_ext_mul(weights, _minus(rounded, target)))
    quotient = _sum(_ext_mul(_ext_powers(_power(z, shape.chunk, _ext_mul), CHUNKS), chunks))
    if not np.array_equal(constraint, _ext_mul(vanishing[:, 0], quotient)):
        raise ProofError("the opened values do not satisfy the constraints")


def _fold_cosets(values: Vector, x: Vector, challenge: Vector) -> Vector:
    """Interpolate the 8 values, shape (4, n, 8), at ``x root^k`` and evaluate at the challenge."""
    ratio = _mul(challenge, _inverse(x))
    result = np.zeros(values.shape[:2], np.uint64)
    for degree in range(ARITY - 1, -1, -1):
        row = _powers(pow(_root(ARITY), -degree, P), ARITY, pow(ARITY, -1, P))
        result = _mod(_ext_mul(result, ratio) + _sum(_mul(values, row)))
    return result


# --- Command line ------------------------------------------------------------------------------------------------


def _bar(stage: str, fraction: float) -> None:
    end = "\n" if fraction == 1 else ""
    print(f"\r[{'#' * round(30 * fraction):30}] {fraction:4.0%} {stage:24}", end=end, file=sys.stderr, flush=True)


def _command_prove(secret_file: str, rounds: int, plain: bool, proof_file: str | None) -> None:
    with nullcontext() if plain else _new_arenas(rounds) as memory:
        secret = read_secret(secret_file, memory)
        public = public_output(secret, rounds, memory)
        proof = prove(secret, rounds, memory, _bar if sys.stderr.isatty() else None)
        del secret
        if memory is not None:
            print(memory.stats())
    verify(public, proof)
    bits = soundness(rounds)
    print(f"output {public.hex()}")
    print(
        f"proof  {len(proof)} bytes, verified; soundness {int(bits.proved)} bits, {int(bits.conjectured)} conjectured"
    )
    if proof_file:
        Path(proof_file).write_bytes(proof)


def _new_arenas(rounds: int) -> Arenas:
    import fastalloc

    return fastalloc.Arenas(**arena_sizes(rounds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prove or verify; return 0, 1 if the proof is rejected, or 2 for bad arguments or files."""
    parser = argparse.ArgumentParser(description="Prove that N rounds lead from a secret state to a public output.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--secret-file", metavar="F", help="prove: 32 bytes of secret; - is stdin")
    action.add_argument("--verify", metavar="PROOF", help="verify this file; needs --output and --rounds")
    parser.add_argument("--rounds", type=int, default=2**16, metavar="N", help="a power of two (default: %(default)s)")
    parser.add_argument("--plain", action="store_true", help="prove on plain NumPy instead of arenas")
    parser.add_argument("--proof", metavar="OUT", help="write the proof to this file")
    parser.add_argument("--output", metavar="HEX", help="the public output, 64 digits")
    options = parser.parse_args(arguments)
    if options.verify and not options.output:
        parser.error("--verify needs --output")
    try:
        if options.verify:
            verify(PublicInput.from_hex(options.rounds, options.output), Path(options.verify).read_bytes())
            print("the proof is valid")
        else:
            _command_prove(options.secret_file, options.rounds, options.plain, options.proof)
    except ProofError as error:
        print(f"the proof is rejected: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
