"""The example prover: complete, sound where a test can tell, and the same bytes with and without arenas."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import math
import re
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

np = pytest.importorskip("numpy")
galois = pytest.importorskip("galois", reason="galois is not installed: pip install 'fastalloc[demo]'")

SOURCE = Path(__file__).parents[1] / "examples" / "stark.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("stark_under_test", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


stark = _load()
P = stark.P
SMALL = 64


def _secret(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, P, 8, dtype=np.uint32)


@pytest.fixture(scope="module")
def public() -> Any:
    return stark.public_output(_secret(), SMALL)


@pytest.fixture(scope="module")
def proof() -> bytes:
    return stark.prove(_secret(), SMALL)  # type: ignore[no-any-return]


def _rejected(public: Any, proof: bytes) -> str:
    with pytest.raises(stark.ProofError) as caught:
        stark.verify(public, proof)
    return str(caught.value)


# --- Field, transforms, permutation, randomness ------------------------------------------------------------------


def _sample(*shape: int) -> Any:
    """Random elements, and the largest one in every second place, where overflow would show."""
    values = np.random.default_rng(1).integers(0, P, shape).astype(np.uint64)
    values[..., ::2] = P - 1
    return values


def _ext_product(a: list[int], b: list[int]) -> list[int]:
    result = [0] * 4
    for i in range(4):
        for j in range(4):
            result[(i + j) % 4] += a[i] * b[j] * (stark.EXTENSION if i + j >= 4 else 1)
    return [v % P for v in result]


def test_constants() -> None:
    assert galois.is_prime(P)
    assert math.gcd(7, P - 1) == 1  # x^7 is a permutation
    assert {pow(stark.GENERATOR, (P - 1) // q, P) == 1 for q in (2, 3, 5)} == {False}  # and a generator generates
    assert pow(stark.EXTENSION, (P - 1) // 2, P) == P - 1  # not a square and 4 | p - 1: X^4 - 11 is irreducible
    assert 4 * (P - 1) ** 2 < 2**64
    assert len(set(stark._round_constants())) == stark.PERIOD * stark.WIDTH


def test_multiplication_in_the_field() -> None:
    a, b = _sample(1001), _sample(1001)[::-1].copy()
    assert stark._mul(a, b).tolist() == [x * y % P for x, y in zip(a.tolist(), b.tolist(), strict=True)]


def test_multiplication_in_the_extension() -> None:
    a, b = _sample(4, 101), _sample(4, 101)
    b[:, 1:] = np.roll(b[:, 1:], 1, axis=0)
    expected = [_ext_product(x, y) for x, y in zip(a.T.tolist(), b.T.tolist(), strict=True)]
    assert stark._ext_mul(a, b).T.tolist() == expected
    assert stark._ext_powers(a[:, 1:2], 5)[:, 3].tolist() == stark._power(a[:, 1:2], 3, stark._ext_mul)[:, 0].tolist()


@pytest.mark.parametrize("size", [1, 63, 64, 96, 1024])
def test_inverses(size: int) -> None:
    assert (stark._mul(_sample(size), stark._inverse(_sample(size))) == 1).all()
    a = _sample(4, size)
    assert stark._ext_mul(a, stark._ext_inverse(a)).tolist() == stark._embed(np.ones(size, np.uint64)).tolist()


def _naive(coefficients: list[int], points: list[int]) -> list[int]:
    return [sum(c * pow(x, i, P) for i, c in enumerate(coefficients)) % P for x in points]


@pytest.mark.parametrize("size", [2, 4, 64, 128])
def test_transform_is_the_naive_dft(size: int) -> None:
    rows = _sample(3, size)
    expected = [_naive(row, [pow(stark._root(size), i, P) for i in range(size)]) for row in rows.tolist()]
    transformed = rows.copy()
    stark._transform(transformed)
    assert transformed.tolist() == expected
    assert galois.ntt(galois.GF(P)(rows[0].astype(np.uint32))).tolist() == expected[0]
    stark._transform(transformed, inverse=True)
    assert transformed.tolist() == rows.tolist()


def test_extension_is_the_naive_evaluation() -> None:
    coefficients, size, shift = _sample(2, 13), 32, 5
    points = [shift * pow(stark._root(size), i, P) % P for i in range(size)]
    extended = stark._extend(coefficients, size, shift)
    assert [row.tolist() for row in extended] == [_naive(row, points) for row in coefficients.tolist()]
    back = stark._interpolate(np.stack(extended).astype(np.uint64), shift)
    assert back[:, :13].tolist() == coefficients.tolist()
    assert not back[:, 13:].any()


def test_permutation_against_plain_integers() -> None:
    rounds = 128
    constants, matrix = stark._constants().tolist(), stark._matrix().tolist()
    start = state = [int(v) for v in _secret()]
    for r in range(rounds):
        mixed = [pow(s + c, 7, P) for s, c in zip(state, constants[r % stark.PERIOD], strict=True)]
        state = [sum(m * s for m, s in zip(row, mixed, strict=True)) % P for row in matrix]
    expected = tuple((s + e) % P for s, e in zip(start, state, strict=True))
    assert stark.public_output(_secret(), rounds).output == expected


def test_chacha20_gives_the_block_of_rfc_8439() -> None:
    key = np.frombuffer(bytes(range(32)), "<u4")
    words = stark._ChaCha20(key, bytes.fromhex("000000090000004a00000000")).words(32)
    assert words[16:].astype("<u4").tobytes().hex() == (  # section 2.3.2: the block of counter 1
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


def test_the_mask_leaves_the_trace_and_hides_the_rest() -> None:
    trace, _ = stark._trace(_secret(), SMALL)
    key = np.arange(8, dtype=np.uint32)
    columns = stark._mask(trace.copy(), stark._ChaCha20(key, bytes(12)))
    assert columns.shape == (8, SMALL + stark.MASK)
    folded = np.zeros_like(trace)  # modulo x^N - 1
    for start in range(0, columns.shape[1], SMALL):
        part = columns[:, start : start + SMALL]
        folded[:, : part.shape[1]] = (folded[:, : part.shape[1]] + part) % P
    stark._transform(folded)
    assert folded.tolist() == trace.tolist()


def test_what_a_proof_reveals_of_a_column_is_uniform(
    public: Any, proof: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The revealed values are the trace's plus a matrix times the mask: independent rows of it hide the trace."""
    seen: dict[str, Any] = {}
    for name in ("point", "positions"):
        honest = getattr(stark._Transcript, name)

        def spy(*arguments: Any, _name: str = name, _honest: Any = honest) -> Any:
            seen[_name] = _honest(*arguments)
            return seen[_name]

        monkeypatch.setattr(stark._Transcript, name, spy)
    assert stark.verify(public, proof)
    positions, z = seen["positions"], seen["point"]
    size, step = stark.Shape.of(SMALL).domain, stark.Shape.of(SMALL).domain // SMALL
    both = np.union1d(positions, (positions + step) % size)  # a row and the next, which the quotient implies
    rows = [np.array(_mask_powers(x), np.uint64) for x in stark._points(both, size, stark.SHIFT).tolist()]
    for point in (z, stark._mul(z, np.uint64(stark._root(SMALL)))):
        vanishing = stark._minus(stark._power(point, SMALL, stark._ext_mul), stark._ext([1, 0, 0, 0]))
        rows.extend(stark._ext_mul(stark._ext_powers(point, stark.MASK), vanishing))
    matrix = galois.GF(P)(np.stack(rows).astype(np.uint32))
    assert len(both) > 200
    assert np.linalg.matrix_rank(matrix) == len(both) + 8
    assert matrix.shape[1] >= 2 * stark.QUERIES + 8  # of which no choice of queries can reveal more
    assert len(positions) + 1 <= stark.CHUNK_MASK  # a chunk: one extension element per query, and one for z


def _mask_powers(x: int) -> list[int]:
    vanishing = pow(x, SMALL, P) - 1
    return [vanishing * pow(x, i, P) % P for i in range(stark.MASK)]


def test_masked_chunks_add_up_to_the_quotient() -> None:
    shape = stark.Shape.of(SMALL)
    coefficients = np.zeros((4, stark.CHUNKS * shape.chunk), np.uint64)
    coefficients[:] = _sample(*coefficients.shape)
    evaluations = np.stack(stark._extend(coefficients, shape.domain, stark.SHIFT)).astype(np.uint64)
    chunks = stark._split(evaluations, shape, stark._ChaCha20(np.arange(8, dtype=np.uint32), bytes(12)))
    total = np.zeros((4, stark.CHUNKS * shape.chunk + stark.CHUNK_MASK), np.uint64)
    for i, chunk in enumerate(chunks):
        total[:, i * shape.chunk :][:, : shape.bound] += chunk
    total %= np.uint64(P)
    assert total[:, : coefficients.shape[1]].tolist() == coefficients.tolist()
    assert not total[:, coefficients.shape[1] :].any()
    plain = coefficients.reshape(4, stark.CHUNKS, shape.chunk).transpose(1, 0, 2)
    assert (chunks[0, :, shape.chunk :] != 0).any()
    assert (chunks[1:, :, :10] != plain[1:, :, :10]).any(axis=(1, 2)).all()


def test_challenges_depend_on_all_that_came_before(public: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(statement: Any, *absorbed: tuple[bytes, bytes]) -> bytes:
        transcript = stark._Transcript(statement)
        for label, data in absorbed:
            transcript.absorb(label, data)
        return transcript.challenges(b"x").tobytes()  # type: ignore[no-any-return]

    output = (public.output[0] ^ 1, *public.output[1:])
    drawn = [
        draw(public),
        draw(stark.PublicInput(SMALL, output)),
        draw(stark.PublicInput(2 * SMALL, public.output)),
        draw(public, (b"a", b"")),
        draw(public, (b"", b"a")),
        draw(public, (b"a", b"bc")),
        draw(public, (b"ab", b"c")),
        draw(public, (b"a", b"b"), (b"c", b"")),
    ]
    monkeypatch.setattr(stark, "QUERIES", stark.QUERIES - 1)
    drawn.append(draw(public))
    assert len(set(drawn)) == len(drawn)
    assert draw(public) == drawn[-1]


def test_the_extended_trace_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    honest = stark._extend_witness

    def keep(columns: Any, extended: Any) -> None:
        honest(columns, extended)
        assert extended.all(axis=1).any()
        kept.append(extended)

    monkeypatch.setattr(stark, "_extend_witness", keep)
    stark.prove(_secret(), SMALL)
    assert not kept[0].any()


# --- Completeness ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [64, 128, 256, 1024, 4096])
def test_honest_proofs_are_accepted(rounds: int) -> None:
    secret = _secret(rounds)
    stages: list[tuple[str, float]] = []
    proof = stark.prove(secret, rounds, progress=lambda stage, fraction: stages.append((stage, fraction)))
    assert stark.verify(stark.public_output(secret, rounds), proof) is True
    fractions = [fraction for _, fraction in stages]
    assert fractions == sorted(fractions)
    assert (fractions[0], stages[-1]) == (0.0, ("done", 1.0))


def test_the_largest_and_smallest_states_are_accepted() -> None:
    for value in (0, P - 1):
        secret = np.full(8, value, np.uint32)
        assert stark.verify(stark.public_output(secret, SMALL), stark.prove(secret, SMALL))


def test_proofs_are_reproducible(proof: bytes) -> None:
    assert stark.prove(_secret(), SMALL) == proof
    assert stark.prove(_secret(1), SMALL) != proof


def test_the_verifier_needs_neither_galois_nor_numba_nor_fastalloc(public: Any, proof: bytes, tmp_path: Path) -> None:
    (tmp_path / "proof").write_bytes(proof)
    code = (
        "import sys; sys.modules.update(galois=None, numba=None, fastalloc=None)\n"
        f"sys.path.insert(0, {str(SOURCE.parent)!r}); sys.dont_write_bytecode = True\n"
        "import stark; sys.exit(stark.main(sys.argv[1:]))"
    )
    arguments = ["--verify", str(tmp_path / "proof"), "--rounds", str(SMALL), "--output", public.hex()]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "the proof is valid\n"), done.stderr
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(32))
    arguments = ["--secret-file", str(secret), "--plain", "--rounds", str(SMALL)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'fastalloc[demo]'" in done.stderr


@pytest.mark.parametrize("rounds", [2**k for k in range(6, 23)])
def test_soundness_is_what_the_module_claims(rounds: int) -> None:
    shape, bits = stark.Shape.of(rounds), stark.soundness(rounds)
    assert bits.proved >= (100 if rounds <= 2**20 else 98)
    assert bits.conjectured >= 122
    assert 7 * shape.bound <= shape.domain <= 2**27
    assert shape.final * 8**shape.folds >= shape.bound
    assert stark.CHUNKS * shape.chunk <= shape.domain


# --- What the verifier rejects -----------------------------------------------------------------------------------


def _sections(rounds: int) -> list[int]:
    """Return where the parts of a proof of fixed length begin, and where the opened rows do."""
    shape = stark.Shape.of(rounds)
    sizes = [8, 32, 32, 16 * 22, *[32] * shape.folds, 16 * shape.final, 8]
    return [sum(sizes[:i]) for i in range(len(sizes) + 1)]


def test_every_changed_byte_is_rejected(public: Any, proof: bytes) -> None:
    rng = np.random.default_rng(2)
    places = {*range(60), *range(0, len(proof), 251), *rng.integers(0, len(proof), 200).tolist(), len(proof) - 1}
    for section in _sections(SMALL):
        places |= {section - 1, section, section + 1}
    reasons = set()
    for place in sorted(p for p in places if p >= 0):
        changed = bytearray(proof)
        changed[place] ^= int(rng.integers(1, 256))
        reasons.add(_rejected(public, bytes(changed)))
    assert len(reasons) >= 4, reasons  # several checks are at work, not one


def test_every_changed_bit_of_the_head_is_rejected(public: Any, proof: bytes) -> None:
    for place in [*range(_sections(SMALL)[3]), *range(_sections(SMALL)[-2], _sections(SMALL)[-1])]:
        for bit in range(8):
            changed = bytearray(proof)
            changed[place] ^= 1 << bit
            _rejected(public, bytes(changed))


def test_truncated_and_extended_proofs_are_rejected(public: Any, proof: bytes) -> None:
    for length in {0, 1, *_sections(SMALL), *range(0, len(proof), 997), len(proof) - 32, len(proof) - 1}:
        _rejected(public, proof[:length])
    for tail in (b"\0", proof[-32:], proof):
        assert _rejected(public, proof + tail) == "the proof is too long"
    assert "bytes" in _rejected(public, None)  # type: ignore[arg-type]


def test_other_statements_are_rejected(public: Any, proof: bytes) -> None:
    for i in range(8):
        output = list(public.output)
        output[i] = (output[i] + 1) % P
        _rejected(stark.PublicInput(SMALL, tuple(output)), proof)
    _rejected(stark.PublicInput(SMALL, public.output[::-1]), proof)
    for rounds in (128, 2**16, 2**22):
        _rejected(stark.PublicInput(rounds, public.output), proof)


def test_field_elements_have_one_encoding(public: Any, proof: bytes) -> None:
    start, *_, end = _sections(SMALL)[3:-1]
    words = np.frombuffer(proof[start:end], "<u4")
    place = start + 4 * int(np.argmin(words))  # the word for which adding p is most likely to fit
    value = int(words.min()) + P
    assert value < 2**32
    changed = proof[:place] + value.to_bytes(4, "little") + proof[place + 4 :]
    assert _rejected(public, changed) == "a field element is not below p"


def test_random_bytes_are_rejected(public: Any, proof: bytes) -> None:
    rng = np.random.default_rng(3)
    for length in (0, 7, 8, 1000, len(proof)):
        _rejected(public, rng.bytes(length))
        _rejected(public, stark.MAGIC + rng.bytes(length))
        _rejected(public, stark.MAGIC + bytes(length))


@pytest.mark.parametrize("rounds", [0, 1, 63, 65, 96, -64, 2**23, 64.0, True, "64"])
def test_bad_rounds_are_named(rounds: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(rounds))):
        stark.PublicInput(rounds, (0,) * 8)
    with pytest.raises(ValueError, match="rounds"):
        stark.prove(_secret(), rounds)


@pytest.mark.parametrize("output", [(), (0,) * 7, (0,) * 9, (P,) + (0,) * 7, (-1,) + (0,) * 7, (0.0,) * 8])
def test_bad_outputs_are_errors(output: Any) -> None:
    with pytest.raises(ValueError, match="output"):
        stark.PublicInput(SMALL, output)


@pytest.mark.parametrize(
    "secret", [np.zeros(8, np.uint64), np.zeros(7, np.uint32), np.full(8, P, np.uint32), np.zeros((8, 1), np.uint32)]
)
def test_bad_secrets_are_errors(secret: Any) -> None:
    with pytest.raises(ValueError, match="secret"):
        stark.prove(secret, SMALL)


# --- Cheating provers --------------------------------------------------------------------------------------------


def _cheat(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any]) -> bytes:
    """Prove with the result of one of the prover's functions changed."""
    honest = getattr(stark, name)
    with monkeypatch.context() as patch:
        patch.setattr(stark, name, lambda *arguments: change(honest(*arguments)))
        return stark.prove(_secret(), SMALL)  # type: ignore[no-any-return]


@pytest.mark.parametrize("row", [0, 1, 31, 62, 63])
@pytest.mark.parametrize("column", [0, 7])
def test_a_wrong_row_proves_nothing(public: Any, monkeypatch: pytest.MonkeyPatch, row: int, column: int) -> None:
    def change(result: Any) -> Any:
        trace, output = result
        trace[column, row] = (trace[column, row] + np.uint64(1)) % np.uint64(P)
        return trace, output

    assert "constraints" in _rejected(public, _cheat(monkeypatch, "_trace", change))


def test_a_wrong_output_cannot_be_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed = stark.PublicInput(SMALL, tuple(range(8)))

    def change(result: Any) -> Any:
        return result[0], np.arange(8, dtype=np.uint64)

    assert "constraints" in _rejected(claimed, _cheat(monkeypatch, "_trace", change))


def test_a_lie_about_the_opened_quotient_is_found_by_fri(public: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the trace, then open the quotient to what the constraints at z ask for: only FRI is left to object."""
    lies: list[Any] = []

    def change(result: Any) -> Any:
        trace, output = result
        trace[0, 5] = (trace[0, 5] + np.uint64(1)) % np.uint64(P)
        return trace, output

    class Liar(stark._Transcript):  # type: ignore[misc, name-defined]
        def challenges(self, label: bytes, count: int = 1) -> Any:
            result = super().challenges(label, count)
            if label == b"constraints":
                self.constraint_weights = result
            if label == b"point":
                self.z = result
            return result

    transcripts: list[Any] = []

    def transcript(statement: Any) -> Any:
        transcripts.append(Liar(statement))
        return transcripts[-1]

    honest_stack, honest_trace = np.stack, stark._trace

    def stack(arrays: Any, axis: int = 0) -> Any:
        result = honest_stack(arrays, axis)
        if result.shape == (4, 22) and not lies and transcripts:
            liar, shape = transcripts[-1], stark.Shape.of(SMALL)
            result[:, 16] = _quotient_asked_for(public, shape, liar.constraint_weights, liar.z, result)
            lies.append(result)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(stark, "_trace", lambda *arguments: change(honest_trace(*arguments)))
        patch.setattr(stark, "_Transcript", transcript)
        patch.setattr(np, "stack", stack)
        forged = stark.prove(_secret(), SMALL)
    assert lies
    assert _rejected(public, forged) == "the last polynomial has other values than the folded ones"


def _quotient_asked_for(public: Any, shape: Any, weights: Any, z: Any, opened: Any) -> Any:
    """Find the first chunk's value with which the check at z passes: what is compared there is affine in that value."""
    found: list[Any] = []

    def compare(a: Any, b: Any) -> bool:
        found.append((a, b))
        return True

    equal = np.array_equal
    np.array_equal = compare
    try:
        opened = opened.copy()
        opened[:, 16] = 0
        stark._check_constraints(public, shape, weights, z, opened)
        opened[0, 16] = 1
        stark._check_constraints(public, shape, weights, z, opened)
    finally:
        np.array_equal = equal
    (wanted, without), (_, with_one) = found
    slope = stark._minus(with_one, without)
    return stark._ext_mul(stark._minus(wanted, without)[:, None], stark._ext_inverse(slope[:, None]))[:, 0]


@pytest.mark.parametrize("extra", [1, 100, 4096 - 424])
def test_fri_rejects_one_coefficient_too_many(public: Any, monkeypatch: pytest.MonkeyPatch, extra: int) -> None:
    """Everything is consistent, but the blinding polynomial, and so the sum, is of too high a degree."""
    honest = stark._extend
    assert stark.Shape.of(SMALL).bound == 424

    def extend(coefficients: Any, size: int, shift: int) -> Any:
        if len(coefficients) == 4:
            coefficients = np.pad(coefficients, ((0, 0), (0, extra)), constant_values=1)
        return honest(coefficients, size, shift)

    with monkeypatch.context() as patch:
        patch.setattr(stark, "_extend", extend)
        forged = stark.prove(_secret(), SMALL)
    assert _rejected(public, forged) == "the last polynomial has other values than the folded ones"


def test_fri_must_begin_with_the_opened_rows(public: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forged = _cheat(monkeypatch, "_combine", np.zeros_like)
    assert _rejected(public, forged) == "a folded value is not the one committed to"


def test_without_work_there_is_no_proof(public: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stark._Transcript, "works", lambda self, nonce: True)
        forged = stark.prove(_secret(), SMALL)
    assert _rejected(public, forged) == "the proof of work is wrong"


# --- The secret, the command line, arenas ------------------------------------------------------------------------


def test_the_secret_is_reduced(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"\xff" * 16 + P.to_bytes(4, "little") * 2 + (P - 1).to_bytes(4, "little") * 2)
    assert stark.read_secret(str(file)).tolist() == [2**31 - 1 - P] * 4 + [0, 0, P - 1, P - 1]


@pytest.mark.parametrize("size", [0, 31, 33, 1000])
def test_the_secret_is_exactly_32_bytes(tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"\x5a" * size)
    assert stark.main(["--secret-file", str(file), "--plain", "--rounds", "64"]) == 2
    assert "exactly 32 bytes" in capsys.readouterr().err


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "secret", tmp_path / "proof"
    file.write_bytes(hashlib.sha256(b"a secret for a test").digest())
    assert stark.main(["--secret-file", str(file), "--plain", "--rounds", "64", "--proof", str(out)]) == 0
    printed = re.search(r"output ([0-9a-f]{64})\n", capsys.readouterr().out)
    assert printed is not None
    check = ["--verify", str(out), "--rounds", "64", "--output"]
    assert stark.main([*check, printed[1]]) == 0
    assert capsys.readouterr().out == "the proof is valid\n"
    assert stark.main([*check, "00" * 32]) == 1
    assert "rejected" in capsys.readouterr().err
    assert stark.main([*check, "00" * 31]) == 2
    assert stark.main([*check, "zz"]) == 2
    assert stark.main(["--verify", str(tmp_path / "none"), "--output", printed[1]]) == 2
    assert stark.main(["--secret-file", str(tmp_path / "none"), "--plain"]) == 2


def test_the_secret_may_come_from_stdin(tmp_path: Path) -> None:
    data = bytes(range(32))
    command = [sys.executable, str(SOURCE), "--plain", "--rounds", "64", "--secret-file", "-"]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    secret = np.frombuffer(data, "<u4").astype(np.uint32)
    assert f"output {stark.public_output(secret, SMALL).hex()}".encode() in done.stdout
    assert b"verified" in done.stdout


class _CountingArenas:
    """What `prove` asks of `fastalloc.Arenas`, without memory of its own."""

    def __init__(self) -> None:
        self.witness, self.polynomial, self.scratch = "witness", "polynomial", self
        self.entered: list[str] = []
        self.active: list[str] = []
        self.made: list[weakref.ref[Any]] = []

    def using_allocator(self, arena: Any) -> _Using:
        return _Using(self, "scratch" if arena is self else arena)

    def scope(self) -> _Using:
        return _Using(self, "scope")

    def empty(self, shape: Any, dtype: Any) -> Any:
        assert "scope" in self.active
        result = np.empty(shape, dtype)
        self.made.append(weakref.ref(result))
        return result


class _Using:
    def __init__(self, arenas: _CountingArenas, name: str) -> None:
        self.arenas, self.name = arenas, name

    def __enter__(self) -> _CountingArenas:
        self.arenas.entered.append(self.name)
        self.arenas.active.append(self.name)
        return self.arenas

    def __exit__(self, *_: object) -> None:
        assert self.arenas.active.pop() == self.name
        assert self.name != "scope" or not any(made() is not None for made in self.arenas.made)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> _CountingArenas:
    arenas = _CountingArenas()
    monkeypatch.setitem(sys.modules, "fastalloc", arenas)
    return arenas


def test_the_contract_with_arenas(counting: _CountingArenas, proof: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    where: dict[str, list[str]] = {}
    for name in ("_trace", "_mask", "_extend_witness", "_extend", "_quotient", "_split", "_combine", "_hash_rows"):
        honest = getattr(stark, name)

        def spy(*arguments: Any, _name: str = name, _honest: Any = honest) -> Any:
            where[_name] = list(counting.active)
            return _honest(*arguments)

        monkeypatch.setattr(stark, name, spy)
    assert stark.prove(_secret(), SMALL, memory=counting) == proof
    assert where.pop("_trace") == where.pop("_mask") == ["witness"]
    assert where.pop("_hash_rows")[-2:] == ["scope", "scratch"]
    assert set(map(tuple, where.values())) == {("polynomial",)}
    assert counting.entered.count("scope") == 2 + stark.Shape.of(SMALL).folds
    assert len(counting.made) == 2 * counting.entered.count("scope")


@pytest.fixture
def fastalloc() -> Any:
    module = pytest.importorskip("fastalloc", reason="the fastalloc package is not installed")
    if not hasattr(module, "Arenas"):
        pytest.skip("the fastalloc package is not built")
    return module


@pytest.mark.parametrize("rounds", [64, 1024])
def test_arenas_give_the_same_bytes(fastalloc: Any, rounds: int, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(hashlib.sha256(b"another secret").digest())
    plain = stark.prove(stark.read_secret(str(file)), rounds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a scope that leaves arrays behind gives a ResourceWarning
        with fastalloc.Arenas(**stark.arena_sizes(rounds)) as memory:
            secret = stark.read_secret(str(file), memory)
            assert memory.witness.owns(secret)
            public = stark.public_output(secret, rounds, memory)
            for _ in range(2):  # nothing of a proof stays behind to be in the way of the next
                assert stark.prove(secret, rounds, memory) == plain
            assert memory.witness.peak > 8 * rounds * 8
            assert memory.polynomial.peak > 8 * stark.Shape.of(rounds).domain * 8
            assert memory.scratch.peak > 0
            gc.collect()
            assert (memory.witness.live, memory.polynomial.live, memory.scratch.live) == (1, 0, 0)
            del secret
    assert stark.verify(public, plain)
