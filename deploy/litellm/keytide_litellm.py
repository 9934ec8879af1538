"""keytide's plug-in for the LiteLLM proxy: hosted keys come from keytide's file, virtual keys go to keytide's spool.

It lies beside LiteLLM's config.yaml, which names it:

    general_settings:
      key_management_system: custom
      key_management_settings:
        custom_secret_manager: keytide_litellm.Keytide

Settings are environment variables: KEYTIDE_KEYS_FILE (a `json` env file), KEYTIDE_SPOOL, KEYTIDE_LIVE_KEYS (names
whose changes are served without a restart, or `*`) and KEYTIDE_WAIT (seconds that a start waits for the first file).
No log line and no error holds a value.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import hashlib
import inspect
import json
import logging
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Any, Callable, NamedTuple

import litellm
from litellm.integrations.custom_secret_manager import CustomSecretManager

NAME = "keytide"
MAX_WAITING = 10_000
RETRY_FIRST, RETRY_LAST = 0.1, 10.0
EXIT_SECONDS = 5.0

_log = logging.getLogger(NAME)
_UNALIASED = re.compile(r"(?P<prefix>(?:.*/)?)virtual-key-[0-9a-f]{64}", re.DOTALL)


class SpoolError(Exception):
    """An entry is not in the spool (yet); says which directory and what to do, never a value."""


class _Keys:
    """The hosted keys: keytide's file as it was last read well, and what this process has served of it."""

    def __init__(self, path: str, live: frozenset[str]) -> None:
        self.path = path
        self.loaded = False
        self._live = live
        self._values: dict[str, str] = {}
        self._served: dict[str, str] = {}
        self._seen: tuple[int, int, int] | None = None
        self._problem: str | None = None

    def get(self, name: str) -> str | None:
        """The first value that was served, since LiteLLM evicts models of its file whose values change; a live
        key's present one."""
        live = name in self._live or "*" in self._live
        if not live and name in self._served:
            return self._served[name]
        self.load()
        value = self._values.get(name)
        return value if live or value is None else self._served.setdefault(name, value)

    def load(self) -> None:
        """Reads the file where it was replaced since the last look. One that cannot be read changes nothing."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                seen = (status.st_mtime_ns, status.st_ino, status.st_size)
                if seen == self._seen:
                    return
                content = file.read()
        except OSError as error:
            self._seen = None
            return self._say(f"cannot be read ({os.strerror(error.errno or 0)})")
        self._seen = seen
        values = _members(content)
        if values is None:
            return self._say("is not a JSON object: keytide's env file needs `format: json`")
        self._values, self.loaded = values, True
        self._say(None)

    def problem(self) -> str:
        return self._problem or "was not read"

    def _say(self, problem: str | None) -> None:
        """Logs a change of state, and not every look."""
        if problem != self._problem:
            if problem:
                rest = "the last good values stay" if self.loaded else "no key has a value yet"
                _log.warning("keytide: the keys file %s %s; %s", self.path, problem, rest)
            else:
                _log.info("keytide: the keys file %s is read again", self.path)
            self._problem = problem


def _members(content: bytes) -> dict[str, str] | None:
    try:
        document = json.loads(content)
    except ValueError:  # also not UTF-8; the error holds the document and stays here
        return None
    if not isinstance(document, dict):
        return None
    return {name: value for name, value in document.items() if isinstance(value, str)}


class _Waiting(NamedTuple):
    file: str
    content: bytes
    label: str
    written: Future[None]

    def __repr__(self) -> str:
        return f"<{self.label}>"


class _Spool:
    """Writes entries in the order of the calls, in a thread of its own, and keeps what it cannot write yet."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.pid = os.getpid()
        host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[-32:]
        self._producer = f"litellm-{host}-{self.pid}-{secrets.token_hex(4)}"
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._thread: threading.Thread | None = None
        self._problem: str | None = None
        self._closing = threading.Event()
        self._lost = 0
        self._time = 0
        self._sequence = 0
        atexit.register(self.close)

    def put(self, entry: dict[str, Any]) -> Future[None]:
        """Takes an entry at its place in the order. The result says whether the first try has written it."""
        content = json.dumps(entry).encode()
        label = f"{entry['op']} {entry['name']}"
        written: Future[None] = Future()
        written.set_running_or_notify_cancel()  # a caller that gives up cannot take the entry back
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self._lost += 1
                full = f"keytide: {MAX_WAITING} entries wait in memory for the spool {self.directory}"
                if self._lost == 1:
                    _log.error("%s; until it can be written, what else comes is lost", full)
                raise SpoolError(f"{full}; `{label}` is lost")
            self._time = max(self._time + 1, time.time_ns())
            self._sequence += 1
            file = f"{self._time:020}-{self._producer}-{self._sequence}.json"
            self._waiting.append(_Waiting(file, content, label, written))
            if self._problem:
                written.set_exception(SpoolError(_kept(self._problem)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="keytide-spool", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return written

    def close(self) -> None:
        """The last tries, for a short while; names what is lost. A process that forked leaves this to its parent."""
        if self.pid != os.getpid():
            return
        self._closing.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout=EXIT_SECONDS)
            labels = [waiting.label for waiting in self._waiting]
            lost = len(labels) + self._lost
            self._waiting.clear()
            self._lost = 0
        if lost:
            named = ", ".join(labels[:100]) + (", …" if lost > len(labels[:100]) else "")
            _log.error("keytide: %d entries could not be written to the spool %s and are lost: %s",
                       lost, self.directory, named)

    def _run(self) -> None:
        delay = RETRY_FIRST
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                first = self._waiting[0]
            try:
                self._write(first)
            except Exception as error:  # whatever it is, the thread must live, or all that follows is lost
                problem = f"keytide's spool {self.directory} {_advice(error)}"
            else:
                problem = None
            with self._changed:
                if problem != self._problem:
                    if problem:
                        _log.error("%s", _kept(problem))
                    else:
                        _log.warning("keytide: the spool %s can be written again", self.directory)
                    self._problem = problem
                if problem:
                    for waiting in self._waiting:
                        if not waiting.written.done():
                            waiting.written.set_exception(SpoolError(_kept(problem)))
                else:
                    if self._waiting and self._waiting[0] is first:  # else the end of the process has given it up
                        self._waiting.popleft()
                    if not first.written.done():
                        first.written.set_result(None)
                    self._changed.notify_all()
            if problem is None:
                delay = RETRY_FIRST
            elif self._closing.wait(delay):
                time.sleep(RETRY_FIRST)
            else:
                delay = min(2 * delay, RETRY_LAST)

    def _write(self, waiting: _Waiting) -> None:
        """The whole entry under a hidden name first, so that keytide never sees half of one."""
        # A name that nobody can guess, since others may write here too, and may not list the directory, as we may not.
        hidden = os.path.join(self.directory, f".{self._producer}-{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(hidden, flags, 0o600)
        try:
            try:
                os.fchmod(descriptor, 0o644)  # keytide is another user; the directory is what keeps others out
                with open(descriptor, "wb", closefd=False) as file:
                    file.write(waiting.content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(hidden, os.path.join(self.directory, waiting.file))
        except BaseException:
            try:
                os.unlink(hidden)
            except OSError:
                pass
            raise
        self._sync_directory()

    def _sync_directory(self) -> None:
        """Where the directory may be opened. Usually it may not, and a pod's tmpfs does not need it."""
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            os.fsync(descriptor)
        except OSError:
            pass  # the entry is in its place, and may be claimed already
        finally:
            os.close(descriptor)


def _kept(problem: str) -> str:
    return f"{problem}. What waits is kept in memory and written, in order, as soon as that works"


def _advice(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOENT, errno.ENOTDIR):
        return "does not exist: mount keytide's spool volume there, or set KEYTIDE_SPOOL; keytide makes it at its start"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (f"cannot be written by user {os.geteuid()}: mount the volume read-write in this container; "
                "keytide gives the directory its mode when it starts")
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "is full: `keytide spool list` says what waits and why; else raise the volume's size limit"
    return f"cannot be written ({os.strerror(number) if number else type(error).__name__})"


class Keytide(CustomSecretManager):
    """LiteLLM's custom secret manager. Reads never leave this machine; writes are entries that keytide delivers."""

    def __init__(self) -> None:
        super().__init__(secret_manager_name=NAME)
        # LiteLLM's command line makes this object twice in one process: what was served and what waits goes on.
        earlier = litellm.secret_manager_client
        if getattr(earlier, "secret_manager_name", None) == NAME:
            self._keys, self._spool = earlier._keys, earlier._spool
        else:
            live = frozenset(filter(None, map(str.strip, os.environ.get("KEYTIDE_LIVE_KEYS", "").split(","))))
            self._keys = _Keys(os.environ.get("KEYTIDE_KEYS_FILE") or "/run/keytide/env/keys.json", live)
            self._spool = _Spool(os.environ.get("KEYTIDE_SPOOL") or "/run/keytide/spool/in")
        # Stands for a value that only AWS and keytide know. Random, so that no key can be taken for it.
        self._stays = f"keytide keeps this value ({secrets.token_hex(16)})"
        self._warned: set[str] = set()
        _wait_for(self._keys)
        _delete_every_key()
        _close_with_the_proxy()

    def sync_read_secret(
        self, secret_name: str, optional_params: dict | None = None, timeout: Any = None
    ) -> str | None:
        """A hosted key's value. None makes LiteLLM look into the environment."""
        return self._keys.get(secret_name)

    async def async_read_secret(
        self, secret_name: str, optional_params: dict | None = None, timeout: Any = None
    ) -> str | None:
        """LiteLLM asks for a virtual key's value in order to rename it, and only then. It cannot be read here, so what
        it gets is a mark that `async_rotate_secret` knows; a hosted key never is that mark."""
        from litellm.proxy.hooks.key_management_event_hooks import KeyManagementEventHooks

        if secret_name.startswith(KeyManagementEventHooks._get_secret_name("")):
            return self._stays
        return self.sync_read_secret(secret_name)

    async def async_write_secret(
        self,
        secret_name: str,
        secret_value: str,
        description: str | None = None,
        optional_params: dict | None = None,
        timeout: Any = None,
        tags: dict | list | None = None,
    ) -> dict[str, Any]:
        if secret_value == self._stays:
            raise ValueError(f"keytide: {secret_name} can be renamed, not copied: its value is not known here")
        entry = {"op": "create", "name": secret_name, "value": secret_value}
        if description:
            entry["description"] = description
        if tags:
            pairs = tags if isinstance(tags, dict) else {tag["Key"]: tag["Value"] for tag in tags}
            entry["tags"] = dict(pairs)
        return await self._put(entry, optional_params)

    async def async_rotate_secret(
        self,
        current_secret_name: str,
        new_secret_name: str,
        new_secret_value: str,
        optional_params: dict | None = None,
        timeout: Any = None,
    ) -> dict[str, Any]:
        """The base class writes and then deletes the old name, also where that is the new name."""
        entry = {"op": "rotate", "name": current_secret_name, "new_name": new_secret_name, "value": new_secret_value}
        if new_secret_value == self._stays:
            if new_secret_name.endswith("/"):
                raise ValueError(f"keytide: {current_secret_name} keeps its name: an alias that is empty names nothing")
            entry.update(op="rename")
            del entry["value"]
        elif current_secret_name == new_secret_name and (unaliased := _UNALIASED.fullmatch(new_secret_name)):
            # LiteLLM names a key without alias by its hash, and looks for the new key's hash next time.
            digest = hashlib.sha256(new_secret_value.encode()).hexdigest()
            entry["new_name"] = f"{unaliased['prefix']}virtual-key-{digest}"
        return await self._put(entry, optional_params)

    async def async_delete_secret(
        self,
        secret_name: str,
        recovery_window_in_days: int | None = 7,
        optional_params: dict | None = None,
        timeout: Any = None,
    ) -> dict[str, Any]:
        days = 7 if recovery_window_in_days is None else recovery_window_in_days
        if not 7 <= days <= 30:
            raise ValueError(f"keytide: {secret_name} is not deleted: a recovery window has 7 to 30 days, not {days}")
        return await self._put({"op": "delete", "name": secret_name, "recovery_window_in_days": days}, optional_params)

    async def _put(self, entry: dict[str, Any], team_settings: dict | None) -> dict[str, Any]:
        team = self._team(team_settings or {})
        if team:
            entry["team"] = team
        if self._spool.pid != os.getpid():  # a fork has neither the thread nor the right to the entries
            self._spool = _Spool(self._spool.directory)
        await asyncio.wrap_future(self._spool.put(entry))
        return {"status": "success", "name": entry.get("new_name", entry["name"])}

    def _team(self, settings: dict) -> dict[str, str] | None:
        """The pair that keytide can allow. Endpoints, profiles and credentials never leave LiteLLM in an entry."""
        pair = {name: settings.get(name) for name in ("aws_role_name", "aws_region_name")}
        whole = all(isinstance(value, str) and value for value in pair.values())
        followed = pair if whole else ()
        named = {str(name) for name in settings if str(name).startswith("aws_")}
        said = ", ".join(sorted(named.difference(followed)))
        if said and said not in self._warned:
            self._warned.add(said)
            _log.warning(
                "keytide: a team's secret_manager_settings are not followed in: %s. A team may give aws_role_name and "
                "aws_region_name, both, and keytide's spool.teams must list the pair", said)
        return pair if whole else None


def _wait_for(keys: _Keys) -> None:
    """A proxy that starts without its keys may start without a master key, open to everyone: no start then."""
    settings = litellm._key_management_settings
    if settings is not None and (settings.access_mode == "write_only" or settings.hosted_keys == []):
        return
    try:
        seconds = float(os.environ.get("KEYTIDE_WAIT") or 60)
    except ValueError:
        raise ValueError("keytide: KEYTIDE_WAIT is a number of seconds, such as 60") from None
    end = time.monotonic() + seconds
    keys.load()
    while not keys.loaded:
        if time.monotonic() >= end:
            raise RuntimeError(
                f"keytide: the keys file {keys.path} {keys.problem()}, after {seconds:g} s. Is keytide running, with "
                "an env_file of `format: json` at that path (or KEYTIDE_KEYS_FILE), in a volume mounted here?")
        time.sleep(0.1)  # blocks the start, which is what is wanted: nothing is served yet
        keys.load()


def _delete_every_key() -> None:
    """LiteLLM's hook skips keys without alias, and after one that fails it skips the rest."""
    from litellm.proxy.hooks.key_management_event_hooks import KeyManagementEventHooks as Hooks

    # Sessions of the admin pages are keys without alias too, which LiteLLM never stores.
    sessions = getattr(litellm.constants, "UI_SESSION_TOKEN_TEAM_ID", None)

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        async def delete(keys_being_deleted: list) -> None:
            if getattr(litellm.secret_manager_client, "secret_manager_name", None) != NAME:
                return await original(keys_being_deleted=keys_being_deleted)
            for key in keys_being_deleted:
                try:
                    session = sessions is not None and getattr(key, "team_id", None) == sessions
                    if not key.key_alias and key.token and not session:
                        # What LiteLLM has named it by. The rest of the hook is right: prefix, team, manager.
                        key = key.model_copy(update={"key_alias": f"virtual-key-{key.token}"})
                    await original(keys_being_deleted=[key])
                except SpoolError:
                    pass  # the spool has said it, and keeps the entry
                except Exception as error:
                    _log.warning("keytide: the secret of a deleted virtual key may stay (%s)", type(error).__name__)

        return delete

    _wrap(Hooks, "_delete_virtual_keys_from_secret_manager", ["keys_being_deleted"], wrap,
          "secrets of virtual keys without alias must be deleted by hand")


def _close_with_the_proxy() -> None:
    """uvicorn ends with the signal that stopped it, which skips `atexit`."""
    proxy = sys.modules.get("litellm.proxy.proxy_server")
    if proxy is None:
        return

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        async def shut_down(*arguments: Any, **named: Any) -> Any:
            manager = litellm.secret_manager_client
            if getattr(manager, "secret_manager_name", None) == NAME:
                await asyncio.to_thread(manager._spool.close)
            return await original(*arguments, **named)

        return shut_down

    _wrap(proxy, "proxy_shutdown_event", None, wrap, "entries that wait in memory when LiteLLM is stopped are lost")


def _wrap(owner: Any, name: str, parameters: list[str] | None, wrap: Callable[..., Any], without: str) -> None:
    """Wraps a function of LiteLLM's once, and only where it is the one that this was written for."""
    original = getattr(owner, name, None)
    if getattr(original, NAME, False):
        return
    known = inspect.iscoroutinefunction(original)
    if not known or parameters not in (None, list(inspect.signature(original).parameters)):
        _log.warning("keytide: this LiteLLM's %s is not the one known: %s", name, without)
        return
    wrapped = wrap(original)
    setattr(wrapped, NAME, True)
    setattr(owner, name, staticmethod(wrapped) if inspect.isclass(owner) else wrapped)
