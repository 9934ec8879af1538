"""The plug-in under the real LiteLLM: its loader, its hooks, its proxy. Nothing here talks to another machine."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else LiteLLM asks the internet for prices
os.environ["LITELLM_MODE"] = "PRODUCTION"  # else it looks for an .env file

import litellm
import pytest
import yaml
from litellm.proxy import proxy_server
from litellm.proxy._types import (
    GenerateKeyRequest,
    GenerateKeyResponse,
    KeyRequest,
    LiteLLM_VerificationToken,
    RegenerateKeyRequest,
    UpdateKeyRequest,
    UserAPIKeyAuth,
    hash_token,
)
from litellm.proxy.hooks.key_management_event_hooks import KeyManagementEventHooks
from litellm.secret_managers.custom_secret_manager_loader import load_custom_secret_manager
from litellm.types.secret_managers.main import KeyManagementSettings

PLUGIN = Path(__file__).resolve().parents[2] / "deploy" / "litellm" / "keytide_litellm.py"


def until(condition: Callable[[], Any], what: str) -> Any:
    """Waits for a condition; the limit only ends a test that has failed."""
    end = time.monotonic() + 60
    while not (result := condition()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)
    return result


def in_child(act: Callable[[], Any]) -> int:
    """Does it in a forked process, for a minute at most; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Home:
    """What a pod's two containers share, with LiteLLM's configuration beside the plug-in."""

    def __init__(self, directory: Path) -> None:
        self.keys = directory / "env" / "keys.json"
        self.spool = directory / "spool"
        self.config = directory / "config" / "config.yaml"
        for made in (self.keys.parent, self.spool, self.config.parent):
            made.mkdir()
        shutil.copy(PLUGIN, self.config.parent)
        self.write_keys({})

    def write_keys(self, values: dict[str, Any]) -> None:
        self.write_text(json.dumps(values))

    def write_text(self, text: str) -> None:
        """As keytide does: a new file, renamed over the old one."""
        new = self.keys.with_name(".new")
        new.write_text(text)
        new.rename(self.keys)

    def write_config(self, **document: Any) -> Path:
        self.config.write_text(yaml.safe_dump(document))
        return self.config

    def load(self, **settings: Any) -> Any:
        """The plug-in, loaded and made by LiteLLM's own loader."""
        settings = {"custom_secret_manager": "keytide_litellm.Keytide", "store_virtual_keys": True, **settings}
        litellm._key_management_settings = KeyManagementSettings(**settings)
        load_custom_secret_manager(config_file_path=str(self.config))
        return litellm.secret_manager_client

    def files(self) -> list[str]:
        return sorted(name for name in os.listdir(self.spool) if not name.startswith("."))

    def entries(self) -> list[dict[str, Any]]:
        """The entries as keytide takes them: in the order of their names."""
        return [json.loads((self.spool / name).read_text()) for name in self.files()]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    made = Home(tmp_path)
    monkeypatch.setenv("KEYTIDE_KEYS_FILE", str(made.keys))
    monkeypatch.setenv("KEYTIDE_SPOOL", str(made.spool))
    monkeypatch.setenv("KEYTIDE_WAIT", "0.001")
    monkeypatch.delenv("KEYTIDE_LIVE_KEYS", raising=False)
    for owner, name in [
        (litellm, "secret_manager_client"), (litellm, "_key_management_system"), (litellm, "_key_management_settings"),
        (proxy_server, "llm_router"), (proxy_server, "user_config_file_path"), (proxy_server, "master_key"),
        (proxy_server, "general_settings"), (proxy_server, "proxy_shutdown_event"),
    ]:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    hook = KeyManagementEventHooks._delete_virtual_keys_from_secret_manager
    monkeypatch.setattr(KeyManagementEventHooks, "_delete_virtual_keys_from_secret_manager", staticmethod(hook))
    litellm.secret_manager_client = None
    yield made
    spool = getattr(litellm.secret_manager_client, "_spool", None)
    if spool is not None:
        spool._waiting.clear()
        atexit.unregister(spool.close)


def module(manager: Any) -> dict[str, Any]:
    """The globals of the plug-in's module, which LiteLLM's loader puts nowhere else."""
    return type(manager).__init__.__globals__


class Proxy:
    """What the proxy's endpoints do to the secret manager, by LiteLLM's own hooks with its own objects."""

    user = UserAPIKeyAuth()

    @staticmethod
    def row(key: str, alias: str | None, team: str | None = None) -> LiteLLM_VerificationToken:
        return LiteLLM_VerificationToken(token=hash_token(key), key_alias=alias, team_id=team)

    def generate(self, key: str, alias: str | None = None, team: str | None = None) -> None:
        asyncio.run(self.generating(key, alias, team))

    async def generating(self, key: str, alias: str | None = None, team: str | None = None) -> None:
        await KeyManagementEventHooks.async_key_generated_hook(
            data=GenerateKeyRequest(key_alias=alias, team_id=team),
            response=GenerateKeyResponse(key=key, token_id=hash_token(key), key_alias=alias),
            user_api_key_dict=self.user,
        )

    def update(self, key: str, alias: str | None, new_alias: str | None) -> None:
        asyncio.run(KeyManagementEventHooks.async_key_updated_hook(
            data=UpdateKeyRequest(key=key, key_alias=new_alias),
            existing_key_row=self.row(key, alias),
            response={},
            user_api_key_dict=self.user,
        ))

    def regenerate(self, key: str, new_key: str, alias: str | None = None, response_alias: str | None = None,
                   request_alias: str | None = None) -> None:
        asyncio.run(KeyManagementEventHooks.async_key_rotated_hook(
            data=RegenerateKeyRequest(key_alias=request_alias),
            existing_key_row=self.row(key, alias),
            response=GenerateKeyResponse(key=new_key, token_id=hash_token(new_key), key_alias=response_alias),
            user_api_key_dict=self.user,
        ))

    def delete(self, *rows: LiteLLM_VerificationToken) -> None:
        asyncio.run(KeyManagementEventHooks.async_key_deleted_hook(
            data=KeyRequest(keys=[str(row.token) for row in rows]),
            keys_being_deleted=list(rows),
            response={},
            user_api_key_dict=self.user,
        ))


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], str]:
    """A team with settings in LiteLLM's database, which is the one thing that stands in here."""

    def made(settings: dict[str, Any]) -> str:
        async def get_team_object(**_: Any) -> Any:
            return SimpleNamespace(metadata={"secret_manager_settings": settings})

        monkeypatch.setattr(proxy_server, "prisma_client", object())
        monkeypatch.setattr("litellm.proxy.auth.auth_checks.get_team_object", get_team_object)
        return "team-1"

    return made
