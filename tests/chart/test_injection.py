"""The admission policies at a real API server: pods as controllers create them, and what comes out."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from conftest import CHART, RESTRICTED, ROOT, Cluster, Object, check, environment_of, helm, objects_of, one, until, values_of

ROLE = "arn:aws:iam::123456789012:role/my-app"
SECRET = {"keytide.dev/primary-secret": "my-app/keys"}
#: Everything that the chart can say about the sidecar, with characters that need care in an expression.
RICH: Object = {
    "aws": {"region": "eu-central-1", "roleArn": ROLE,
            "secretsManagerEndpoint": "https://vpce-1.secretsmanager.eu-central-1.vpce.amazonaws.com",
            "stsEndpoint": "https://sts.eu-central-1.amazonaws.com"},
    "image": {"registry": "registry.example.com:5000", "repository": "a/keytide", "digest": "sha256:" + "0" * 64},
    "extraArgs": ["--log-level", "debug"],
    "extraEnv": [{"name": "QUOTES", "value": "it's \"so\": \\ $(HOME) {{ x }} $cel\n%d <&> ü"},
                 {"name": "NODE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}}],
    "extraEnvFrom": [{"configMapRef": {"name": "more", "optional": True}}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca", "defaultMode": 292}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
    "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
    "startupTimeoutSeconds": 600,
    "livenessProbe": {"periodSeconds": 20, "timeoutSeconds": 9, "failureThreshold": 4},
    "volumes": {"env": {"sizeLimit": "4Mi"}, "private": {"sizeLimit": "5Mi"}, "spool": {"sizeLimit": "6Mi"}},
}


#: A container that Pod Security `restricted` admits.
RESTRICTED_APP: Object = {"name": "app", "image": "app", "securityContext": {
    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}}


class Policies:
    """A release of mode injection for one namespace, and pods of that namespace."""

    def __init__(self, cluster: Cluster, text: str, name: str, namespace: str):
        self.cluster, self.namespace = cluster, namespace
        self.objects = objects_of(text)
        cluster.kubectl("apply", "--filename", "-", text=yaml.safe_dump_all(self.objects))
        # The API server takes a moment to see them.
        needs = "keytide.dev/inject needs one of two annotations"
        until(lambda: needs in self.refusal(pod(containers=[RESTRICTED_APP])), f"the policies of {name} are in force")
        until(lambda: self.refusal(pod({"keytide.dev/config": "x"}, [RESTRICTED_APP])) == "", f"the policy of {name} injects")

    def try_create(self, pod: Object, dry: bool = True) -> tuple[int, Object]:
        return self.cluster.ask("POST", f"/api/v1/namespaces/{self.namespace}/pods{'?dryRun=All' if dry else ''}", pod)

    def create(self, pod: Object, dry: bool = True) -> Object:
        status, answer = self.try_create(pod, dry)
        assert status == 201, answer.get("message")
        return answer

    def refusal(self, pod: Object) -> str:
        """Why not; empty if the pod is admitted."""
        status, answer = self.try_create(pod)
        return "" if status == 201 else answer["message"]


def pod(annotations: dict[str, str] | None = None, containers: list[Object] | None = None, label: bool = True, **spec: Any) -> Object:
    """A pod as people write it: one container that knows nothing of keytide."""
    return {
        "metadata": {"generateName": "app-", "labels": {"keytide.dev/inject": "true"} if label else {}, "annotations": annotations or {}},
        "spec": {"containers": containers or [{"name": "app", "image": "app"}], **spec},
    }


def needs(*terms: Object) -> Object:
    """An affinity to nodes of any of these terms."""
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}


def term(label: str, operator: str, *values: str, **more: Any) -> Object:
    return {"matchExpressions": [{"key": label, "operator": operator, "values": list(values)}], **more}


OS = "kubernetes.io/os"
ON_NODE = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node"]}]}


def named(objects: list[Object], name: str) -> Object:
    return next(o for o in objects if o["name"] == name)


def mounts(container: Object) -> dict[str, str]:
    """Where a container mounts which of keytide's volumes."""
    return {m["mountPath"]: m["name"] for m in container.get("volumeMounts", []) if m["name"].startswith("keytide-")}


def config_of(pod: Object) -> Object:
    return yaml.safe_load(pod["metadata"]["annotations"]["keytide.dev/rendered-config"])["keytide"]


def without_keytide(pod: Object) -> Object:
    """The specification, as it would be without what keytide adds."""
    spec = copy.deepcopy(pod["spec"])
    spec["initContainers"] = [c for c in spec.get("initContainers", []) if c["name"] != "keytide"]
    spec["volumes"] = [v for v in spec.get("volumes", []) if not v["name"].startswith("keytide-")]
    for container in spec["containers"] + spec["initContainers"]:
        container["volumeMounts"] = [m for m in container.get("volumeMounts", []) if not m["name"].startswith("keytide-")]
        container["env"] = [v for v in container.get("env", []) if "fileKeyRef" not in v.get("valueFrom", {})]
    # The API server gives the token's volume a random name.
    text = yaml.safe_dump(spec)
    for volume in spec["volumes"]:
        if volume["name"].startswith("kube-api-access-"):
            text = text.replace(volume["name"], "kube-api-access")
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def release(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Policies]:
    """Installs the policies with these values, for a namespace of their own."""
    def install(values: Object, labels: dict[str, str] | None = None) -> Policies:
        namespace = cluster.namespace(labels)
        selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
        values = values | {"injection": {"namespaceSelector": selector}}
        directory = tmp_path_factory.mktemp("values")
        text = helm("template", namespace, CHART, "--namespace", namespace, "--kube-version", "1.36.0", "--no-hooks", *values_of(values, directory))
        return Policies(cluster, text, namespace, namespace)

    return install


@pytest.fixture(scope="module")
def policies(release: Callable[..., Policies]) -> Policies:
    return release({"aws": {"region": "us-east-1"}})


@pytest.fixture(scope="module")
def rich(release: Callable[..., Policies]) -> Policies:
    return release(RICH)


@pytest.fixture(scope="module")
def restricted(release: Callable[..., Policies]) -> Policies:
    return release({"aws": {"region": "us-east-1", "roleArn": ROLE}}, RESTRICTED)


# === What a pod gets


def test_the_sidecar_is_the_first_init_container_whatever_the_pod_has(policies: Policies) -> None:
    bare = policies.create(pod(SECRET, automountServiceAccountToken=False))
    assert [c["name"] for c in bare["spec"]["initContainers"]] == ["keytide"]
    assert [v["name"] for v in bare["spec"]["volumes"]] == ["keytide-env", "keytide-private", "keytide-config"]
    own = pod(SECRET, initContainers=[{"name": "first", "image": "i"}, {"name": "second", "image": "i", "restartPolicy": "Always"}],
              volumes=[{"name": "data", "emptyDir": {}}])
    full = policies.create(own)
    assert [c["name"] for c in full["spec"]["initContainers"]] == ["keytide", "first", "second"]
    assert {v["name"] for v in full["spec"]["volumes"]} > {"data", "keytide-env", "keytide-private", "keytide-config"}
    assert mounts(full["spec"]["initContainers"][1]) == {}, "an init container gets the keys only when it is named"


@pytest.mark.parametrize("values", [{"aws": {"region": "us-east-1", "roleArn": ROLE}}, RICH], ids=["plain", "rich"])
def test_the_injected_sidecar_is_the_one_that_mode_sidecar_prints(
    values: Object, release: Callable[..., Policies], render: Callable[..., list[Object]], cluster: Cluster,
) -> None:
    policies = release(values)
    injected = policies.create(pod({"keytide.dev/config": "keytide", "keytide.dev/spool": "true"}, automountServiceAccountToken=False))
    patch = one(render(values | {"mode": "sidecar", "existingConfigMap": "keytide", "sidecar": {"spool": True}}), "ConfigMap", "keytide-sidecar")
    printed = yaml.safe_load(patch["data"]["patch.yaml"])["spec"]["template"]["spec"]
    printed.pop("$setElementOrder/initContainers")
    by_hand = pod(label=False, automountServiceAccountToken=False)
    by_hand["spec"]["initContainers"] = printed["initContainers"]
    by_hand["spec"]["volumes"] = printed["volumes"]
    by_hand["spec"]["containers"][0]["volumeMounts"] = printed["containers"][0]["volumeMounts"]
    expected = policies.create(by_hand)["spec"]
    by_name = lambda spec: sorted(spec["volumes"], key=lambda v: v["name"])  # noqa: E731
    assert by_name(injected["spec"]) == by_name(expected)
    assert injected["spec"] | {"volumes": []} == expected | {"volumes": []}


def test_a_pod_keeps_everything_that_is_its_own(policies: Policies) -> None:
    cases = {
        "securityContext": pod(SECRET, securityContext={"fsGroup": 2000, "runAsUser": 1000, "supplementalGroups": [7]}),
        "root": pod(SECRET, securityContext={"runAsUser": 0}),
        "hostNetwork": pod(SECRET, hostNetwork=True),
        "shared processes": pod(SECRET, shareProcessNamespace=True, terminationGracePeriodSeconds=5),
        "job": pod(SECRET, restartPolicy="Never"),
        "mounts": pod(SECRET | {"keytide.dev/env": "A,B"}, [
            {"name": "app", "image": "app", "env": [{"name": "A", "value": "own"}, {"name": "C", "value": "$(B)"}],
             "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
            {"name": "other", "image": "app", "securityContext": {"runAsUser": 0}}], volumes=[{"name": "data", "emptyDir": {}}]),
        "init": pod(SECRET, initContainers=[{"name": "first", "image": "i", "env": [{"name": "A", "value": "1"}]}]),
    }
    for name, wanted in cases.items():
        plain = copy.deepcopy(wanted)
        plain["metadata"]["labels"] = {}
        injected = policies.create(wanted)
        assert "keytide" in [c["name"] for c in injected["spec"]["initContainers"]], name
        assert without_keytide(injected) == without_keytide(policies.create(plain)), name


def test_a_variable_of_the_file_is_set_before_the_containers_own_and_never_over_one(policies: Policies) -> None:
    annotations = SECRET | {"keytide.dev/env": "OPENAI_API_KEY , DB_PASSWORD,"}
    own = [{"name": "DB_PASSWORD", "value": "own"}, {"name": "URL", "value": "db:$(OPENAI_API_KEY)"}]
    injected = policies.create(pod(annotations, [{"name": "app", "image": "app", "env": own}, {"name": "b", "image": "b"}]))
    app, other = injected["spec"]["containers"]
    assert [v["name"] for v in app["env"]] == ["OPENAI_API_KEY", "DB_PASSWORD", "URL"]
    assert app["env"][1:] == own
    reference = {"volumeName": "keytide-env", "path": "kubernetes.env", "key": "OPENAI_API_KEY", "optional": False}
    assert app["env"][0] == {"name": "OPENAI_API_KEY", "valueFrom": {"fileKeyRef": reference}}
    assert sorted(v["name"] for v in other["env"]) == ["DB_PASSWORD", "OPENAI_API_KEY"]
    assert config_of(injected)["keys"] == [{"name": n, "member": n} for n in ("OPENAI_API_KEY", "DB_PASSWORD")]
    assert config_of(injected)["outputs"][1]["env_file"] == {
        "name": "kubernetes", "path": "/run/keytide/env/kubernetes.env", "format": "kubernetes", "keys": ["OPENAI_API_KEY", "DB_PASSWORD"]}


def test_only_the_containers_that_are_named_get_the_keys(policies: Policies) -> None:
    annotations = SECRET | {"keytide.dev/containers": "b, migrate", "keytide.dev/env": "A"}
    injected = policies.create(pod(annotations, [{"name": n, "image": n} for n in "abc"], initContainers=[{"name": "migrate", "image": "m"}]))
    containers = injected["spec"]["containers"] + injected["spec"]["initContainers"]
    reached = {c["name"] for c in containers if mounts(c) == {"/run/keytide/env": "keytide-env"} and c["env"][0]["name"] == "A"}
    assert reached == {"b", "migrate"}
    untouched = {c["name"] for c in containers if not mounts(c) and "env" not in c}
    assert untouched == {"a", "c"}
    assert all(m["readOnly"] for c in containers if c["name"] != "keytide" for m in c["volumeMounts"] if m["name"] == "keytide-env")


def test_a_container_that_mounts_something_there_keeps_it(policies: Policies) -> None:
    own = [{"name": "data", "mountPath": "/run/keytide/env"}]
    injected = policies.create(pod(SECRET, [{"name": "app", "image": "app", "volumeMounts": own}], volumes=[{"name": "data", "emptyDir": {}}]))
    assert [m["name"] for m in injected["spec"]["containers"][0]["volumeMounts"] if m["mountPath"] == "/run/keytide/env"] == ["data"]


def test_the_role_and_its_token_are_for_the_sidecar_alone(policies: Policies) -> None:
    injected = policies.create(pod(SECRET | {"keytide.dev/role-arn": ROLE}, initContainers=[{"name": "first", "image": "i"}]))
    sidecar = injected["spec"]["initContainers"][0]
    assert environment_of(sidecar)["AWS_ROLE_ARN"] == ROLE
    assert environment_of(sidecar)["AWS_WEB_IDENTITY_TOKEN_FILE"] == "/var/run/secrets/keytide/token"
    token = named(injected["spec"]["volumes"], "keytide-token")["projected"]["sources"]
    assert token == [{"serviceAccountToken": {"path": "token", "audience": "sts.amazonaws.com", "expirationSeconds": 86400}}]
    assert mounts(sidecar)["/var/run/secrets/keytide"] == "keytide-token"
    for container in injected["spec"]["containers"] + injected["spec"]["initContainers"][1:]:
        assert "/var/run/secrets/keytide" not in mounts(container)
        assert not [v for v in container.get("env", []) if v["name"].startswith("AWS_")]
    assert config_of(injected)["aws"] == {"region": "us-east-1", "expect_role": ROLE}
    without = policies.create(pod(SECRET))
    assert not [v for v in without["spec"]["volumes"] if v["name"] == "keytide-token"]
    assert "AWS_ROLE_ARN" not in environment_of(without["spec"]["initContainers"][0])


def test_credentials_of_the_service_account_are_kept_from_all_others(policies: Policies) -> None:
    annotations = SECRET | {"keytide.dev/isolate-credentials": "true", "eks.amazonaws.com/skip-containers": "keytide"}
    injected = policies.create(pod(annotations, [{"name": n, "image": n} for n in "ab"], initContainers=[{"name": "first", "image": "i"}]))
    assert injected["metadata"]["annotations"]["eks.amazonaws.com/skip-containers"] == "a,b,first"
    for said in ({}, {"keytide.dev/isolate-credentials": "false"}):
        assert "eks.amazonaws.com/skip-containers" not in policies.create(pod(SECRET | said))["metadata"]["annotations"]


def test_port_user_and_spool_are_as_the_annotations_say(policies: Policies) -> None:
    annotations = {"keytide.dev/http-port": "9100", "keytide.dev/run-as-user": "2147483647", "keytide.dev/spool": "true"}
    injected = policies.create(pod(SECRET | annotations))
    sidecar, app = injected["spec"]["initContainers"][0], injected["spec"]["containers"][0]
    assert sidecar["ports"] == [{"name": "keytide-metrics", "containerPort": 9100, "protocol": "TCP"}]
    assert {sidecar[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} == {9100}
    assert (sidecar["securityContext"]["runAsUser"], sidecar["securityContext"]["runAsGroup"]) == (2147483647, 2147483647)
    assert config_of(injected)["http"] == {"listen": "[::]:9100"}
    assert mounts(app)["/run/keytide/spool"] == mounts(sidecar)["/run/keytide/spool"] == "keytide-spool"
    assert not [m for m in app["volumeMounts"] if m["mountPath"] == "/run/keytide/spool" and m.get("readOnly")]
    assert named(injected["spec"]["volumes"], "keytide-spool")["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Mi"}


def test_a_config_map_of_the_pods_namespace_is_mounted_as_a_directory(policies: Policies) -> None:
    injected = policies.create(pod({"keytide.dev/config": "my-app-keytide"}))
    assert named(injected["spec"]["volumes"], "keytide-config")["configMap"]["name"] == "my-app-keytide"
    config = next(m for m in injected["spec"]["initContainers"][0]["volumeMounts"] if m["name"] == "keytide-config")
    assert config == {"name": "keytide-config", "mountPath": "/etc/keytide", "readOnly": True}
    assert "keytide.dev/rendered-config" not in injected["metadata"]["annotations"]


def test_without_a_config_map_the_configuration_comes_from_the_annotations_and_is_valid(
    policies: Policies, rich: Policies, tmp_path: Path,
) -> None:
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:app/keys-AbCdEf"
    for installed in (policies, rich):
        for secret in ("a", "my-app/keys", "x_+=.@-/Y", arn):
            for more in ({}, {"keytide.dev/role-arn": "arn:aws-cn:iam::123456789012:role/path/a+=,.@_-b"},
                         {"keytide.dev/env": "A"}, {"keytide.dev/env": "A,_b9", "keytide.dev/http-port": "1024"}):
                injected = installed.create(pod({"keytide.dev/primary-secret": secret} | more))
                text = injected["metadata"]["annotations"]["keytide.dev/rendered-config"]
                said = check(text, environment_of(injected["spec"]["initContainers"][0]), tmp_path)
                assert said.rstrip().endswith("\nvalid") and f"all members of secret {secret}" in said, said
                assert config_of(injected)["primary_secret"] == {"name": secret}
    volume = named(injected["spec"]["volumes"], "keytide-config")["downwardAPI"]["items"]
    field = {"apiVersion": "v1", "fieldPath": "metadata.annotations['keytide.dev/rendered-config']"}
    assert volume == [{"path": "keytide.yaml", "fieldRef": field}]
    assert config_of(injected)["refresh"] == {"startup_timeout": "600s"}
    assert injected["spec"]["initContainers"][0]["startupProbe"]["failureThreshold"] == 630


def test_the_role_of_the_values_is_for_pods_that_name_none(rich: Policies) -> None:
    other = "arn:aws:iam::123456789012:role/other"
    for annotations, role in ((SECRET, ROLE), (SECRET | {"keytide.dev/role-arn": other}, other)):
        injected = rich.create(pod(annotations))
        assert environment_of(injected["spec"]["initContainers"][0])["AWS_ROLE_ARN"] == role
        assert config_of(injected)["aws"]["expect_role"] == role


def test_a_large_pod_is_within_what_the_api_server_spends_on_a_policy(policies: Policies) -> None:
    own = [{"name": f"OWN_{i}", "value": "x"} for i in range(60)]
    mounts = [{"name": "data", "mountPath": f"/data/{i}"} for i in range(20)]
    containers = [{"name": f"app-{i}", "image": "app", "env": own, "volumeMounts": mounts} for i in range(20)]
    names = [f"KEY_{i}" for i in range(60)]
    injected = policies.create(pod(SECRET | {"keytide.dev/env": ",".join(names)}, containers, volumes=[{"name": "data", "emptyDir": {}}]))
    assert {len(c["env"]) for c in injected["spec"]["containers"]} == {120}


# === Who gets nothing


def test_pods_that_are_not_for_keytide_are_left_alone(policies: Policies) -> None:
    sidecar = {"name": "keytide", "image": "own", "restartPolicy": "Always"}
    cases = {
        "no label": pod(SECRET, label=False),
        "Windows": pod(SECRET, os={"name": "windows"}),
        "Windows by its nodes": pod(SECRET, nodeSelector={"kubernetes.io/os": "windows"}),
        "Windows by its affinity": pod(SECRET, affinity=needs(term(OS, "In", "windows", **ON_NODE))),
        "Windows by each of its terms": pod(SECRET, affinity=needs(term(OS, "In", "windows"), term(OS, "NotIn", "linux"))),
        "a sidecar of its own": pod(SECRET, initContainers=[sidecar]),
        "a sidecar and annotations that make no sense": pod({"keytide.dev/http-port": "x"}, initContainers=[sidecar]),
        "a container of that name": pod({}, [{"name": "keytide", "image": "own"}]),
    }
    for name, wanted in cases.items():
        plain = copy.deepcopy(wanted)
        plain["metadata"]["labels"] = {}
        made, expected = policies.create(wanted), policies.create(plain)
        volumes = lambda pod: {v["name"] for v in pod["spec"]["volumes"] if v["name"].startswith("keytide-")}  # noqa: E731
        assert without_keytide(made) == without_keytide(expected) and not volumes(made), name
        assert made["metadata"].get("annotations") == expected["metadata"].get("annotations"), name


def test_a_pod_that_needs_other_nodes_gets_keytide(policies: Policies) -> None:
    preferred = [{"weight": 1, "preference": term(OS, "In", "windows")}]
    for affinity in (needs(term("kubernetes.io/arch", "In", "amd64")), needs(term(OS, "In", "linux")), needs(term(OS, "In", "linux", "windows")),
                     needs(term(OS, "NotIn", "windows")), needs(ON_NODE, term(OS, "In", "windows")), needs(term(OS, "In", "windows"), ON_NODE),
                     {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}, {"podAffinity": {}}):
        assert named(policies.create(pod(SECRET, affinity=affinity))["spec"]["initContainers"], "keytide")


def test_another_value_of_the_label_and_other_namespaces_are_left_alone(policies: Policies, cluster: Cluster) -> None:
    wanted = pod(SECRET)
    wanted["metadata"]["labels"] = {"keytide.dev/inject": "false"}
    assert "initContainers" not in policies.create(wanted)["spec"]
    elsewhere = cluster.namespace()
    assert "initContainers" not in cluster.create(f"/api/v1/namespaces/{elsewhere}/pods?dryRun=All", pod(SECRET))["spec"]


# === What is refused

BAD = {
    "keytide.dev/primary-secret": ["my app", 'x"}, y: {"', "x\n  y: z", "x'", "x\\", "x{", "x" * 513, "arn:aws:iam::123456789012:role/x",
                                   "arn:aws:secretsmanager:us-east-1:1:secret:x", "ü", "a#b", "a: b", "a\u2028b", "a\tb", "os.environ/X"],
    "keytide.dev/config": ["My-App", "a/b", "-a", "a_b", "x" * 254, "a\n"],
    "keytide.dev/role-arn": ["my-app", "arn:aws:iam::12:role/x", 'arn:aws:iam::123456789012:role/x", y: "z', "arn:aws:iam::123456789012:user/x",
                             "arn:aws:iam::123456789012:role/x\n", "arn:aws:iam::123456789012:role/"],
    "keytide.dev/containers": ["nobody", "app,nobody", "keytide", "app;b"],
    "keytide.dev/env": ["1A", "A B", "A-B", 'A", member: "B', "A\nB", "A,A", "A,é", "A,PATH", "ld_preload", "HTTPS_PROXY", "UID"],
    "keytide.dev/http-port": ["80", "http", "65536", "99999", "019847", "1e4", "-1", "", " 9100", "99999999999999999999"],
    "keytide.dev/run-as-user": ["0", "root", "-1", "2147483648", "1.5", "", "01", "99999999999999999999"],
    "keytide.dev/isolate-credentials": ["yes", "True", "", "1"],
    "keytide.dev/spool": ["yes", "on", ""],
}


@pytest.mark.parametrize(("annotation", "value"), [(a, v) for a, values in BAD.items() for v in values])
def test_an_annotation_that_cannot_be_refuses_the_pod_and_says_so(policies: Policies, annotation: str, value: str) -> None:
    needed = {} if annotation in ("keytide.dev/config", "keytide.dev/primary-secret") else SECRET
    message = policies.refusal(pod(needed | {annotation: value}))
    assert f"{annotation}: " in message, message or "the pod was admitted"
    assert "expected" in message or "there twice" in message, message
    assert "xpression" not in message.replace("expected", ""), "this is for people who do not know the policy"


def test_what_is_missing_or_given_twice_refuses_the_pod_and_says_so(policies: Policies, release: Callable[..., Policies]) -> None:
    assert "needs one of two annotations: keytide.dev/config" in policies.refusal(pod())
    assert "needs one of two annotations" in policies.refusal(pod({"keytide.dev/env": "A"}))
    assert "needs one of two annotations" in policies.refusal(pod({"keytide.dev/primary-secret": ""}))
    assert "are both set" in policies.refusal(pod(SECRET | {"keytide.dev/config": "x"}))
    clash = pod(SECRET, volumes=[{"name": "keytide-env", "emptyDir": {}}])
    assert "volume of its own whose name begins with keytide-" in policies.refusal(clash)
    for volume in ("keytide-token", "keytide-private", "keytide-config"):
        thief = {"name": "thief", "image": "i", "volumeMounts": [{"name": volume, "mountPath": "/x"}]}
        with_role = SECRET | {"keytide.dev/role-arn": ROLE}
        for stolen in (pod(with_role, [RESTRICTED_APP, thief]), pod(with_role, initContainers=[thief])):
            assert f'Not found: "{volume}"' in policies.refusal(stolen), "the volumes of keytide alone do not come into a pod that mounts them"
    nowhere = release({})
    assert "aws.region=REGION" in nowhere.refusal(pod(SECRET))
    assert nowhere.refusal(pod({"keytide.dev/config": "x"})) == ""


def test_a_pod_with_a_spool_has_ten_seconds_to_end(policies: Policies, cluster: Cluster) -> None:
    spooled = SECRET | {"keytide.dev/spool": "true"}
    for seconds in (0, 1, 9):
        assert "set terminationGracePeriodSeconds to 10 or more" in policies.refusal(pod(spooled, terminationGracePeriodSeconds=seconds)), seconds
        assert policies.refusal(pod(SECRET, terminationGracePeriodSeconds=seconds)) == "", seconds
    for enough in ({"terminationGracePeriodSeconds": 10}, {}):
        assert mounts(policies.create(pod(spooled, **enough))["spec"]["containers"][0])["/run/keytide/spool"] == "keytide-spool"
    template = pod(spooled, terminationGracePeriodSeconds=5)
    template["metadata"] = {"labels": template["metadata"]["labels"] | {"app": "short"}, "annotations": template["metadata"]["annotations"]}
    workload = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "short"},
                "spec": {"selector": {"matchLabels": {"app": "short"}}, "template": template}}
    create = ("create", "--dry-run=server", "--namespace", policies.namespace, "--filename", "-")
    until(lambda: "terminationGracePeriodSeconds to 10" in cluster.kubectl(*create, text=yaml.safe_dump(workload))[1], "whoever applies it is warned")


def test_the_names_that_the_policy_refuses_are_those_that_keytide_does_not_export(policies: Policies, tmp_path: Path) -> None:
    source = (ROOT / "src/domain/names.rs").read_text().split("pub fn is_reserved", 1)[1]
    exact, prefixes = (re.findall(r'"(\w+)"', source.split(f"const {name}", 1)[1].split("];", 1)[0]) for name in ("EXACT", "PREFIX"))
    assert len(exact) > 50 and len(prefixes) > 10
    read_only = re.findall(r'"(\w+)"', source.split("fn is_shell_read_only", 1)[1].split("}", 1)[0])
    for name in [*exact, *(f"{prefix}X" for prefix in prefixes), *read_only, "http_proxy"]:
        assert "do not change how programs run" in policies.refusal(pod(SECRET | {"keytide.dev/env": name})), name
    assert policies.refusal(pod({"keytide.dev/config": "x", "keytide.dev/env": "PATH"})) == "", "the ConfigMap may allow it"
    injected = policies.create(pod(SECRET | {"keytide.dev/env": "MY_PATH,HOMES,uid,A_PROXY_B,XLD_A"}))
    said = check(injected["metadata"]["annotations"]["keytide.dev/rendered-config"], environment_of(injected["spec"]["initContainers"][0]), tmp_path)
    assert said.rstrip().endswith("\nvalid")


def test_no_bad_annotation_reaches_a_configuration_even_without_the_policy_that_refuses(
    release: Callable[..., Policies], cluster: Cluster,
) -> None:
    lone = release({"aws": {"region": "us-east-1"}})
    for policy in lone.objects:
        if policy["kind"] == "ValidatingAdmissionPolicyBinding":
            cluster.kubectl("delete", policy["kind"], policy["metadata"]["name"])
    until(lambda: lone.refusal(pod()) == "", "nothing is refused any more")
    for annotation, values in BAD.items():
        needed = {} if annotation in ("keytide.dev/config", "keytide.dev/primary-secret") else SECRET
        for value in values:
            admitted = lone.create(pod(needed | {annotation: value}))
            assert "initContainers" not in admitted["spec"], (annotation, value)
            assert "keytide.dev/rendered-config" not in admitted["metadata"]["annotations"], (annotation, value)


def test_a_pod_that_asks_in_vain_is_refused(release: Callable[..., Policies], cluster: Cluster) -> None:
    lone = release({"aws": {"region": "us-east-1"}})
    name = next(o["metadata"]["name"] for o in lone.objects if o["kind"] == "MutatingAdmissionPolicyBinding")
    cluster.kubectl("delete", "MutatingAdmissionPolicyBinding", name)
    message = until(lambda: lone.refusal(pod(SECRET)), "nothing is injected any more")
    assert f"the MutatingAdmissionPolicy {name} or its binding is missing" in message


def test_whoever_patches_a_workload_is_warned_of_what_its_pods_will_be_refused_for(policies: Policies, cluster: Cluster) -> None:
    def workload(kind: str, group: str, annotations: dict[str, str], **spec: Any) -> str:
        template = pod(annotations, [{"name": "app", "image": "app"}], **spec)
        template["metadata"].pop("generateName")
        template["metadata"]["labels"]["app"] = "app"
        selector = {} if group == "batch/v1" else {"selector": {"matchLabels": {"app": "app"}}}
        whole = {"template": template, **selector}
        whole = {"schedule": "0 0 * * *", "jobTemplate": {"spec": whole}} if kind == "CronJob" else whole
        return yaml.safe_dump({"apiVersion": group, "kind": kind, "metadata": {"name": "app"}, "spec": whole})

    def warning(*arguments: str, text: str | None = None) -> str:
        return cluster.kubectl(*arguments, "--namespace", policies.namespace, text=text)[1]

    create = ("create", "--dry-run=server", "--filename", "-")
    until(lambda: "keytide.dev/env: expected" in warning(*create, text=workload("Deployment", "apps/v1", SECRET | {"keytide.dev/env": "1A"})),
          "the policy is in force")
    for kind, group, spec in (("Deployment", "apps/v1", {}), ("StatefulSet", "apps/v1", {}), ("DaemonSet", "apps/v1", {}),
                              ("Job", "batch/v1", {"restartPolicy": "Never"}), ("CronJob", "batch/v1", {"restartPolicy": "Never"})):
        assert warning(*create, text=workload(kind, group, SECRET, **spec)) == "", kind
        assert "keytide.dev/http-port: expected" in warning(*create, text=workload(kind, group, SECRET | {"keytide.dev/http-port": "1"}, **spec)), kind
        assert "keytide.dev/containers: expected" in warning(*create, text=workload(kind, group, SECRET | {"keytide.dev/containers": "x"}, **spec)), kind
    assert warning("create", "--filename", "-", text=workload("Deployment", "apps/v1", SECRET)) == ""
    annotations = {"spec": {"template": {"metadata": {"annotations": {"keytide.dev/role-arn": "my-app"}}}}}
    assert "keytide.dev/role-arn: expected" in warning("patch", "deployment", "app", "--patch", yaml.safe_dump(annotations))
    windows = workload("StatefulSet", "apps/v1", {}, os={"name": "windows"})
    assert warning(*create, text=windows) == ""


def test_the_configuration_of_a_pod_stays_as_the_policy_wrote_it(policies: Policies, cluster: Cluster) -> None:
    stolen = "keytide: {primary_secret: {name: somebody-elses}}"
    made = policies.create(pod(SECRET | {"keytide.dev/rendered-config": stolen}), dry=False)
    assert config_of(made)["primary_secret"] == {"name": "my-app/keys"}, "a configuration that came along is replaced"
    path = f"/api/v1/namespaces/{policies.namespace}/pods/{made['metadata']['name']}"
    merge = "application/merge-patch+json"

    def change(metadata: Object, subresource: str = "") -> tuple[int, str]:
        status, answer = cluster.ask("PATCH", path + subresource, {"metadata": metadata}, merge)
        return status, answer.get("message", "")

    until(lambda: change({"annotations": {"keytide.dev/rendered-config": stolen}})[0] == 422, "the policy is in force")
    assert change({"labels": {"keytide.dev/inject": None, "seen": "yes"}})[0] == 200, "everything else may change"
    assert change({"annotations": {"seen": "yes", "keytide.dev/env": "B"}})[0] == 200
    for value in (stolen, None, ""):
        for subresource in ("", "/status"):
            status, message = change({"annotations": {"keytide.dev/rendered-config": value}}, subresource)
            assert status == 422 and "stays as it was made" in message, (value, subresource, message)
    target = {"target": {"apiVersion": "v1", "kind": "Node", "name": "node"}}
    for where in (f"{path}/binding", f"/api/v1/namespaces/{policies.namespace}/bindings"):
        metadata = {"name": made["metadata"]["name"], "annotations": {"keytide.dev/rendered-config": stolen}}
        status, answer = cluster.ask("POST", where, {"metadata": metadata} | target)
        assert status == 422 and "stays as it was made" in answer["message"], (where, answer)
    now = cluster.ask("GET", path)[1]
    assert config_of(now) == config_of(made)
    assert cluster.ask("POST", f"{path}/binding", {"metadata": {"name": made["metadata"]["name"]}} | target)[0] == 201, "a scheduler binds it"
    assert cluster.ask("DELETE", path + "?gracePeriodSeconds=0")[0] == 200


# === What Helm waits for


def test_a_pod_made_right_after_helm_install_or_upgrade_gets_the_sidecar_of_that_release(cluster: Cluster, tmp_path: Path) -> None:
    namespace = cluster.namespace(RESTRICTED)
    policies = Policies.__new__(Policies)
    policies.cluster, policies.namespace = cluster, namespace
    values = values_of({"fullnameOverride": f"keytide-{namespace}", "injection": {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}}, tmp_path)
    with cluster.running_jobs(namespace):
        for command, port in (("install", 20001), ("upgrade", 20002), ("upgrade", 20003)):
            cluster.helm(command, "release", CHART, "--namespace", namespace, *values, "--set", f"http.port={port}")
            made = policies.create(pod({"keytide.dev/config": "x"}, [RESTRICTED_APP]))
            assert made["spec"]["initContainers"][0]["ports"][0]["containerPort"] == port, "Helm returned before the policies were in force"
        assert cluster.ask("GET", f"/apis/batch/v1/namespaces/{namespace}/jobs")[1]["items"] == []
        cluster.helm("uninstall", "release", "--namespace", namespace)


@pytest.mark.parametrize(("selector", "namespace", "waits"), [
    (None, "keytide", True),
    (None, "kube-system", False),
    ({}, "keytide", True),
    ({"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}]}, "b", True),
    ({"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}]}, "c", False),
    ({"matchLabels": {"team": "core"}}, "keytide", False),
    ({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}, "keytide", False),
], ids=["default", "kube-system", "all", "by name", "not by name", "by a label", "by no label"])
def test_helm_waits_only_where_something_can_be_injected(
    selector: Object | None, namespace: str, waits: bool, render: Callable[..., list[Object]],
) -> None:
    """Without a cluster, that is: what labels a namespace has is not known."""
    values = {} if selector is None else {"injection": {"namespaceSelector": {"matchExpressions": None} | selector}}
    kinds = [o["kind"] for o in render(values, "--namespace", namespace, "--skip-tests")]
    assert ("Job" in kinds) == waits
    assert "Job" not in [o["kind"] for o in render(values | {"injection": values.get("injection", {}) | {"wait": False}}, "--namespace", namespace)]


@pytest.mark.parametrize("name", ["a" * 49, "a" * 53, "v1.2"])
def test_what_helm_waits_for_is_a_host_as_well(name: str, cluster: Cluster, render: Callable[..., list[Object]]) -> None:
    namespace = cluster.namespace(RESTRICTED)
    job = one(render({"commonLabels": {"team": "core"}, "commonAnnotations": {"a": "b"}}, "--namespace", namespace, name=name), "Job")
    status, answer = cluster.ask("POST", f"/apis/batch/v1/namespaces/{namespace}/jobs?dryRun=All", job)
    assert status == 201, answer
    made = job["spec"]["template"]["metadata"]
    assert made["labels"]["team"] == "core" and made["annotations"]["a"] == "b", "what a cluster asks of its pods"


@pytest.mark.parametrize(("term", "labels", "waits"), [
    ({"operator": "In", "values": ["core", "edge"]}, {"team": "edge"}, True), ({"operator": "In", "values": ["core"]}, {"team": "edge"}, False),
    ({"operator": "In", "values": ["core"]}, {}, False), ({"operator": "NotIn", "values": ["core"]}, {}, True),
    ({"operator": "NotIn", "values": ["core"]}, {"team": "core"}, False), ({"operator": "Exists"}, {"team": ""}, True),
    ({"operator": "Exists"}, {}, False), ({"operator": "DoesNotExist"}, {}, True), ({"operator": "DoesNotExist"}, {"team": "a"}, False),
])
def test_helm_reads_the_selector_as_the_api_server_does(
    term: Object, labels: dict[str, str], waits: bool, cluster: Cluster, tmp_path: Path,
) -> None:
    namespace = cluster.namespace(labels)
    values = values_of({"injection": {"namespaceSelector": {"matchExpressions": [{"key": "team", **term}]}}}, tmp_path)
    said = cluster.helm("install", "release", CHART, "--namespace", namespace, "--dry-run=server", *values)
    assert ("kind: Job\n" in said) == waits
    assert ("has seen" in said.split("NOTES:")[1]) != waits, "the notes say what is left to wait for"


def test_a_pod_that_names_another_revision_of_the_policy_gets_nothing_of_it(cluster: Cluster, release: Callable[..., Policies]) -> None:
    policies = release({"aws": {"region": "us-east-1"}})
    assert "is missing, or was made a moment ago" in policies.refusal(pod(SECRET | {"keytide.dev/policy": "0123456789ab"}))


# === helm test


@pytest.mark.parametrize(("annotations", "does"), [
    ({}, ["spool", "list"]),
    ({"keytide.dev/primary-secret": "my-app/keys"}, ["exec", "--wait", "0s", "--", "/keytide", "--version"]),
    ({"keytide.dev/config": "my-app-keytide"}, ["--version"]),
], ids=["without AWS", "a secret", "a ConfigMap"])
def test_the_pod_of_helm_test_needs_what_injection_gives(
    annotations: dict[str, str], does: list[str], restricted: Policies, cluster: Cluster, render: Callable[..., list[Object]],
) -> None:
    values = {"aws": {"region": "us-east-1"}, "test": {"annotations": annotations}}
    tried = one(render(values, "--namespace", restricted.namespace), "Pod", "keytide-test")
    out, warnings = cluster.kubectl("create", "--dry-run=server", "--output", "yaml", "--filename", "-", text=yaml.safe_dump(tried))
    assert warnings == ""
    injected = yaml.safe_load(out)
    assert [c["name"] for c in injected["spec"]["initContainers"]] == ["keytide"]
    assert injected["spec"]["containers"][0]["args"] == does
    assert mounts(injected["spec"]["containers"][0])["/run/keytide/env"] == "keytide-env"
    elsewhere = cluster.namespace()
    tried["metadata"]["namespace"] = elsewhere
    status, answer = cluster.ask("POST", f"/api/v1/namespaces/{elsewhere}/pods?dryRun=All", tried)
    assert status == 422 and 'Not found: "keytide-env"' in answer["message"], answer


# === Pod Security


def test_pod_security_restricted_admits_a_restricted_pod_with_its_sidecar(restricted: Policies, cluster: Cluster) -> None:
    wanted = pod(SECRET | {"keytide.dev/env": "A", "keytide.dev/spool": "true", "keytide.dev/run-as-user": "1000"}, [RESTRICTED_APP])
    wanted |= {"apiVersion": "v1", "kind": "Pod"}
    out, warnings = cluster.kubectl("create", "--namespace", restricted.namespace, "--dry-run=server", "--output", "yaml", "--filename", "-",
                                    text=yaml.safe_dump(wanted))
    assert warnings == ""
    assert yaml.safe_load(out)["spec"]["initContainers"][0]["name"] == "keytide"
