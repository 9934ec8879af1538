"""Hosted keys: from keytide's file to LiteLLM's `get_secret` and its router."""

from __future__ import annotations

import ast
import asyncio
import sys
import threading

import litellm
import pytest
from conftest import PLUGIN, module
from litellm.proxy import proxy_server
from litellm.secret_managers.main import get_secret

HOSTED = ["OPENAI_API_KEY", "litellm_master_key", "GONE"]


def test_litellm_reads_hosted_keys_from_keytides_file_without_a_licence(home):
    home.write_keys({"OPENAI_API_KEY": "sk-upstream"})
    home.load(hosted_keys=HOSTED)
    assert proxy_server.premium_user is False
    assert get_secret("os.environ/OPENAI_API_KEY") == "sk-upstream"


def test_a_key_that_the_file_lacks_is_looked_for_in_the_environment(home, monkeypatch):
    monkeypatch.setenv("GONE", "from-env")
    home.load(hosted_keys=HOSTED)
    assert litellm.secret_manager_client.sync_read_secret("GONE") is None
    assert get_secret("GONE") == "from-env"


def test_values_are_carried_as_they_are(home):
    values = {"OPENAI_API_KEY": "pässwörd-✓", "litellm_master_key": "a\nb\n", "GONE": ""}
    home.write_keys(values)
    home.load(hosted_keys=HOSTED)
    assert {name: get_secret(name) for name in values} == values


def test_litellm_itself_takes_the_text_of_a_boolean_for_one(home):
    home.write_keys({"OPENAI_API_KEY": "True", "GONE": "true"})
    manager = home.load(hosted_keys=HOSTED)
    assert manager.sync_read_secret("OPENAI_API_KEY") == "True"
    assert [get_secret("OPENAI_API_KEY"), get_secret("GONE")] == [True, "true"]


def test_only_strings_are_values(home):
    home.write_keys({"A": 1, "B": True, "C": None, "D": {"x": "y"}, "E": ["z"], "F": "string"})
    manager = home.load()
    assert [manager.sync_read_secret(name) for name in "ABCDEF"] == [None] * 5 + ["string"]


def test_the_first_value_that_was_served_is_served_until_a_restart(home):
    home.write_keys({"OPENAI_API_KEY": "one", "GONE": "not looked at"})
    home.load(hosted_keys=HOSTED)
    assert get_secret("OPENAI_API_KEY") == "one"
    home.write_keys({"OPENAI_API_KEY": "two", "GONE": "first look"})
    assert get_secret("OPENAI_API_KEY") == "one"
    assert get_secret("GONE") == "first look"
    home.write_keys({})
    assert [get_secret("OPENAI_API_KEY"), get_secret("GONE")] == ["one", "first look"]


@pytest.mark.parametrize("live", ["litellm_master_key, OPENAI_API_KEY", "*"])
def test_live_keys_change_without_a_restart(home, monkeypatch, live):
    monkeypatch.setenv("KEYTIDE_LIVE_KEYS", live)
    home.load(hosted_keys=HOSTED)
    for value in ["one", "two", "three"]:
        home.write_keys({"OPENAI_API_KEY": value})
        assert get_secret("OPENAI_API_KEY") == value


def test_a_key_that_is_not_live_stays_beside_one_that_is(home, monkeypatch):
    monkeypatch.setenv("KEYTIDE_LIVE_KEYS", "OPENAI_API_KEY")
    home.write_keys({"OPENAI_API_KEY": "one", "GONE": "one"})
    home.load(hosted_keys=HOSTED)
    assert [get_secret("OPENAI_API_KEY"), get_secret("GONE")] == ["one", "one"]
    home.write_keys({"OPENAI_API_KEY": "two", "GONE": "two"})
    assert [get_secret("OPENAI_API_KEY"), get_secret("GONE")] == ["two", "one"]


@pytest.mark.parametrize("text", ["", "canary", "[]", '{"OPENAI_API_KEY": "canary"', "\ufeffnull", None])
def test_a_bad_file_keeps_the_last_good_values_and_is_said_once(home, monkeypatch, caplog, text):
    monkeypatch.setenv("KEYTIDE_LIVE_KEYS", "*")
    home.write_keys({"OPENAI_API_KEY": "good"})
    home.load(hosted_keys=HOSTED)
    home.keys.unlink() if text is None else home.write_text(text)
    assert [get_secret("OPENAI_API_KEY") for _ in range(3)] == ["good"] * 3
    said = [record.getMessage() for record in caplog.records if record.name == "keytide"]
    assert len(said) == 1 and str(home.keys) in said[0] and "canary" not in caplog.text
    home.write_keys({"OPENAI_API_KEY": "better"})
    assert get_secret("OPENAI_API_KEY") == "better"


def test_an_unchanged_file_is_parsed_once(home, monkeypatch):
    monkeypatch.setenv("KEYTIDE_LIVE_KEYS", "*")
    home.write_keys({"OPENAI_API_KEY": "one"})
    manager = home.load(hosted_keys=HOSTED)
    parsed = []
    members = module(manager)["_members"]
    monkeypatch.setitem(module(manager), "_members", lambda content: parsed.append(1) or members(content))
    assert {get_secret("OPENAI_API_KEY") for _ in range(5)} == {"one"}
    assert parsed == []
    home.write_keys({"OPENAI_API_KEY": "two"})
    assert {get_secret("OPENAI_API_KEY") for _ in range(5)} == {"two"}
    assert parsed == [1]


def config(home, **general):
    return str(home.write_config(
        model_list=[{
            "model_name": "gpt",
            "litellm_params": {"model": "openai/gpt-4o", "api_key": "os.environ/OPENAI_API_KEY"},
        }],
        general_settings={
            "master_key": "os.environ/litellm_master_key",
            "key_management_system": "custom",
            "key_management_settings": {
                "custom_secret_manager": "keytide_litellm.Keytide", "hosted_keys": HOSTED, **general,
            },
        },
    ))


def load_config(path):
    """As LiteLLM's start: the router and the file that its reconcile reads again."""
    router, _, _ = asyncio.run(proxy_server.proxy_config.load_config(router=None, config_file_path=path))
    proxy_server.llm_router, proxy_server.user_config_file_path = router, path
    return router


def reconcile():
    asyncio.run(proxy_server.proxy_config._delete_deployment(db_models=[]))


def api_keys(router):
    return [deployment["litellm_params"]["api_key"] for deployment in router.model_list]


def test_the_proxys_configuration_gets_its_master_key_and_its_models_keys(home):
    home.write_keys({"OPENAI_API_KEY": "sk-upstream", "litellm_master_key": "sk-master"})
    router = load_config(config(home))
    assert proxy_server.master_key == "sk-master"
    assert api_keys(router) == ["sk-upstream"]


def test_a_changed_value_does_not_evict_a_model_of_the_configuration(home):
    home.write_keys({"OPENAI_API_KEY": "one", "litellm_master_key": "sk-master"})
    router = load_config(config(home))
    home.write_keys({"OPENAI_API_KEY": "two", "litellm_master_key": "sk-master"})
    reconcile()
    assert api_keys(router) == ["one"]


def test_a_changed_live_value_makes_litellm_evict_the_model(home, monkeypatch):
    monkeypatch.setenv("KEYTIDE_LIVE_KEYS", "OPENAI_API_KEY")
    home.write_keys({"OPENAI_API_KEY": "one", "litellm_master_key": "sk-master"})
    router = load_config(config(home))
    reconcile()
    assert api_keys(router) == ["one"]
    home.write_keys({"OPENAI_API_KEY": "two", "litellm_master_key": "sk-master"})
    reconcile()
    assert api_keys(router) == []


def test_what_was_served_outlives_the_second_object_that_the_command_line_makes(home):
    home.write_keys({"OPENAI_API_KEY": "one"})
    first = home.load(hosted_keys=HOSTED)
    assert get_secret("OPENAI_API_KEY") == "one"
    home.write_keys({"OPENAI_API_KEY": "two"})
    assert home.load(hosted_keys=HOSTED) is not first
    assert get_secret("OPENAI_API_KEY") == "one"


@pytest.mark.parametrize("text", [None, "canary"])
def test_a_proxy_whose_keys_never_come_does_not_start(home, text):
    home.keys.unlink() if text is None else home.write_text(text)
    with pytest.raises(RuntimeError, match="Is keytide running") as raised:
        asyncio.run(proxy_server.proxy_config.load_config(router=None, config_file_path=config(home)))
    assert str(home.keys) in str(raised.value) and "canary" not in str(raised.value)


def test_a_start_waits_for_the_first_file(home, monkeypatch):
    monkeypatch.setenv("KEYTIDE_WAIT", "60")
    home.keys.unlink()
    later = threading.Timer(0.3, home.write_keys, [{"OPENAI_API_KEY": "late"}])
    later.start()
    home.load(hosted_keys=HOSTED)
    later.join()
    assert get_secret("OPENAI_API_KEY") == "late"


@pytest.mark.parametrize("settings", [{"access_mode": "write_only"}, {"hosted_keys": []}])
def test_a_proxy_that_only_stores_virtual_keys_needs_no_file(home, monkeypatch, settings):
    monkeypatch.setenv("OPENAI_API_KEY", "from-env")
    home.keys.unlink()
    home.load(**settings)
    assert get_secret("OPENAI_API_KEY") == "from-env"


def test_the_plugin_imports_nothing_but_litellm_and_the_standard_library():
    modules = set()
    for node in ast.walk(ast.parse(PLUGIN.read_text())):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    others = {name for name in modules if name.split(".")[0] not in sys.stdlib_module_names}
    assert others == {
        "litellm", "litellm.integrations.custom_secret_manager", "litellm.proxy.hooks.key_management_event_hooks",
    }


def test_the_mark_of_a_rename_is_never_a_hosted_keys_value(home):
    home.write_keys({"OPENAI_API_KEY": "one"})
    manager = home.load(hosted_keys=HOSTED)
    mark = asyncio.run(manager.async_read_secret("litellm/some-alias"))
    assert isinstance(mark, str)
    assert asyncio.run(manager.async_read_secret("OPENAI_API_KEY")) == "one"
    assert asyncio.run(manager.async_read_secret("GONE")) is None
    assert manager.sync_read_secret("litellm/some-alias") is None
