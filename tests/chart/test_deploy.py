"""deploy/ works as it stands, as far as that shows without containers (those of compose: tests/image)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Callable

import yaml

from conftest import CHART, PROGRAMS, RESTRICTED, ROOT, Cluster, Object, check, environment_of, helm, keytide, objects_of, one, run, until, values_of

COMPOSE = ROOT / "deploy/compose"
LITELLM = ROOT / "deploy/litellm"


def test_compose_loads_the_laptops_project() -> None:
    project = json.loads(run(os.environ["KEYTIDE_COMPOSE_CONFIG"], COMPOSE / "compose.yaml")[0])
    assert sorted(project["services"]) == ["app", "emulator", "keytide"]
    assert {volume["driver_opts"]["type"] for volume in project["volumes"].values()} == {"tmpfs"}
    for service in project["services"].values():
        for mount in service["volumes"]:
            if mount["type"] == "bind":
                assert Path(mount["source"]).is_file(), mount
        build = service.get("build", {})
        assert "dockerfile" not in build or (Path(build["context"]) / build["dockerfile"]).is_file() or service is project["services"]["keytide"]
    app = {m["target"]: m.get("read_only", False) for m in project["services"]["app"]["volumes"]}
    assert app == {"/run/keytide/env": True, "/run/keytide/spool": False}


def test_keytide_accepts_every_configuration_of_the_manifests(tmp_path: Path) -> None:
    found = 0
    for file in (ROOT / "deploy/kubernetes").glob("*.yaml"):
        objects = objects_of(file.read_text())
        for data in (o["data"] for o in objects if o["kind"] == "ConfigMap"):
            template = one(objects, "Deployment")["spec"]["template"]["spec"]
            container = next(c for c in template.get("initContainers", []) + template["containers"] if c["name"] == "keytide")
            assert check(data["keytide.yaml"], environment_of(container), tmp_path).rstrip().endswith("\nvalid")
            found += 1
    assert found == 2


def test_the_two_commands_of_the_readme_bring_an_application_its_keys(cluster: Cluster, tmp_path: Path) -> None:
    block = (ROOT / "README.md").read_text().split("## In Kubernetes\n")[1].split("```sh\n")[1].split("```")[0]
    (tmp_path / "helm").symlink_to(os.environ["KEYTIDE_HELM"])
    (tmp_path / "kubectl").symlink_to(PROGRAMS / "kubectl")
    container = {"name": "app", "image": "app"}
    workload = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "my-app"}, "spec": {
        "selector": {"matchLabels": {"app": "my-app"}}, "template": {"metadata": {"labels": {"app": "my-app"}}, "spec": {"containers": [container]}}}}
    cluster.kubectl("create", "--filename", "-", text=yaml.safe_dump(workload))
    namespace = cluster.namespace()
    environment = cluster.environment() | {"KUBECONFIG": str(cluster.kubeconfig), "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def pod() -> Object:
        template = json.loads(cluster.kubectl("get", "deployment", "my-app", "--output", "json")[0])["spec"]["template"]
        template["metadata"] = {"generateName": "my-app-", "labels": template["metadata"]["labels"], "annotations": template["metadata"].get("annotations", {})}
        return cluster.ask("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", template)[1].get("spec", {})

    try:
        with cluster.running_jobs("keytide"):
            done = subprocess.run(["sh", "-euc", block], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "deployment.apps/my-app patched" in done.stdout, done.stderr
        injected = pod()
        assert [c["name"] for c in injected["initContainers"]] == ["keytide"]
        assert sorted(v["name"] for v in injected["containers"][0]["env"]) == ["DATABASE_URL", "OPENAI_API_KEY"]
        assert environment_of(injected["initContainers"][0])["AWS_ROLE_ARN"] == "arn:aws:iam::123456789012:role/my-app"
    finally:
        cluster.helm("uninstall", "keytide", "--namespace", "keytide")
        cluster.kubectl("delete", "deployment", "my-app")
    left = {"metadata": {"generateName": "x-", "labels": {"keytide.dev/inject": "true"}}, "spec": {"containers": [container]}}
    until(lambda: cluster.ask("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", left)[0] == 201, "nothing asks for annotations any more")


def test_the_commands_of_deploys_readme_are_taken(cluster: Cluster, tmp_path: Path) -> None:
    block = (ROOT / "deploy/README.md").read_text().split("```sh\n")[1].split("```")[0]
    create, *apply = block.splitlines()
    if cluster.ask("GET", "/api/v1/namespaces/my-app")[0] == 404:
        cluster.kubectl(*create.split()[1:])
    files = [line.split()[-1] for line in apply]
    assert sorted(files) == sorted(str(file.relative_to(ROOT)) for file in (ROOT / "deploy/kubernetes").glob("*.yaml"))
    environment = cluster.environment() | {"KUBECONFIG": str(cluster.kubeconfig), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    try:
        done = subprocess.run(["sh", "-euc", "\n".join(apply)], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        accounts = cluster.kubectl("get", "serviceaccounts", "--namespace", "my-app", "--output", "name")[0].split()
        assert {"serviceaccount/my-app", "serviceaccount/keytide"} <= set(accounts)
        subjects = [s["Condition"]["StringEquals"] for s in json.loads((ROOT / "deploy/iam/irsa-trust.json").read_text())["Statement"]]
        assert [v for s in subjects for k, v in s.items() if k.endswith(":sub")] == ["system:serviceaccount:my-app:keytide"]
    finally:
        for file in files:
            cluster.kubectl("delete", "--ignore-not-found", "--wait=false", "--filename", ROOT / file)
    left = {"metadata": {"generateName": "x-", "labels": {"keytide.dev/inject": "true"}}, "spec": {"containers": [{"name": "app", "image": "app"}]}}
    namespace = cluster.namespace()
    until(lambda: cluster.ask("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", left)[0] == 201, "nothing asks for annotations any more")


def test_both_programs_take_the_file_of_the_litellm_example(tmp_path: Path) -> None:
    role = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/litellm", "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/secrets/keytide/token"}
    assert check((LITELLM / "config.yaml").read_text(), role, tmp_path).rstrip().endswith("\nvalid")
    said = keytide("check", "--config", LITELLM / "config.yaml", "--shared-with-litellm", environment=role)
    assert said.rstrip().endswith("\nvalid"), said


def test_the_litellm_example_gets_its_sidecar_by_injection_and_by_the_patch(cluster: Cluster, tmp_path: Path) -> None:
    text = cluster.kubectl("kustomize", LITELLM)[0]
    objects = objects_of(text)
    cluster.create("/api/v1/namespaces", {"metadata": {"name": "litellm", "labels": RESTRICTED}})
    _, warnings = cluster.kubectl("apply", "--server-side", "--filename", "-", text=text)
    assert warnings == ""
    data = one(objects, "ConfigMap", "litellm")["data"]
    assert data["keytide.yaml"] == (LITELLM / "config.yaml").read_text()
    template = one(objects, "Deployment", "litellm")["spec"]["template"]

    def pod_of(template: Object) -> tuple[int, Object]:
        """The pod that a controller would make of it, or why there is none."""
        labels, annotations = template["metadata"]["labels"], template["metadata"].get("annotations", {})
        body = {"metadata": {"generateName": "litellm-", "labels": labels, "annotations": annotations}, "spec": template["spec"]}
        return cluster.ask("POST", "/api/v1/namespaces/litellm/pods?dryRun=All", body)

    said = cluster.helm("install", "litellm-keytide", CHART, "--namespace", "litellm", *values_of(LITELLM / "values.yaml", tmp_path))
    patch = one(objects_of(cluster.helm("get", "manifest", "litellm-keytide", "--namespace", "litellm")), "ConfigMap", "litellm-keytide-sidecar")
    assert "patch deployment APP" in said
    cluster.kubectl("patch", "deployment", "litellm", "--namespace", "litellm", "--patch", patch["data"]["patch.yaml"])
    status, patched = pod_of(json.loads(cluster.kubectl("get", "deployment", "litellm", "--namespace", "litellm", "--output", "json")[0])["spec"]["template"])
    assert status == 201, patched["message"]
    values = values_of({"injection": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "litellm"}}}}, tmp_path)
    policies = helm("template", "litellm", CHART, "--kube-version", "1.36.0", "--no-hooks", *values)
    cluster.kubectl("apply", "--filename", "-", text=policies)
    injected = until(lambda: pod if "initContainers" in (pod := pod_of(template)[1]).get("spec", {}) else None, "the policy injects")
    for pod in (patched, injected):
        assert pod["spec"]["initContainers"][0]["name"] == "keytide"
        mounts = {m["mountPath"]: m["name"] for m in pod["spec"]["containers"][0]["volumeMounts"]}
        assert mounts == {"/etc/litellm": "config", "/tmp": "tmp", "/run/keytide/env": "keytide-env", "/run/keytide/spool": "keytide-spool"}
    sidecars = [pod["spec"]["initContainers"][0] for pod in (patched, injected)]
    assert sidecars[0] == sidecars[1]
