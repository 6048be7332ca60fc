"""The exception classes, and that what _binding raises is one of them."""

import pytest

import fastalloc as fa
from fastalloc import _binding, errors


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (fa.OutOfMemoryError, MemoryError),
        (fa.ArgumentError, ValueError),
        (fa.ArgumentTypeError, TypeError),
        (fa.InUseError, BufferError),
        (fa.ClosedError, ValueError),
        (fa.StaleMarkError, ValueError),
        (fa.ForeignBlockError, ValueError),
        (fa.FreedBlockError, ValueError),
        (fa.ScopeError, RuntimeError),
        (fa.SealedError, ValueError),
        (fa.LockError, OSError),
        (fa.UnsupportedError, NotImplementedError),
        (fa.CorruptionError, RuntimeError),
    ],
)
def test_each_is_also_a_builtin(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, fa.FastallocError)
    assert issubclass(error, builtin)
    assert not issubclass(fa.FastallocError, builtin)


def test_all_are_exported() -> None:
    names = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert names <= set(fa.__all__)


def test_every_status_has_an_exception_and_a_description() -> None:
    statuses = {name: getattr(_binding.lib, name) for name in dir(_binding.lib) if name.startswith("FA_ERR_")}
    assert len(statuses) == 9
    for status in statuses.values():
        with pytest.raises(fa.FastallocError) as error:
            _binding.fail(status, "message")
        assert type(error.value) is not fa.FastallocError
        assert _binding.describe(status)


def test_everything_exported_exists() -> None:
    for name in fa.__all__:
        assert getattr(fa, name) is not None
