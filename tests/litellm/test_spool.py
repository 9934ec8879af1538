"""The spool: whole entries, in order, none lost, and a proxy that never waits for them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from conftest import PLUGIN, in_child, module, until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")


def test_an_entry_is_one_json_object_under_the_name_that_keytide_sorts_by(home, proxy):
    home.load()
    before = time.time_ns()
    proxy.generate("sk-abc123", "my-key")
    [name] = home.files()
    nanoseconds, producer, sequence = re.fullmatch(r"(\d{20})-(litellm-[A-Za-z0-9-]+)-(\d+)\.json", name).groups()
    assert before <= int(nanoseconds) <= time.time_ns()
    assert sequence == "1" and len(name) <= 200 and str(os.getpid()) in producer
    assert (home.spool / name).read_text() == '{"op": "create", "name": "litellm/my-key", "value": "sk-abc123"}'
    assert os.listdir(home.spool) == [name]


def test_a_long_or_odd_host_name_makes_a_legal_short_file_name(home, proxy, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "litellm-7f.ключ/" + "x" * 300)
    home.load()
    proxy.generate("sk-1", "k")
    [name] = home.files()
    assert len(name.encode()) <= 200 and re.fullmatch(r"[A-Za-z0-9.-]+", name)


@pytest.mark.parametrize("umask", [0o077, 0o777, 0o000])
def test_an_entry_is_readable_for_keytides_user_whatever_the_umask(home, proxy, umask):
    home.load()
    before = os.umask(umask)
    try:
        proxy.generate("sk-1", "k")
    finally:
        os.umask(before)
    [name] = home.files()
    assert stat.S_IMODE((home.spool / name).stat().st_mode) == 0o644


def test_entries_lie_in_the_order_of_the_calls(home):
    manager = home.load()

    async def calls():
        await asyncio.gather(*(manager.async_write_secret(f"litellm/{number}", "sk-1") for number in range(200)))

    asyncio.run(calls())
    assert [entry["name"] for entry in home.entries()] == [f"litellm/{number}" for number in range(200)]


def test_a_clock_that_stands_still_or_steps_back_does_not_change_the_order(home, proxy, monkeypatch):
    home.load()
    times = iter([5_000, 5_000, 1_000])
    monkeypatch.setattr(time, "time_ns", lambda: next(times))
    for alias in "abc":
        proxy.generate("sk-1", alias)
    assert [entry["name"] for entry in home.entries()] == ["litellm/a", "litellm/b", "litellm/c"]
    assert [int(name[:20]) for name in home.files()] == [5_000, 5_001, 5_002]


def test_an_entry_becomes_visible_only_after_those_before_it(home, monkeypatch):
    manager = home.load()
    visible, rename = [], os.rename
    monkeypatch.setattr(os, "rename", lambda old, new: (visible.append(new), rename(old, new)))

    async def calls():
        await asyncio.gather(*(manager.async_write_secret(f"litellm/{number}", "sk-1") for number in range(50)))

    asyncio.run(calls())
    assert len(visible) == 50 and visible == sorted(visible)


def test_threads_with_loops_of_their_own_share_one_order(home):
    manager = home.load()

    def calls(thread):
        async def some():
            for number in range(20):
                await manager.async_write_secret(f"litellm/{thread}/{number}", "sk-1")
        asyncio.run(some())

    threads = [threading.Thread(target=calls, args=(thread,)) for thread in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    names = [entry["name"] for entry in home.entries()]
    assert len(names) == 80
    for thread in range(4):
        own = [name for name in names if name.startswith(f"litellm/{thread}/")]
        assert own == [f"litellm/{thread}/{number}" for number in range(20)]


def test_a_disk_that_hangs_neither_holds_up_the_proxy_nor_shows_half_an_entry(home, proxy, monkeypatch):
    home.load()
    hangs, goes_on, fsync = threading.Event(), threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (hangs.set(), goes_on.wait(60), fsync(descriptor)))

    async def scene():
        task = asyncio.create_task(proxy.generating("sk-1", "k"))
        ticks = 0
        while not hangs.is_set() or ticks < 1_000:
            await asyncio.sleep(0)
            ticks += 1
        assert not task.done()
        assert home.files() == []
        goes_on.set()
        await task

    asyncio.run(scene())
    assert home.entries() == [{"op": "create", "name": "litellm/k", "value": "sk-1"}]


def test_a_request_that_is_given_up_does_not_take_its_entry_back(home, proxy, monkeypatch):
    home.load()
    hangs, goes_on, fsync = threading.Event(), threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (hangs.set(), goes_on.wait(60), fsync(descriptor)))

    async def scene():
        task = asyncio.create_task(proxy.generating("sk-1", "k"))
        while not hangs.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())
    goes_on.set()
    until(home.files, "the entry is there")
    proxy.generate("sk-2", "k2")
    assert [entry["name"] for entry in home.entries()] == ["litellm/k", "litellm/k2"]


def test_a_killed_process_leaves_no_half_entry(home, proxy):
    home.load()

    def killed():
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        proxy.generate("sk-1", "k")

    assert in_child(killed) == -signal.SIGKILL
    [left] = os.listdir(home.spool)
    assert left.startswith(".")


def test_a_forked_worker_writes_under_a_name_of_its_own(home, proxy):
    home.load()
    proxy.generate("sk-1", "parent")
    assert in_child(lambda: proxy.generate("sk-2", "child")) == 0
    assert [entry["name"] for entry in home.entries()] == ["litellm/parent", "litellm/child"]
    parent, worker = home.files()
    assert parent.split("-")[1:-1] != worker.split("-")[1:-1]


def become_another_user():
    os.setgroups([])
    os.setgid(1000)
    os.setuid(1000)


@as_root
def test_another_user_writes_into_a_directory_that_only_keytide_may_list(home, proxy):
    place = Path(tempfile.mkdtemp(prefix="keytide-"))  # pytest's own directories are closed to other users
    try:
        place.chmod(0o755)
        home.spool = place / "in"
        home.spool.mkdir()
        os.chown(home.spool, 65532, 65532)
        home.spool.chmod(0o1733)
        os.environ["KEYTIDE_SPOOL"] = str(home.spool)
        home.load()

        def another_user():
            become_another_user()
            with pytest.raises(PermissionError):
                os.listdir(home.spool)
            proxy.generate("sk-1", "k")
            proxy.generate("sk-2", "k2")

        assert in_child(another_user) == 0
        assert [entry["name"] for entry in home.entries()] == ["litellm/k", "litellm/k2"]
        status = (home.spool / home.files()[0]).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode), status.st_nlink) == (1000, 0o644, 1)
        assert home.files() == sorted(os.listdir(home.spool))
    finally:
        shutil.rmtree(place)


@as_root
def test_a_spool_that_may_not_be_written_says_who_tried(home, proxy, tmp_path):
    place = Path(tempfile.mkdtemp(prefix="keytide-"))
    try:
        place.chmod(0o755)
        home.spool = place / "in"
        home.spool.mkdir(mode=0o755)
        os.environ["KEYTIDE_SPOOL"] = str(home.spool)
        manager = home.load()
        said = tmp_path / "said"
        with said.open("w") as file:

            def another_user():
                become_another_user()
                with pytest.raises(module(manager)["SpoolError"]) as raised:
                    asyncio.run(manager.async_write_secret("litellm/k", "sk-canary"))
                file.write(str(raised.value))
                file.flush()

            assert in_child(another_user) == 0
        assert f"{home.spool} cannot be written by user 1000" in said.read_text()
        assert "canary" not in said.read_text()
    finally:
        shutil.rmtree(place)


def test_entries_for_a_spool_that_is_missing_land_in_order_once_it_is_there(home, proxy, caplog):
    away = home.spool.with_name("away")
    home.spool.rename(away)
    home.load()
    proxy.generate("sk-1", "k")
    proxy.regenerate("sk-1", "sk-2", "k", response_alias="k")
    proxy.update("sk-2", "k", "k2")
    proxy.delete(proxy.row("sk-2", "k2"), proxy.row("sk-3", None))
    said = [record.getMessage() for record in caplog.records if record.name == "keytide"]
    assert len(said) == 1, said
    assert str(home.spool) in said[0] and "does not exist: mount keytide's spool volume there" in said[0]
    assert caplog.text.count("Failed to store virtual key in secret manager: keytide's spool") == 1

    away.rename(home.spool)
    until(lambda: len(home.files()) == 5, "all five entries are there")
    assert [(entry["op"], entry["name"][:9]) for entry in home.entries()] == [
        ("create", "litellm/k"), ("rotate", "litellm/k"), ("rename", "litellm/k"),
        ("delete", "litellm/k"), ("delete", "litellm/v"),
    ]
    proxy.generate("sk-4", "after")
    assert home.entries()[-1]["name"] == "litellm/after"
    until(lambda: any("can be written again" in record.getMessage() for record in caplog.records), "it says so")
    assert len([record for record in caplog.records if record.name == "keytide"]) == 2


@pytest.mark.parametrize(("number", "advice"), [
    (28, "is full: `keytide spool list`"), (13, "cannot be written by user"), (30, "cannot be written by user"),
    (5, "cannot be written (Input/output error)"),
])
def test_an_error_says_what_to_do_and_the_entry_is_written_later(home, monkeypatch, number, advice):
    manager = home.load()
    broken = threading.Event()
    broken.set()
    fsync = os.fsync

    def fails(descriptor):
        if broken.is_set():
            raise OSError(number, "canary", "canary")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(module(manager)["SpoolError"]) as raised:
        asyncio.run(manager.async_write_secret("litellm/k", "sk-canary"))
    assert advice in str(raised.value) and str(home.spool) in str(raised.value)
    assert "kept in memory" in str(raised.value) and "canary" not in str(raised.value)
    broken.clear()
    until(home.files, "the entry is written")
    assert home.entries() == [{"op": "create", "name": "litellm/k", "value": "sk-canary"}]
    assert os.listdir(home.spool) == home.files()


def test_what_waits_is_bounded_and_what_is_lost_is_named(home, proxy, monkeypatch, caplog):
    home.spool.rename(home.spool.with_name("away"))
    manager = home.load()
    monkeypatch.setitem(module(manager), "MAX_WAITING", 2)
    monkeypatch.setitem(module(manager), "EXIT_SECONDS", 0.01)
    for alias in "abcd":
        proxy.generate("sk-canary", alias)
    assert "`create litellm/c` is lost" in caplog.text and "`create litellm/d` is lost" in caplog.text
    manager._spool.close()
    said = [record.getMessage() for record in caplog.records if record.name == "keytide"]
    assert len([line for line in said if "2 entries wait in memory" in line]) == 1
    assert "4 entries could not be written" in said[-1]
    assert said[-1].endswith("are lost: create litellm/a, create litellm/b, …")
    assert "canary" not in caplog.text


EXIT = """
import asyncio, sys, threading, time
import os
sys.path.insert(0, sys.argv[1])
import keytide_litellm
manager = keytide_litellm.Keytide()
try:
    asyncio.run(manager.async_write_secret("litellm/k", "sk-canary"))
except keytide_litellm.SpoolError:
    pass
if sys.argv[2] == "appears":
    threading.Thread(target=lambda: (time.sleep(0.5), os.mkdir(os.environ["KEYTIDE_SPOOL"])), daemon=True).start()
else:
    keytide_litellm.EXIT_SECONDS = 0.2
"""


@pytest.mark.parametrize("spool", ["appears", "stays away"])
def test_the_end_of_a_process_tries_for_a_while_and_says_what_is_lost(home, spool):
    home.spool.rmdir()
    ended = subprocess.run(
        [sys.executable, "-c", EXIT, str(PLUGIN.parent), spool], capture_output=True, text=True, timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    lost = "1 entries could not be written" in ended.stderr
    assert "canary" not in ended.stderr
    if spool == "appears":
        assert not lost and home.entries() == [{"op": "create", "name": "litellm/k", "value": "sk-canary"}]
    else:
        assert lost and "are lost: create litellm/k" in ended.stderr


def test_an_entry_survives_what_json_does_not_carry_well(home, proxy):
    home.load()
    proxy.generate("sk-\u2028\"\\\n\x00ключ", "k")
    [name] = home.files()
    text = (home.spool / name).read_text()
    assert text.isascii() and "\n" not in text
    assert json.loads(text)["value"] == "sk-\u2028\"\\\n\x00ключ"
