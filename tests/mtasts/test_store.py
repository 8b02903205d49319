"""mtasts.store: what survives a restart, and what a bad disk costs."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from smtpguard.events import StoreError, discard
from smtpguard.mtasts.store import RETRY_SECONDS, Store


async def in_place(write: Callable[[], str]) -> str:
    """No thread: the autojump clock knows nothing of one."""
    await trio.lowlevel.checkpoint()
    return write()


def kept(path: Path) -> list[tuple[str, bytes]]:
    """What the next process finds in table `a`."""
    with closing(Store.open(path, discard)) as store:
        return store.load("a")


def test_survives(tmp_path: Path) -> None:
    """STS-41."""
    path = tmp_path / "state.db"
    store = Store.open(path, discard)
    store.put("a", "k1", b"one")
    store.put("a", "k2", b"\x00\xff")
    store.put("b", "k1", b"other table")
    store.put("a", "gone", b"")
    store.delete("a", "gone")
    assert store.load("a") == [("k1", b"one"), ("k2", b"\x00\xff")]
    store.close()
    store.put("a", "late", b"nobody hears it")
    again = Store.open(path, discard)
    assert again.load("a") == [("k1", b"one"), ("k2", b"\x00\xff")]
    assert again.load("b") == [("k1", b"other table")]
    again.delete("a", "k1")
    again.close()
    assert kept(path) == [("k2", b"\x00\xff")]
    assert path.stat().st_mode & 0o077 == 0


async def test_written_behind_within_a_second(tmp_path: Path, nursery: trio.Nursery, autojump_clock: object) -> None:
    path = tmp_path / "state.db"
    store = Store.open(path, discard, runner=in_place)
    nursery.start_soon(store.run)
    store.put("a", "k", b"v")
    other = sqlite3.connect(path)
    assert other.execute("SELECT count(*) FROM entry").fetchone() == (0,)
    await trio.sleep(1)
    assert other.execute("SELECT tbl, key, value FROM entry").fetchall() == [("a", "k", b"v")]
    other.close()
    store.close()


async def test_the_default_writer_is_a_thread(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = Store.open(path, discard)
    failure = await store._runner(lambda: "from the thread")
    assert failure == "from the thread"
    store.close()


async def test_failing_disk_is_told_once_and_retried(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: object
) -> None:
    events: list[Any] = []
    broken = True

    async def run(write: Callable[[], str]) -> str:
        await trio.lowlevel.checkpoint()
        return "database or disk is full" if broken else write()

    path = tmp_path / "state.db"
    store = Store.open(path, events.append, runner=run)
    nursery.start_soon(store.run)
    store.put("a", "k", b"old")
    await trio.sleep(1)
    store.put("a", "k", b"new")
    await trio.sleep(3 * RETRY_SECONDS)
    assert [type(event) for event in events] == [StoreError]
    assert "disk is full" in events[0].detail
    broken = False
    await trio.sleep(RETRY_SECONDS + 1)
    assert store.load("a") == [("k", b"new")]
    assert store._notes == {}
    store.close()


async def test_cancelled_write_is_not_lost(tmp_path: Path, autojump_clock: object) -> None:
    async def never(write: Callable[[], str]) -> str:
        await trio.sleep_forever()
        return ""

    path = tmp_path / "state.db"
    store = Store.open(path, discard, runner=never)
    store.put("a", "k", b"v")
    with trio.move_on_after(0.6):
        await store.run()
    store.close()
    assert kept(path) == [("k", b"v")]


@pytest.mark.parametrize("damage", ["not a database", "torn"])
def test_damaged_file_is_moved_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.db"
    if damage == "torn":
        store = Store.open(path, discard)
        for number in range(200):
            store.put("a", str(number), bytes(200))
        store.close()
        octets = bytearray(path.read_bytes())
        octets[4096 : len(octets) - 4096] = b"\x5a" * (len(octets) - 8192)
        path.write_bytes(bytes(octets))
    else:
        path.write_bytes(b"this is not a database" * 100)
    before = path.read_bytes()
    events: list[Any] = []
    store = Store.open(path, events.append)
    assert store.load("a") == []
    assert [type(event) for event in events] == [StoreError]
    assert (tmp_path / "state.db.corrupt").read_bytes() == before
    store.put("a", "k", b"v")
    store.close()
    assert kept(path) == [("k", b"v")]


def test_unusable_place_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "state.db", tmp_path / "file" / "state.db", tmp_path):
        with pytest.raises(OSError, match="state_dir must be a directory") as caught:
            Store.open(path, discard)
        assert str(path) in str(caught.value)


def test_newer_schema_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    Store.open(path, discard).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(OSError, match="newer smtpguard"):
        Store.open(path, discard)
    assert not (tmp_path / "state.db.corrupt").exists()


async def test_memory_only(autojump_clock: object) -> None:
    store = Store.open(None, discard)
    store.put("a", "k", b"v")
    store.put("a", "x", b"v")
    store.delete("a", "x")
    assert store.load("a") == [("k", b"v")]
    with trio.fail_after(5):
        await store.run()
    store.close()


async def test_noted_during_a_failing_write_stays_newer(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: object
) -> None:
    async def run(write: Callable[[], str]) -> str:
        await trio.sleep(1)
        return "disk I/O error"

    store = Store.open(tmp_path / "state.db", discard, runner=run)
    nursery.start_soon(store.run)
    store.put("a", "k", b"old")
    await trio.sleep(1)  # the write is under way
    store.put("a", "k", b"new")
    await trio.sleep(1)
    assert store.load("a") == [("k", b"new")]
    store.close()


def test_a_lock_is_no_damage(tmp_path: Path) -> None:
    """Another process that holds the file must not cost its contents."""
    path = tmp_path / "state.db"
    Store.open(path, discard).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    events: list[Any] = []
    with pytest.raises(OSError, match="locked"):
        Store.open(path, events.append, busy_seconds=0.01)
    assert events == []
    assert not (tmp_path / "state.db.corrupt").exists()
    holder.close()
