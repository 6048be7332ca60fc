"""Statistics as data, as text, as differences, and of a block of code."""

import dataclasses
import json
import os
import textwrap

import numpy as np
import pytest
from conftest import make_block, run_python

import fastalloc as fa
from fastalloc import _binding

Allocator = fa.Arena | fa.Manager


@pytest.mark.parametrize(
    ("record", "struct"),
    [(fa.ArenaStats, "fa_arena_stats"), (fa.ManagerStats, "fa_manager_stats"), (fa.Protection, "fa_protection")],
)
def test_the_fields_are_those_of_the_c_struct(record: type, struct: str) -> None:
    names = [name for name, _ in _binding.ffi.typeof(struct).fields]
    assert [field.name for field in dataclasses.fields(record)] == names
    assert list(record.UNITS) == names  # type: ignore[attr-defined]
    assert set(record.UNITS.values()) <= {"bytes", "count"}  # type: ignore[attr-defined]


def test_stats_are_frozen_and_comparable(allocator: Allocator) -> None:
    stats = allocator.stats()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.live = 5  # type: ignore[misc]
    assert stats == allocator.stats()
    assert hash(stats) == hash(allocator.stats())
    block = make_block(allocator, 64)
    assert stats != allocator.stats()
    block.free()


def test_as_dict_is_plain(allocator: Allocator) -> None:
    block = make_block(allocator, 100)
    data = json.loads(json.dumps(allocator.stats().as_dict()))
    assert data["live"] == 1
    assert data["requested"] == 100
    assert data == allocator.stats().as_dict()
    block.free()


def test_text(allocator: Allocator) -> None:
    block = make_block(allocator, 2048)
    lines = str(allocator.stats()).splitlines()
    assert lines[0].split() == ["requested", "2", "KiB"]
    assert len(lines) == len(allocator.stats().as_dict())
    assert len({len(line) for line in lines}) == 1
    block.free()


def test_difference(allocator: Allocator) -> None:
    before = allocator.stats()
    block = make_block(allocator, 100)
    change = allocator.stats() - before
    assert type(change) is type(before)
    assert (change.live, change.allocated, change.requested) == (1, 1, 100)
    block.free()
    back = before - allocator.stats()
    assert back.allocated == -1
    assert "-1" in str(back)
    with pytest.raises(TypeError):
        before - 1  # type: ignore[operator]


def test_kinds_of_stats_do_not_mix() -> None:
    with pytest.raises(TypeError):
        fa.Manager().stats() - fa.Scratch("1MiB").stats()  # type: ignore[operator]


def test_protection_as_text() -> None:
    witness = fa.Witness("64KiB")
    witness.alloc(100)
    protection = witness.protection
    assert protection.as_dict()["no_dump"] == protection.no_dump
    assert "wipe_on_fork" in str(protection)


def test_stats_of_arenas() -> None:
    with fa.Arenas("1MiB", "1MiB", "1MiB") as memory:
        before = memory.stats()
        kept = memory.scratch.zeros(100)
        change = memory.stats() - before
        assert (change.scratch.live, change.witness.live) == (1, 0)
        assert str(memory.stats()).splitlines()[0].split() == ["witness", "polynomial", "scratch"]
        del kept


def test_the_peak(allocator: Allocator) -> None:
    block = make_block(allocator, 10_000)
    block.free()
    assert allocator.peak >= 10_000
    assert allocator.used == 0


def test_track(allocator: Allocator) -> None:
    held = make_block(allocator, 1000)
    start = allocator.used
    with allocator.track() as track:
        with fa.using_allocator(allocator):
            kept = np.ones(1000) + 1
        assert track.allocated >= 2
        assert "so far" in repr(track)
        assert track.peak >= start + 16_000
        held.free()
    after = (track.allocated, track.freed, track.bytes, track.peak, track.growth)
    assert track.freed >= 2
    assert track.bytes == 8000 - 1000
    assert 16_000 <= track.growth == track.peak - start
    del kept
    make_block(allocator, 30_000).free()
    assert (track.allocated, track.freed, track.bytes, track.peak, track.growth) == after
    assert "in all" in repr(track)


def test_tracks_nest(allocator: Allocator) -> None:
    make_block(allocator, 50_000).free()
    with allocator.track() as outer:
        make_block(allocator, 20_000).free()
        with allocator.track() as inner:
            make_block(allocator, 10_000).free()
            with allocator.track() as innermost:
                make_block(allocator, 5_000).free()
        make_block(allocator, 1_000).free()
    assert 5_000 <= innermost.peak < 10_000 <= inner.peak < 20_000 <= outer.peak < 50_000 <= allocator.peak
    assert (innermost.allocated, inner.allocated, outer.allocated) == (1, 2, 4)


def test_a_track_that_ends_in_an_exception(allocator: Allocator) -> None:
    with pytest.raises(KeyError), allocator.track() as track:
        make_block(allocator, 100)
        raise KeyError
    assert track.allocated == 1
    with allocator.track() as next_one:
        pass
    assert next_one.peak == 0


def test_a_track_across_close_and_retire() -> None:
    arena = fa.Polynomial("1MiB")
    with arena.track() as track:
        kept = arena.zeros(10_000)
        arena.reset(retire=True)
        assert track.peak >= 80_000
        arena.close()
    assert track.peak >= 80_000
    assert arena.peak >= 80_000
    del kept


def test_a_track_is_used_once() -> None:
    track = fa.Scratch("1MiB").track()
    assert repr(track) == "<fastalloc.Track, not begun>"
    with pytest.raises(fa.ScopeError):
        track.__exit__(None, None, None)
    with pytest.raises(fa.ScopeError):
        track.allocated  # noqa: B018
    with track:
        pass
    with pytest.raises(fa.ScopeError):
        track.__exit__(None, None, None)
    with pytest.raises(fa.ScopeError), track:
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a platform without fork")
def test_a_lock_that_another_thread_holds_does_not_reach_a_forked_child() -> None:
    ran = run_python(
        textwrap.dedent("""
        import os, signal, threading
        import fastalloc as fa
        arena = fa.Scratch("1MiB")
        held, done = threading.Event(), threading.Event()
        def hold():
            with arena._measure.lock:  # as in the middle of track()
                held.set()
                done.wait()
        threading.Thread(target=hold).start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            with arena.track() as track:
                array = arena.empty(10)
            os._exit(track.allocated)
        status = os.waitpid(child, 0)[1]
        done.set()
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1, status
    """)
    )
    assert ran.returncode == 0, ran.stderr
