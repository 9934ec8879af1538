"""LiteLLM's hooks, the plug-in, the real keytide and its emulator of AWS: from an API call to the stored secret."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import yaml
from conftest import until
from litellm.secret_managers.main import get_secret

# Where the tests' own command has built them.
KEYTIDE, EMULATOR = os.environ["KEYTIDE_BINARY"], os.environ["KEYTIDE_EMULATOR_BINARY"]
SETTINGS = {
    "hosted_keys": ["OPENAI_API_KEY"], "primary_secret_name": "litellm_secrets", "store_virtual_keys": True,
    "description": "a virtual key", "tags": {"team": "core"},
}


@contextmanager
def started(command, environment, log):
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Aws:
    def __init__(self, url):
        self.url = url

    def control(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/_emulator/{path}", data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError:
            return None
        return json.loads(text) if text else True

    def value(self, name):
        """The current value; none where there is no live secret."""
        found = self.control("GET", f"secrets/{name}")
        return found and found.get("SecretString")


@pytest.fixture
def aws(home, tmp_path):
    """An AWS, and keytide with the configuration that LiteLLM has too."""
    emulator_log, log = tmp_path / "emulator.log", tmp_path / "keytide.log"
    with started([EMULATOR, "--listen", "127.0.0.1:0"], {}, emulator_log):
        until(lambda: emulator_log.read_text().count("export") >= 5, "the emulator is up")
        exports = [line.removeprefix("export ") for line in emulator_log.read_text().splitlines()]
        environment = dict(line.split("=", 1) for line in exports if "=" in line)
        made = Aws(environment["AWS_ENDPOINT_URL"])
        made.control("PUT", "secrets/litellm_secrets", {"SecretString": json.dumps({"OPENAI_API_KEY": "sk-upstream"})})
        home.spool.rmdir()
        home.keys.unlink()
        ours = {
            "outputs": [{"env_file": {"path": str(home.keys), "format": "json", "allow_disk": True}}],
            "spool": {"directory": str(home.spool), "allow_disk": True},
            "http": {"listen": "127.0.0.1:0"}, "admin": {"socket": "none"},
        }
        general = {"key_management_system": "custom", "key_management_settings": SETTINGS}
        home.config.write_text(yaml.safe_dump({"general_settings": general, "keytide": ours}))
        home.config.chmod(0o600)
        with started([KEYTIDE, "run", "--config", str(home.config)], environment, log) as process:
            until(lambda: home.keys.exists() and home.spool.exists() or process.poll() is not None, "keytide is up")
            assert process.poll() is None, log.read_text()
            home.load(**SETTINGS)
            yield made


def waiting(home):
    """The entries that keytide has not taken yet."""
    return [name for name in home.files() if name.endswith(".json")]


def test_a_key_goes_through_its_whole_life(home, proxy, aws):
    proxy.generate("sk-one", "alice")
    until(lambda: aws.value("litellm/alice") == "sk-one", "the generated key is stored")
    proxy.regenerate("sk-one", "sk-two", "alice", response_alias="alice")
    until(lambda: aws.value("litellm/alice") == "sk-two", "the rotated key is stored")
    proxy.update("sk-two", "alice", "bob")
    until(lambda: aws.value("litellm/bob") == "sk-two", "the renamed key is stored")
    until(lambda: aws.value("litellm/alice") is None, "its old name is gone")
    proxy.delete(proxy.row("sk-two", "bob"))
    until(lambda: aws.value("litellm/bob") is None, "the deleted key is gone")
    proxy.generate("sk-three", "bob")
    until(lambda: aws.value("litellm/bob") == "sk-three", "a key of a deleted name is stored")
    assert waiting(home) == []


def test_a_key_without_alias_is_followed_over_its_rotations_and_deleted(home, proxy, aws):
    def name(key):
        return f"litellm/virtual-key-{hashlib.sha256(key.encode()).hexdigest()}"

    proxy.generate("sk-one")
    until(lambda: aws.value(name("sk-one")) == "sk-one", "the key is stored")
    for old, new in [("sk-one", "sk-two"), ("sk-two", "sk-three")]:
        proxy.regenerate(old, new)
        until(lambda: aws.value(name(new)) == new, "the rotated key is stored under its own hash")
        until(lambda: aws.value(name(old)) is None, "and not under the old one")
    proxy.delete(proxy.row("sk-three", None))
    until(lambda: aws.value(name("sk-three")) is None, "the key is deleted")


def test_keys_made_while_aws_is_away_are_stored_when_it_is_back(home, proxy, aws):
    fault = aws.control("POST", "faults", {"action": "CreateSecret", "kind": "internal_error"})
    for number in range(5):
        proxy.generate(f"sk-{number}", f"key-{number}")
    until(lambda: waiting(home) == [], "keytide has taken them")
    assert all(aws.value(f"litellm/key-{number}") is None for number in range(5))
    assert fault and aws.control("DELETE", "faults")
    for number in range(5):
        until(lambda: aws.value(f"litellm/key-{number}") == f"sk-{number}", "each is stored")


def test_the_hosted_key_that_litellm_reads_is_the_one_in_aws(home, aws):
    assert get_secret("OPENAI_API_KEY") == "sk-upstream"
