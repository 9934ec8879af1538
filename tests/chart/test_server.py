"""What the chart renders at a real API server: every object is taken without a warning, and Helm installs and removes it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Callable

import pytest
import yaml

from conftest import CHART, EXAMPLES, PROGRAMS, RESTRICTED, ROOT, Cluster, Object, objects_of, one, until, values_of
from test_values import ENV_OUTPUT, HUB, SIDECAR, SPOOL, merged

MONITORING = EXAMPLES / "monitoring.yaml"
#: The options that no example has.
EVERYTHING: Object = merged(HUB, {
    "commonLabels": {"team": "core"}, "commonAnnotations": {"a": "b"}, "imagePullSecrets": [{"name": "pull"}], "hostUsers": False,
    "aws": {"roleArn": "arn:aws:iam::123456789012:role/keytide", "useFipsEndpoint": True, "useDualstackEndpoint": True},
    "extraArgs": ["--log-level", "debug"], "extraEnv": [{"name": "A", "value": "b"}], "extraEnvFrom": [{"configMapRef": {"name": "more"}}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}], "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
    "podAnnotations": {"a": "b"}, "podLabels": {"a": "b"}, "tolerations": [{"operator": "Exists"}], "priorityClassName": "system-cluster-critical",
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {}}}]}},
    "networkPolicy": {"enabled": True, "ingressFrom": [{"podSelector": {}}], "extraEgress": [{"ports": [{"port": 5432}]}]},
    "serviceMonitor": {"enabled": True, "interval": "30s", "scrapeTimeout": "5s", "honorLabels": True, "additionalLabels": {"release": "p"},
                       "relabelings": [{"action": "labeldrop", "regex": "x"}], "metricRelabelings": [{"action": "labeldrop", "regex": "x"}]},
    "prometheusRule": {"enabled": True, "additionalGroups": [{"name": "mine", "rules": [{"alert": "A", "expr": "up == 0", "for": "5m"}]}]},
    "grafanaDashboard": {"enabled": True, "annotations": {"folder": "f"}}, "service": {"annotations": {"a": "b"}},
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra", "namespace": "{{ .Release.Namespace }}"}}],
})
SPOOLED = merged(SIDECAR, {"config": {"keytide": SPOOL}, "sidecar": {"spool": True}})
WITH_ALL = merged(SPOOLED, {"config": {"keytide": {"outputs": [ENV_OUTPUT]}}, "sidecar": {"env": ["A"], "isolateCredentials": True}})
SETS: dict[str, list[Object | Path]] = {p.stem: [p, MONITORING] for p in sorted(EXAMPLES.glob("*.yaml")) if p != MONITORING}
SETS |= {"everything": [EVERYTHING], "sidecar with all": [WITH_ALL], "test without AWS": [{"mode": "sidecar"}]}


@pytest.fixture(scope="module")
def restricted(cluster: Cluster) -> str:
    """With the service account that pods of the hub have: a dry run makes none."""
    namespace = cluster.namespace(RESTRICTED)
    cluster.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "keytide"}})
    return namespace


def dry_run(cluster: Cluster, namespace: str, objects: list[Object]) -> list[Object]:
    """A server-side dry run, without a warning; what the API server would keep."""
    out, warnings = cluster.kubectl(
        "apply", "--server-side", "--dry-run=server", "--namespace", namespace, "--output", "json", "--filename", "-", text=yaml.safe_dump_all(objects))
    assert warnings == "", warnings
    # kubectl prints one document after the other.
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(out.rstrip()):
        document, at = decoder.raw_decode(out, at)
        found += document.get("items", [document])
        while at < len(out) and out[at].isspace():
            at += 1
    assert len(found) == len(objects)
    return found


@pytest.mark.parametrize("values", SETS)
def test_the_api_server_takes_every_object_in_a_restricted_namespace(
    values: str, cluster: Cluster, restricted: str, render: Callable[..., list[Object]],
) -> None:
    # What asks for injection is tried where there is one (test_injection.py).
    objects = [o for o in render(SETS[values], "--namespace", restricted) if "keytide.dev/inject" not in o["metadata"].get("labels", {})]
    for kept, sent in zip(dry_run(cluster, restricted, objects), objects, strict=True):
        assert (kept["kind"], kept["metadata"]["name"]) == (sent["kind"], sent["metadata"]["name"])


def test_a_patched_workload_is_admitted_with_keytide_before_its_own_init_containers(
    cluster: Cluster, restricted: str, render: Callable[..., list[Object]],
) -> None:
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    container = lambda name: {"name": name, "image": name, "securityContext": context}  # noqa: E731
    kinds = {"deployments": "Deployment", "statefulsets": "StatefulSet", "daemonsets": "DaemonSet"}
    for resource, kind in kinds.items():
        template = {"metadata": {"labels": {"app": "app"}}, "spec": {
            "initContainers": [container("first"), container("second")], "containers": [container("other"), container("app")],
            "volumes": [{"name": "data", "emptyDir": {}}]}}
        workload = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "app"}, "spec": {"selector": {"matchLabels": {"app": "app"}}, "template": template}}
        cluster.kubectl("create", "--namespace", restricted, "--filename", "-", text=yaml.safe_dump(workload))
        objects = render(SPOOLED)
        patch = one(objects, "ConfigMap", "keytide-sidecar")["data"]["patch.yaml"]
        for again in (False, True):
            said, warnings = cluster.kubectl("patch", resource, "app", "--namespace", restricted, "--patch", patch)
            assert warnings == "" and ("(no change)" in said) == again, said + warnings
        spec = json.loads(cluster.kubectl("get", resource, "app", "--namespace", restricted, "--output", "json")[0])["spec"]["template"]["spec"]
        assert [c["name"] for c in spec["initContainers"]] == ["keytide", "first", "second"]
        assert [c["name"] for c in spec["containers"] if "volumeMounts" in c] == ["app"]
        assert [v["name"] for v in spec["volumes"]].count("data") == 1


def test_a_chart_that_has_this_one_as_a_dependency_gets_its_sidecar_and_nothing_else(
    cluster: Cluster, render: Callable[..., list[Object]], tmp_path: Path,
) -> None:
    restricted = cluster.namespace(RESTRICTED)
    chart = Path(shutil.copytree(ROOT / "tests/chart/consumer", tmp_path / "my-app"))
    shutil.copytree(CHART, chart / "charts/keytide")
    objects = render({}, "--namespace", restricted, name="my-app", chart=chart)
    assert sorted((o["kind"], o["metadata"]["name"]) for o in objects) == [
        ("ConfigMap", "my-app-keytide"), ("Deployment", "my-app"), ("ServiceAccount", "my-app")]
    dry_run(cluster, restricted, objects)
    by_dependency = one(objects, "Deployment")["spec"]["template"]["spec"]
    values = yaml.safe_load((chart / "values.yaml").read_text())["keytide"]
    printed = yaml.safe_load(one(render(values), "ConfigMap", "my-app-keytide-sidecar")["data"]["patch.yaml"])["spec"]["template"]["spec"]
    assert by_dependency["initContainers"] == printed["initContainers"]
    assert by_dependency["volumes"] == printed["volumes"]
    assert by_dependency["containers"][0]["volumeMounts"] == printed["containers"][0]["volumeMounts"]


def test_the_manifests_of_deploy_are_taken_as_they_are(cluster: Cluster) -> None:
    for file in sorted((ROOT / "deploy/kubernetes").glob("*.yaml")):
        objects = objects_of(file.read_text())
        for namespace in {o["metadata"].get("namespace") for o in objects} - {None}:
            if cluster.ask("GET", f"/api/v1/namespaces/{namespace}")[0] == 404:
                cluster.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
            cluster.kubectl("label", "namespace", namespace, "--overwrite", *(f"{label}={value}" for label, value in RESTRICTED.items()))
        _, warnings = cluster.kubectl("apply", "--server-side", "--dry-run=server", "--filename", file)
        assert warnings == "", f"{file}: {warnings}"


def everything_of(cluster: Cluster, namespace: str) -> set[str]:
    """Names of all that a release may make."""
    kinds = ("jobs,configmaps,secrets,serviceaccounts,services,deployments,roles,rolebindings,poddisruptionbudgets,networkpolicies,pods,leases,"
             "podmonitors,servicemonitors,prometheusrules")
    whole = "mutatingadmissionpolicies,mutatingadmissionpolicybindings,validatingadmissionpolicies,validatingadmissionpolicybindings"
    here = cluster.kubectl("get", kinds, "--namespace", namespace, "--output", "name")[0].split()
    return set(here) | {name for name in cluster.kubectl("get", whole, "--output", "name")[0].split() if namespace in name}


@pytest.mark.parametrize(("values", "commands"), [
    ([{"mode": "injection", "aws": {"region": "us-east-1"}}, MONITORING], ["kubectl patch deployment APP", "keytide.dev/primary-secret", "helm --namespace"]),
    ([SIDECAR], ["patch deployment APP --patch", "initContainers:", "name: keytide", "set test.serviceAccountName", "test release --timeout 6m"]),
    ([{"mode": "sidecar"}], ["Nothing runs yet"]),
    ([EVERYTHING], ["Secret app-keys in namespace", "/keytide status", "helm --namespace"]),
], ids=["injection", "sidecar", "sidecar without configuration", "hub"])
def test_helm_installs_says_what_to_do_next_and_leaves_nothing_behind(
    values: list[Object | Path], commands: list[str], cluster: Cluster, tmp_path: Path,
) -> None:
    namespace = cluster.namespace(RESTRICTED)
    before = everything_of(cluster, namespace)
    arguments = values_of(values + [{"fullnameOverride": f"keytide-{namespace}", "injection": {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}}], tmp_path)
    with cluster.running_jobs(namespace):
        said = cluster.helm("install", "release", CHART, "--namespace", namespace, *arguments)
    for command in commands:
        assert command in said, said
    assert "WARNING" not in said, "prometheus-operator's resources are here"
    made = everything_of(cluster, namespace)
    assert made > before
    with cluster.running_jobs(namespace):
        cluster.helm("upgrade", "release", CHART, "--namespace", namespace, *arguments)
    assert {name for name in everything_of(cluster, namespace) if "sh.helm.release" not in name} == {
        name for name in made if "sh.helm.release" not in name}
    cluster.helm("uninstall", "release", "--namespace", namespace)
    until(lambda: everything_of(cluster, namespace) == before, f"nothing is left of {made - before}")


def test_the_printed_command_is_the_one_that_works(cluster: Cluster, tmp_path: Path) -> None:
    """The command of NOTES.txt, typed into a shell."""
    namespace = cluster.namespace()
    said = cluster.helm("install", "release", CHART, "--namespace", namespace, *values_of(SIDECAR, tmp_path))
    workload = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "my-app"}, "spec": {
        "selector": {"matchLabels": {"app": "app"}}, "template": {"metadata": {"labels": {"app": "app"}}, "spec": {"containers": [{"name": "app", "image": "app"}]}}}}
    cluster.kubectl("create", "--namespace", namespace, "--filename", "-", text=yaml.safe_dump(workload))
    command = next(line.strip() for line in said.splitlines() if "patch deployment APP" in line).replace("APP", "my-app")
    environment = cluster.environment() | {"KUBECONFIG": str(cluster.kubeconfig), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "patched" in done.stdout, done.stderr
    copied = yaml.safe_load(said.split("copy it into your manifests")[1].split("\n", 1)[1].split("Try it here")[0])["spec"]["template"]
    template = workload["spec"]["template"]
    template["metadata"]["labels"] |= copied["metadata"]["labels"]
    template["spec"]["containers"][0] |= copied["spec"]["containers"][0]
    template["spec"] |= {"initContainers": copied["spec"]["initContainers"], "volumes": copied["spec"]["volumes"]}
    assert set(copied["spec"]) == {"initContainers", "containers", "volumes"}
    workload["metadata"]["name"] = "copied"
    cluster.kubectl("apply", "--server-side", "--validate=strict", "--namespace", namespace, "--filename", "-", text=yaml.safe_dump(workload))
    made = [json.loads(cluster.kubectl("get", "deployment", name, "--namespace", namespace, "--output", "json")[0])["spec"]["template"]
            for name in ("my-app", "copied")]
    assert made[0] == made[1], "the patch and the copy make the same pod"
    cluster.helm("uninstall", "release", "--namespace", namespace)
