"""The proxy itself, as its container starts it: one process with the shared config.yaml, without a database."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from conftest import until

# The plug-in with an entry of its own, since a key can only be generated with a database.
PROBE = """
import keytide_litellm

class Probe(keytide_litellm.Keytide):
    def __init__(self):
        super().__init__()
        self._spool.put({"op": "create", "name": "litellm/probe", "value": "sk-canary"})
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(url, key=None):
    """The status of an answer; None without one."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError:
        return None, None


@contextmanager
def running(home, log):
    port = free_port()
    kept = {name: os.environ[name] for name in os.environ.keys() & {"PATH", "HOME", "LANG", "TMPDIR"}}
    environment = {
        **kept,
        "KEYTIDE_KEYS_FILE": str(home.keys), "KEYTIDE_SPOOL": str(home.spool), "PYTHONPATH": str(home.config.parent),
        "PYTHONDONTWRITEBYTECODE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION",
        "NO_PROXY": "*",
    }
    litellm = Path(sys.executable).with_name("litellm")
    command = [litellm, "--config", home.config, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=home.config.parent, stdout=output, stderr=output)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_the_proxy_starts_with_its_keys_from_keytide_and_says_what_it_loses_when_it_is_stopped(home, tmp_path):
    home.write_keys({"litellm_master_key": "sk-master-canary", "OPENAI_API_KEY": "sk-upstream-canary"})
    (home.config.parent / "probe.py").write_text(PROBE)
    home.write_config(
        model_list=[{
            "model_name": "gpt",
            "litellm_params": {"model": "openai/gpt-4o", "api_key": "os.environ/OPENAI_API_KEY"},
        }],
        general_settings={
            "master_key": "os.environ/litellm_master_key",
            "key_management_system": "custom",
            "key_management_settings": {
                "custom_secret_manager": "probe.Probe",
                "hosted_keys": ["litellm_master_key", "OPENAI_API_KEY"],
                "store_virtual_keys": True,
            },
        },
        keytide={"spool": {"directory": str(home.spool)}},  # LiteLLM passes over the block that is not its own
    )
    home.spool.rmdir()
    log = tmp_path / "proxy.log"
    with running(home, log) as (process, url):
        until(lambda: process.poll() is not None or get(f"{url}/health/liveliness")[0] == 200, "the proxy is up")
        assert process.poll() is None, log.read_text()
        status, models = get(f"{url}/v1/models", "sk-master-canary")
        assert status == 200 and [model["id"] for model in models["data"]] == ["gpt"]
        assert get(f"{url}/v1/models", "sk-something-else")[0] in (400, 401, 403)
        assert get(f"{url}/v1/models")[0] == 401
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    said = log.read_text()
    assert f"could not be written to the spool {home.spool} and are lost: create litellm/probe" in said, said
    assert said.count("does not exist: mount keytide's spool volume there") == 1
    assert "canary" not in said
