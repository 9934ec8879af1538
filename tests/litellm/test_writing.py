"""Virtual keys: what LiteLLM's hooks make of the proxy's calls, entry by entry."""

from __future__ import annotations

import asyncio
import hashlib
import logging

import litellm
import pytest
from conftest import module
from litellm.integrations.custom_secret_manager import CustomSecretManager
from litellm.proxy.hooks.key_management_event_hooks import KeyManagementEventHooks
from litellm.secret_managers.base_secret_manager import BaseSecretManager

HASH = "0a2f6ba7b3d4973643557c2bbae4f2f717b3f1d1baf8d730db9272ae6d4824ab"  # of sk-abc123


def unaliased(key, prefix="litellm/"):
    return f"{prefix}virtual-key-{hashlib.sha256(key.encode()).hexdigest()}"


def deletion(name):
    return {"op": "delete", "name": name, "recovery_window_in_days": 7}


def test_a_generated_key_is_created_by_its_alias(home, proxy):  # W01
    home.load()
    proxy.generate("sk-abc123", "my-key")
    assert home.entries() == [{"op": "create", "name": "litellm/my-key", "value": "sk-abc123"}]


@pytest.mark.parametrize("alias", [None, ""])
def test_a_generated_key_without_alias_is_created_by_its_hash(home, proxy, alias):  # W02
    home.load()
    proxy.generate("sk-abc123", alias)
    assert home.entries() == [{"op": "create", "name": f"litellm/virtual-key-{HASH}", "value": "sk-abc123"}]
    assert unaliased("sk-abc123") == f"litellm/virtual-key-{HASH}"


@pytest.mark.parametrize(("prefix", "name"), [
    ("team-a", "team-a/k"), ("", "/k"), ("/", "/k"), ("/abs", "/abs/k"), ("a/b", "a/b/k"), ("litellm//", "litellm//k"),
    ("with space", "with space/k"),
])
def test_the_prefix_is_litellms(home, proxy, prefix, name):  # W03: keytide refuses what AWS refuses
    home.load(prefix_for_stored_virtual_keys=prefix)
    proxy.generate("sk-1", "k")
    assert home.entries() == [{"op": "create", "name": name, "value": "sk-1"}]


@pytest.mark.parametrize("alias", ["team/a", "/lead", "a b", "-", "ключ-✓", "a@b.c+d=e", "  pad  ", "x" * 300])
def test_an_alias_is_carried_as_it_is(home, proxy, alias):  # W04
    home.load()
    proxy.generate("sk-1", alias)
    assert home.entries() == [{"op": "create", "name": f"litellm/{alias}", "value": "sk-1"}]


def test_description_and_tags_are_passed_on(home, proxy):  # W05
    tags = {"Environment": "Prod", "Owner": "AI Platform team"}
    home.load(description="a virtual key", tags=tags, kms_key_id="alias/my-cmk")
    proxy.generate("sk-1", "k")
    assert home.entries() == [
        {"op": "create", "name": "litellm/k", "value": "sk-1", "description": "a virtual key", "tags": tags},
    ]


def test_an_empty_description_and_empty_tags_are_left_out(home, proxy):  # W05b
    home.load(description="", tags={})
    proxy.generate("sk-1", "k")
    assert home.entries() == [{"op": "create", "name": "litellm/k", "value": "sk-1"}]


def test_tags_as_aws_lists_them_become_an_object(home):
    manager = home.load()
    listed = [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]
    asyncio.run(manager.async_write_secret("litellm/k", "sk-1", tags=listed))
    assert home.entries()[0]["tags"] == {"a": "1", "b": "2"}


@pytest.mark.parametrize("mode", ["read_only", "write_only", "read_and_write"])
def test_every_access_mode_writes(home, proxy, mode):  # W07
    home.load(access_mode=mode)
    proxy.generate("sk-1", "k")
    assert len(home.entries()) == 1


def test_nothing_is_written_where_virtual_keys_are_not_stored(home, proxy):  # W08
    home.load(store_virtual_keys=False, access_mode="write_only")
    proxy.generate("sk-1", "k")
    proxy.regenerate("sk-1", "sk-2", "k")
    proxy.update("sk-1", "k", "k2")
    proxy.delete(proxy.row("sk-1", "k"), proxy.row("sk-1", None))
    assert home.entries() == []


def test_a_regenerated_key_keeps_its_name(home, proxy):  # W11
    home.load(description="d", tags={"a": "b"})
    proxy.regenerate("sk-1", "sk-2", "k", response_alias="k")
    assert home.entries() == [{"op": "rotate", "name": "litellm/k", "new_name": "litellm/k", "value": "sk-2"}]


def test_litellms_base_class_would_have_deleted_the_rotated_secret(home):  # P02
    class Naive(CustomSecretManager):
        def __init__(self):
            super().__init__("naive")
            self.stored = {"litellm/k": "sk-1"}

        def sync_read_secret(self, secret_name, optional_params=None, timeout=None):
            return self.stored.get(secret_name)

        async def async_read_secret(self, secret_name, optional_params=None, timeout=None):
            return self.stored.get(secret_name)

        async def async_write_secret(self, secret_name, secret_value, **_):
            self.stored[secret_name] = secret_value
            return {}

        async def async_delete_secret(self, secret_name, **_):
            del self.stored[secret_name]
            return {}

    naive = Naive()
    asyncio.run(BaseSecretManager.async_rotate_secret(naive, "litellm/k", "litellm/k", "sk-2"))
    assert naive.stored == {}


def test_a_regenerated_key_with_a_new_alias_moves(home, proxy):  # W12
    home.load()
    proxy.regenerate("sk-1", "sk-2", "k", response_alias="k2")
    assert home.entries() == [{"op": "rotate", "name": "litellm/k", "new_name": "litellm/k2", "value": "sk-2"}]


def test_the_requests_alias_counts_where_the_response_has_none(home, proxy):  # W15
    home.load()
    proxy.regenerate("sk-1", "sk-2", "k", response_alias=None, request_alias="k9")
    assert home.entries() == [{"op": "rotate", "name": "litellm/k", "new_name": "litellm/k9", "value": "sk-2"}]


@pytest.mark.parametrize("prefix", ["litellm/", "a/b/"])
def test_every_regeneration_of_a_key_without_alias_finds_the_secret_of_the_one_before(home, proxy, prefix):
    home.load(prefix_for_stored_virtual_keys=prefix)  # W13, W13b
    proxy.generate("sk-1")
    proxy.regenerate("sk-1", "sk-2")
    proxy.regenerate("sk-2", "sk-3")
    proxy.delete(proxy.row("sk-3", None))
    first, second, third = (unaliased(key, prefix) for key in ["sk-1", "sk-2", "sk-3"])
    assert home.entries() == [
        {"op": "create", "name": first, "value": "sk-1"},
        {"op": "rotate", "name": first, "new_name": second, "value": "sk-2"},
        {"op": "rotate", "name": second, "new_name": third, "value": "sk-3"},
        deletion(third),
    ]


def test_a_key_without_alias_can_get_one_as_it_is_regenerated(home, proxy):
    home.load()
    proxy.regenerate("sk-1", "sk-2", None, response_alias="named")
    assert home.entries() == [
        {"op": "rotate", "name": unaliased("sk-1"), "new_name": "litellm/named", "value": "sk-2"},
    ]


def test_both_calls_of_an_automatic_rotation_are_passed_on(home, proxy):  # W22: keytide folds them
    home.load()
    proxy.regenerate("sk-1", "sk-2", "k", response_alias="k")
    proxy.regenerate("sk-1", "sk-2", "k", response_alias="k")
    assert home.entries() == [{"op": "rotate", "name": "litellm/k", "new_name": "litellm/k", "value": "sk-2"}] * 2


def test_a_new_alias_renames_the_secret_without_its_value(home, proxy):  # W16
    home.load()
    proxy.update("sk-1", "k", "k2")
    assert home.entries() == [{"op": "rename", "name": "litellm/k", "new_name": "litellm/k2"}]


@pytest.mark.parametrize("alias", [None, "k"])
def test_an_update_that_keeps_the_alias_writes_nothing(home, proxy, alias):  # W16b, W16c
    home.load()
    proxy.update("sk-1", "k", alias)
    assert home.entries() == []


def test_a_key_without_alias_moves_to_its_first_one(home, proxy):  # W16e
    home.load()
    proxy.update("sk-1", None, "named")
    assert home.entries() == [{"op": "rename", "name": unaliased("sk-1"), "new_name": "litellm/named"}]


def test_an_alias_that_is_taken_away_leaves_the_name(home, proxy, caplog):
    home.load()
    proxy.update("sk-1", "k", "")
    assert home.entries() == []
    assert "litellm/k keeps its name" in caplog.text


def test_the_mark_of_a_rename_is_never_stored(home):
    manager = home.load()
    mark = asyncio.run(manager.async_read_secret("litellm/k"))
    with pytest.raises(ValueError, match="litellm/k2 can be renamed, not copied"):
        asyncio.run(manager.async_write_secret("litellm/k2", mark))
    assert home.entries() == []


def test_a_deleted_key_is_deleted(home, proxy):  # W17
    home.load()
    proxy.delete(proxy.row("sk-1", "k"))
    assert home.entries() == [deletion("litellm/k")]


@pytest.mark.parametrize("alias", [None, ""])
def test_a_deleted_key_without_alias_is_deleted_by_its_hash(home, proxy, alias):  # W17b, W18c
    home.load()
    proxy.delete(proxy.row("sk-abc123", alias))
    assert home.entries() == [deletion(f"litellm/virtual-key-{HASH}")]


def test_sessions_of_the_admin_pages_were_never_stored_and_are_not_deleted(home, proxy):
    home.load()
    proxy.delete(proxy.row("sk-1", None, team="litellm-dashboard"))
    assert home.entries() == []


def test_one_deletion_that_fails_does_not_keep_the_others(home, proxy, caplog):  # W18
    manager = home.load()
    delete = manager.async_delete_secret

    async def sometimes(secret_name, **named):
        if secret_name == "litellm/b":
            raise RuntimeError("canary")
        return await delete(secret_name=secret_name, **named)

    manager.async_delete_secret = sometimes
    proxy.delete(*(proxy.row(f"sk-{alias}", alias) for alias in "abc"), proxy.row("sk-d", None))
    assert home.entries() == [deletion("litellm/a"), deletion("litellm/c"), deletion(unaliased("sk-d"))]
    assert "may stay (RuntimeError)" in caplog.text and "canary" not in caplog.text


@pytest.mark.parametrize("days", [6, 31])
def test_a_recovery_window_that_aws_has_not_is_refused(home, days):
    manager = home.load()
    with pytest.raises(ValueError, match=f"7 to 30 days, not {days}"):
        asyncio.run(manager.async_delete_secret("litellm/k", recovery_window_in_days=days))
    assert home.entries() == []


def test_deletions_of_another_secret_manager_are_litellms_own(home, proxy):
    home.load()
    deleted = []

    class Other(CustomSecretManager):
        def sync_read_secret(self, secret_name, optional_params=None, timeout=None):
            return None

        async def async_read_secret(self, secret_name, optional_params=None, timeout=None):
            return None

        async def async_delete_secret(self, secret_name, **_):
            deleted.append(secret_name)

    litellm.secret_manager_client = Other("other")
    proxy.delete(proxy.row("sk-1", "k"), proxy.row("sk-2", None))
    assert deleted == ["litellm/k"]


def test_the_deletion_hook_is_wrapped_once(home, proxy):
    home.load()
    wrapped = KeyManagementEventHooks._delete_virtual_keys_from_secret_manager
    home.load()
    assert KeyManagementEventHooks._delete_virtual_keys_from_secret_manager is wrapped
    proxy.delete(proxy.row("sk-1", None))
    assert home.entries() == [deletion(unaliased("sk-1"))]


def test_a_deletion_hook_that_is_not_the_known_one_is_left_alone(home, monkeypatch, caplog):
    async def other(keys, reason):
        raise AssertionError

    monkeypatch.setattr(KeyManagementEventHooks, "_delete_virtual_keys_from_secret_manager", staticmethod(other))
    home.load()
    assert KeyManagementEventHooks._delete_virtual_keys_from_secret_manager is other
    assert "virtual keys without alias must be deleted by hand" in caplog.text


PAIR = {"aws_role_name": "arn:aws:iam::123456789012:role/team", "aws_region_name": "eu-west-1"}


def test_a_teams_role_and_region_go_into_every_entry(home, proxy, team):  # W20
    home.load()
    proxy.generate("sk-1", "k", team(PAIR))
    proxy.delete(proxy.row("sk-1", None, team="team-1"))
    assert home.entries() == [
        {"op": "create", "name": "litellm/k", "value": "sk-1", "team": PAIR},
        {**deletion(unaliased("sk-1")), "team": PAIR},
    ]


@pytest.mark.parametrize(("settings", "named"), [
    ({"aws_region_name": "eu-west-1"}, "in: aws_region_name."),
    ({"aws_role_name": "arn:canary"}, "in: aws_role_name."),
    ({"aws_role_name": "arn:canary", "aws_region_name": 1}, "in: aws_region_name, aws_role_name."),
    ({"aws_access_key_id": "canary", "aws_sts_endpoint": "https://canary", "namespace": "canary"},
     "in: aws_access_key_id, aws_sts_endpoint."),
])
def test_other_team_settings_are_named_once_and_not_followed(home, proxy, team, caplog, settings, named):
    home.load()
    for alias in "ab":
        proxy.generate("sk-1", alias, team(settings))
    assert [entry.get("team") for entry in home.entries()] == [None, None]
    said = [record.getMessage() for record in caplog.records if record.name == "keytide"]
    assert len(said) == 1 and named in said[0] and "canary" not in said[0]


def test_a_teams_pair_is_followed_beside_settings_that_are_not(home, proxy, team, caplog):
    home.load()
    proxy.generate("sk-1", "k", team({**PAIR, "aws_profile_name": "canary"}))
    assert home.entries() == [{"op": "create", "name": "litellm/k", "value": "sk-1", "team": PAIR}]
    assert "in: aws_profile_name." in caplog.text and "canary" not in caplog.text


def test_no_value_is_ever_logged_raised_or_shown(home, proxy, caplog, team):
    caplog.set_level(logging.DEBUG)
    home.write_keys({"OPENAI_API_KEY": "canary-hosted"})
    manager = home.load(hosted_keys=["OPENAI_API_KEY"])
    assert manager.sync_read_secret("OPENAI_API_KEY") == "canary-hosted"

    def everything():
        proxy.generate("sk-canary-1", "k", team({"aws_secret_access_key": "canary-team"}))
        proxy.generate("sk-canary-1")
        proxy.regenerate("sk-canary-1", "sk-canary-2", "k", response_alias="k")
        proxy.regenerate("sk-canary-1", "sk-canary-2")
        proxy.update("sk-canary-2", "k", "k2")
        proxy.delete(proxy.row("sk-canary-2", "k2"), proxy.row("sk-canary-2", None))

    everything()
    assert len(home.entries()) == 7
    home.write_text('{"OPENAI_API_KEY": "canary-')
    manager.sync_read_secret("OTHER")
    home.spool.rename(home.spool.with_name("away"))
    everything()
    for call in [
        lambda: manager.async_write_secret("litellm/k", "sk-canary-3"),
        lambda: manager.async_rotate_secret("litellm/k", "litellm/k", "sk-canary-3"),
    ]:
        with pytest.raises(module(manager)["SpoolError"]) as raised:
            asyncio.run(call())
        assert "canary" not in str(raised.value)
    shown = repr(manager) + str(manager) + repr(manager._keys) + repr(manager._spool)
    assert "canary" not in shown and "canary" not in caplog.text
    assert any(record.name == "keytide" for record in caplog.records)


def test_the_objects_of_litellms_database_are_deleted_like_its_own(home):
    """`/key/delete` hands over rows of prisma, which are pydantic models of another class."""
    from pydantic import BaseModel

    class Row(BaseModel):
        token: str
        key_alias: str | None = None
        team_id: str | None = None

    home.load()
    asyncio.run(KeyManagementEventHooks._delete_virtual_keys_from_secret_manager(
        keys_being_deleted=[Row(token=HASH), Row(token=HASH, key_alias="k")]))
    assert home.entries() == [deletion(f"litellm/virtual-key-{HASH}"), deletion("litellm/k")]
