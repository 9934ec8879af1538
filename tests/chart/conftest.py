"""The chart under the real Helm, and what it makes at a real API server: `./tests/run chart` brings both."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import requests
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/keytide"
EXAMPLES = CHART / "examples"
PROGRAMS = Path(os.environ["KUBEBUILDER_ASSETS"]).resolve()
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}

Object = dict[str, Any]


class Refused(Exception):
    """What a program said when it refused."""


def until(condition: Callable[[], Any], what: str) -> Any:
    """Waits for a condition; the limit only ends a test that has failed."""
    end = time.monotonic() + 120
    while not (result := condition()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.1)
    return result


def run(program: str | Path, *arguments: str | Path, text: str | None = None, environment: dict[str, str] | None = None) -> tuple[str, str]:
    """Runs a program to its good end; what it said on both channels."""
    words = [str(program), *map(str, arguments)]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, timeout=300, env=environment)
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout, done.stderr


# === Helm


def helm(*arguments: str | Path, environment: dict[str, str] | None = None) -> str:
    return run(os.environ["KEYTIDE_HELM"], *arguments, environment=environment)[0]


def values_of(values: Object | Path | list[Object | Path], directory: Path) -> list[str | Path]:
    """Arguments for Helm."""
    arguments: list[str | Path] = []
    for part in values if isinstance(values, list) else [values]:
        if not isinstance(part, Path):
            file = directory / f"values-{secrets.token_hex(4)}.yaml"
            file.write_text(yaml.safe_dump(part))
            part = file
        arguments += ["--values", part]
    return arguments


@pytest.fixture
def template(tmp_path: Path) -> Callable[..., str]:
    """`helm template`, as text, for a cluster of Kubernetes 1.36."""

    def render(values: Object | Path | list[Object | Path], *arguments: str, name: str = "keytide", chart: Path = CHART) -> str:
        version = () if "--kube-version" in arguments else ("--kube-version", "1.36.0")
        return helm("template", name, chart, *version, *arguments, *values_of(values, tmp_path))

    return render


def objects_of(text: str) -> list[Object]:
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.fixture
def render(template: Callable[..., str]) -> Callable[..., list[Object]]:
    """The same, as objects."""
    return lambda *arguments, **more: objects_of(template(*arguments, **more))


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} objects {kind} {name or ''} among {[(o['kind'], o['metadata']['name']) for o in objects]}"
    return found[0]


# === keytide


def keytide(*arguments: str | Path, environment: dict[str, str] | None = None) -> str:
    """keytide, without the environment of whoever runs this."""
    return run(os.environ["KEYTIDE_BINARY"], *arguments, environment=environment or {})[0]


def environment_of(container: Object) -> dict[str, str]:
    """The plain variables of a container; where it has no role of its own, those that EKS gives it."""
    variables = {v["name"]: v["value"] for v in container["env"] if "value" in v}
    if "AWS_ROLE_ARN" not in variables:
        variables["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = "http://169.254.170.23/v1/credentials"
        variables["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount/token"
    return variables


def check(configuration: str, environment: dict[str, str], directory: Path) -> str:
    """`keytide check` of a configuration."""
    file = directory / f"keytide-{secrets.token_hex(4)}.yaml"
    file.write_text(configuration)
    return keytide("check", "--config", file, environment=environment)


# === Kubernetes


class Cluster:
    """etcd and kube-apiserver, which end with whoever holds this."""

    def __init__(self, directory: Path):
        self.directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        script = ROOT / "tests/kubernetes/control_plane.sh"
        self.shell = subprocess.Popen(
            ["sh", str(script), str(PROGRAMS), str(directory), str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0,
        )
        directory.mkdir()
        self.token = secrets.token_hex(16)
        self.url = f"https://127.0.0.1:{port}"
        write_identities(directory, self.token)
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(directory / "ca.pem")
        self.session.headers["Authorization"] = f"Bearer {self.token}"
        self.kubeconfig = directory / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority": str(directory / "ca.pem")}}],
            "users": [{"name": "test", "user": {"token": self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }))
        try:
            self.order("start etcd")
            self.order("start api")
            until(self.is_ready, f"kube-apiserver is ready; its log is {directory}/api.log")
        except BaseException:
            self.stop()
            raise

    def order(self, order: str) -> None:
        self.shell.stdin.write(order + "\n")
        self.shell.stdin.flush()
        assert self.shell.stdout.readline(), f"the control plane does not {order}"

    def is_ready(self) -> bool:
        try:
            return self.session.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def stop(self) -> None:
        self.shell.stdin.close()
        self.shell.wait()

    def ask(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> tuple[int, Object]:
        answer = self.session.request(
            method, self.url + path, data=None if body is None else json.dumps(body), headers={"Content-Type": kind}, timeout=60,
        )
        return answer.status_code, answer.json()

    def create(self, path: str, body: Object) -> Object:
        status, answer = self.ask("POST", path, body)
        assert status == 201, f"POST {path}: {answer.get('message')}"
        return answer

    def namespace(self, labels: dict[str, str] | None = None) -> str:
        """A new one, with the service account that a controller would make."""
        name = f"test-{secrets.token_hex(4)}"
        self.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels or {}}})
        self.create(f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})
        return name

    def kubectl(self, *arguments: str | Path, text: str | None = None) -> tuple[str, str]:
        return run(PROGRAMS / "kubectl", "--kubeconfig", self.kubeconfig, *arguments, text=text, environment=self.environment())

    def helm(self, *arguments: str | Path) -> str:
        return helm(*arguments, environment=self.environment() | {"KUBECONFIG": str(self.kubeconfig)})

    @contextlib.contextmanager
    def running_jobs(self, namespace: str) -> Iterator[None]:
        """What the Job controller and a node do with the chart's Job: pods until one gets its sidecar, and the Job's good end."""
        jobs, ends = f"/apis/batch/v1/namespaces/{namespace}/jobs", threading.Event()

        def try_all() -> None:
            for job in self.ask("GET", jobs)[1].get("items", []):
                if job.get("status", {}).get("conditions"):
                    continue
                template = job["spec"]["template"]
                accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
                if self.ask("GET", f"{accounts}/default")[0] == 404:
                    self.create(accounts, {"metadata": {"name": "default"}})
                metadata = template["metadata"] | {"generateName": f"{job['metadata']['name']}-"}
                pod = {"metadata": metadata, "spec": template["spec"]}
                status, answer = self.ask("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
                if status != 201 or "initContainers" not in answer["spec"]:
                    continue
                now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
                conditions = [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in ("SuccessCriteriaMet", "Complete")]
                status = {"status": {"succeeded": 1, "completedIndexes": "0", "startTime": now, "completionTime": now, "conditions": conditions}}
                assert self.ask("PATCH", f"{jobs}/{job['metadata']['name']}/status", status, "application/merge-patch+json")[0] == 200

        def work() -> None:
            while not ends.wait(0.1):
                try_all()

        worker = threading.Thread(target=work)
        worker.start()
        try:
            yield
        finally:
            ends.set()
            worker.join()

    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.directory), "PATH": os.environ["PATH"]}


def write_identities(directory: Path, token: str) -> None:
    """What control_plane.sh asks for: the API server's certificate, the key of service accounts, the administrator's token."""
    now = datetime.datetime.now(datetime.timezone.utc)

    def certificate(name: str, key: Any, issuer: str, by: Any, *extensions: tuple[x509.ExtensionType, bool]) -> x509.Certificate:
        of = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])  # noqa: E731
        made = x509.CertificateBuilder().subject_name(of(name)).issuer_name(of(issuer)).public_key(key.public_key())
        made = made.serial_number(x509.random_serial_number())
        made = made.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
        for extension, critical in extensions:
            made = made.add_extension(extension, critical)
        return made.sign(by, hashes.SHA256())

    ca_key, key, accounts = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    ca = certificate("kubernetes", ca_key, "kubernetes", ca_key, (x509.BasicConstraints(True, 0), True), (usage, True),
                     (x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    server = certificate("kube-apiserver", key, "kubernetes", ca_key, (names, False), (identifier, False),
                         (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = lambda key: key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)  # noqa: E731
    public = accounts.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    files = {"ca.pem": ca.public_bytes(pem), "server.pem": server.public_bytes(pem), "server.key": private(key),
             "accounts.key": private(accounts), "accounts.pub": public,
             "tokens.csv": f'{token},admin,1,"system:masters"\n'.encode()}
    for name, content in files.items():
        (directory / name).write_bytes(content)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else Path("/tmp")
    cluster = Cluster(place / f"keytide-chart-{secrets.token_hex(8)}")
    try:
        crds = [Path(os.environ["KEYTIDE_OPERATOR_CRDS"]) / f"monitoring.coreos.com_{kind}.yaml"
                for kind in ("podmonitors", "servicemonitors", "prometheusrules")]
        for crd in crds:
            cluster.kubectl("create", "--filename", crd)
        for kind in ("podmonitors", "servicemonitors", "prometheusrules"):
            cluster.kubectl("wait", "--for=condition=Established", f"crd/{kind}.monitoring.coreos.com", "--timeout=60s")
        yield cluster
    finally:
        cluster.stop()
        assert not cluster.directory.exists(), "the control plane left something behind"


@pytest.fixture
def copy_of_chart(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHART, tmp_path / "keytide"))
