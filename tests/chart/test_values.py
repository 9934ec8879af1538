"""Every value of the chart does what it says, and what cannot be meant is refused before anything is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from conftest import CHART, EXAMPLES, Object, Refused, check, environment_of, keytide, one

Render = Callable[..., list[Object]]
ROLE = "arn:aws:iam::123456789012:role/app"
HUB: Object = {"mode": "hub", "config": {"keytide": {
    "aws": {"region": "us-east-1"}, "primary_secret": {"name": "app/keys"}, "outputs": [{"kubernetes_secret": {"name": "app-keys"}}]}}}
SIDECAR: Object = {"mode": "sidecar", "config": {"keytide": {"aws": {"region": "us-east-1"}, "primary_secret": {"name": "app/keys"}}}}
INJECTION: Object = {"mode": "injection"}
ENV_OUTPUT = {"env_file": {"name": "kubernetes", "path": "/run/keytide/env/kubernetes.env", "format": "kubernetes", "keys": ["A"]}}
SPOOL = {"spool": {"directory": "/run/keytide/spool/in"}, "virtual_keys": {"prefix": "app/"}}
#: Modes whose defaults are not what a test of one value needs.
MONITORED = HUB | {"podMonitor": {"enabled": True}}
SCRAPED = HUB | {"serviceMonitor": {"enabled": True}}
RULED = HUB | {"prometheusRule": {"enabled": True}}
SHOWN = HUB | {"grafanaDashboard": {"enabled": True}}
FENCED = HUB | {"networkPolicy": {"enabled": True}}

POD = "Deployment.spec.template.spec"
CONTAINER = f"{POD}.containers.0"
PATCH = "patch.spec.template"
PEER = {"namespaceSelector": {"matchLabels": {"a": "b"}}}
EGRESS = {"ports": [{"port": 5432}]}
CONSTRAINT = {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"a": "b"}}}
RELABELING = [{"action": "labeldrop", "regex": "x"}]
GROUP = {"name": "mine", "rules": []}
RULE = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["x"], "verbs": ["get"]}


def variable(name: str, value: str) -> Object:
    return {"name": name, "value": value}


#: value → (what it is set beside, what it is set to, where that is seen, what is seen there). `+` is part of a list, `-` the absence.
EFFECTS: dict[str, tuple[Object, Any, str, Any]] = {
    "mode": ({}, HUB["mode"], "Deployment.kind", "Deployment"),
    "nameOverride": (HUB, "other", "Deployment.metadata.name", "keytide-other"),
    "fullnameOverride": (HUB, "other", "Deployment.metadata.name", "other"),
    "namespaceOverride": (HUB, "other", "Deployment.metadata.namespace", "other"),
    "commonLabels": (HUB, {"team": "core"}, "Role.metadata.labels.team", "core"),
    "commonAnnotations": (HUB, {"team": "core"}, "Role.metadata.annotations.team", "core"),
    "image.registry": (HUB, "", f"{CONTAINER}.image", "keytide/keytide:0.1.0"),
    "image.repository": (HUB, "a/b", f"{CONTAINER}.image", "ghcr.io/a/b:0.1.0"),
    "image.tag": (HUB, "1.2.3", f"{CONTAINER}.image", "ghcr.io/keytide/keytide:1.2.3"),
    "image.digest": (HUB, "sha256:" + "a" * 64, f"{CONTAINER}.image", "ghcr.io/keytide/keytide@sha256:" + "a" * 64),
    "image.pullPolicy": (HUB, "Never", f"{CONTAINER}.imagePullPolicy", "Never"),
    "imagePullSecrets": (HUB, [{"name": "pull"}], f"{POD}.imagePullSecrets", [{"name": "pull"}]),
    "aws.region": (SIDECAR, "eu-west-1", f"{PATCH}.spec.initContainers.0.env.+", variable("AWS_REGION", "eu-west-1")),
    "aws.roleArn": (HUB, ROLE, f"{CONTAINER}.env.+", variable("AWS_ROLE_ARN", ROLE)),
    "aws.tokenAudience": (HUB, "other", f"{POD}.volumes.-1.projected.sources.0.serviceAccountToken.audience", "other"),
    "aws.tokenExpirationSeconds": (HUB, 3600, f"{POD}.volumes.-1.projected.sources.0.serviceAccountToken.expirationSeconds", 3600),
    "aws.secretsManagerEndpoint": (HUB, "https://sm.example", f"{CONTAINER}.env.+", variable("AWS_ENDPOINT_URL_SECRETS_MANAGER", "https://sm.example")),
    "aws.stsEndpoint": (HUB, "https://sts.example", f"{CONTAINER}.env.+", variable("AWS_ENDPOINT_URL_STS", "https://sts.example")),
    "aws.useFipsEndpoint": (HUB, True, f"{CONTAINER}.env.+", variable("AWS_USE_FIPS_ENDPOINT", "true")),
    "aws.useDualstackEndpoint": (HUB, True, f"{CONTAINER}.env.+", variable("AWS_USE_DUALSTACK_ENDPOINT", "true")),
    "config": ({"mode": "sidecar"}, SIDECAR["config"], "ConfigMap.kind", "ConfigMap"),
    "existingConfigMap": ({"mode": "sidecar"}, "mine", f"{PATCH}.spec.volumes.0.configMap.name", "mine"),
    "http.port": (HUB, 9100, f"{CONTAINER}.startupProbe.httpGet.port", 9100),
    "http.portName": (HUB, "m", f"{CONTAINER}.ports.0.name", "m"),
    "startupTimeoutSeconds": (HUB, 60, f"{CONTAINER}.startupProbe.failureThreshold", 90),
    "startupProbe": (HUB, {"periodSeconds": 1, "initialDelaySeconds": 2}, f"{CONTAINER}.startupProbe.initialDelaySeconds", 2),
    "livenessProbe": (HUB, {"periodSeconds": 7}, f"{CONTAINER}.livenessProbe.periodSeconds", 7),
    "readinessProbe": (HUB, {"periodSeconds": 7}, f"{CONTAINER}.readinessProbe.periodSeconds", 7),
    "resources": (HUB, {"limits": {"memory": "1Gi"}}, f"{CONTAINER}.resources.limits.memory", "1Gi"),
    "securityContext": (HUB, {"runAsUser": 7}, f"{CONTAINER}.securityContext.runAsUser", 7),
    "volumes.env.sizeLimit": (SIDECAR, "1Mi", f"{PATCH}.spec.volumes.1.emptyDir.sizeLimit", "1Mi"),
    "volumes.private.sizeLimit": (SIDECAR, "1Mi", f"{PATCH}.spec.volumes.2.emptyDir.sizeLimit", "1Mi"),
    "volumes.spool.sizeLimit": (SIDECAR | {"sidecar": {"spool": True}}, "1Mi", f"{PATCH}.spec.volumes.3.emptyDir.sizeLimit", "1Mi"),
    "extraArgs": (HUB, ["--log-level", "debug"], f"{CONTAINER}.args.-1", "debug"),
    "extraEnv": (HUB, [variable("A", "1")], f"{CONTAINER}.env.+", variable("A", "1")),
    "extraEnvFrom": (HUB, [{"secretRef": {"name": "a"}}], f"{CONTAINER}.envFrom.0.secretRef.name", "a"),
    "extraVolumes": (HUB, [{"name": "a", "emptyDir": {}}], f"{POD}.volumes.+", {"name": "a", "emptyDir": {}}),
    "extraVolumeMounts": (HUB, [{"name": "a", "mountPath": "/a"}], f"{CONTAINER}.volumeMounts.+", {"name": "a", "mountPath": "/a"}),
    "injection.namespaceSelector": (INJECTION, {"matchLabels": {"a": "b"}},
                                    "MutatingAdmissionPolicy.spec.matchConstraints.namespaceSelector.matchLabels", {"a": "b"}),
    "injection.wait": (INJECTION, False, "Job.-", None),
    "sidecar.containers": (SIDECAR, ["one", "two"], f"{PATCH}.spec.containers.1.name", "two"),
    "sidecar.env": (SIDECAR, ["A"], f"{PATCH}.spec.containers.0.env.0.valueFrom.fileKeyRef.key", "A"),
    "sidecar.spool": ({"mode": "sidecar", "existingConfigMap": "x"}, True, f"{PATCH}.spec.containers.0.volumeMounts.+", {"name": "keytide-spool", "mountPath": "/run/keytide/spool"}),
    "sidecar.isolateCredentials": (SIDECAR | {"sidecar": {"containers": ["a", "b"]}}, True,
                                   f"{PATCH}.metadata.annotations", {"eks.amazonaws.com/skip-containers": "a,b"}),
    "replicaCount": (HUB, 3, "Deployment.spec.replicas", 3),
    "revisionHistoryLimit": (HUB, 1, "Deployment.spec.revisionHistoryLimit", 1),
    "strategy": (HUB, {"type": "Recreate", "rollingUpdate": None}, "Deployment.spec.strategy", {"type": "Recreate"}),
    "podAnnotations": (HUB, {"a": "b"}, "Deployment.spec.template.metadata.annotations.a", "b"),
    "podLabels": (HUB, {"a": "b"}, "Deployment.spec.template.metadata.labels.a", "b"),
    "podSecurityContext": (HUB, {"fsGroup": 7}, f"{POD}.securityContext.fsGroup", 7),
    "nodeSelector": (HUB, {"a": "b"}, f"{POD}.nodeSelector.a", "b"),
    "tolerations": (HUB, [{"operator": "Exists"}], f"{POD}.tolerations", [{"operator": "Exists"}]),
    "affinity": (HUB, {"nodeAffinity": {}}, f"{POD}.affinity", {"nodeAffinity": {}}),
    "topologySpreadConstraints": (HUB, [CONSTRAINT], f"{POD}.topologySpreadConstraints", [CONSTRAINT]),
    "priorityClassName": (HUB, "high", f"{POD}.priorityClassName", "high"),
    "runtimeClassName": (HUB, "gvisor", f"{POD}.runtimeClassName", "gvisor"),
    "hostUsers": (HUB, False, f"{POD}.hostUsers", False),
    "terminationGracePeriodSeconds": (HUB, 60, f"{POD}.terminationGracePeriodSeconds", 60),
    "extraInitContainers": (HUB, [{"name": "a"}], f"{POD}.initContainers", [{"name": "a"}]),
    "extraContainers": (HUB, [{"name": "a"}], f"{POD}.containers.1", {"name": "a"}),
    "serviceAccount.create": (HUB | {"serviceAccount": {"name": "mine"}}, False, "ServiceAccount.-", None),
    "serviceAccount.name": (HUB, "mine", "ServiceAccount.metadata.name", "mine"),
    "serviceAccount.annotations": (HUB, {"eks.amazonaws.com/role-arn": ROLE}, "ServiceAccount.metadata.annotations", {"eks.amazonaws.com/role-arn": ROLE}),
    "serviceAccount.automount": (HUB, False, f"{POD}.automountServiceAccountToken", False),
    "rbac.create": (HUB, False, "Role.-", None),
    "rbac.rules": (HUB, [RULE], "Role.rules", [RULE]),
    "podDisruptionBudget.enabled": (HUB, False, "PodDisruptionBudget.-", None),
    "podDisruptionBudget.minAvailable": (HUB, 1, "PodDisruptionBudget.spec", {
        "minAvailable": 1, "selector": {"matchLabels": {f"app.kubernetes.io/{k}": v for k, v in (
            ("name", "keytide"), ("instance", "keytide"), ("component", "hub"))}}}),
    "podDisruptionBudget.maxUnavailable": (HUB, "50%", "PodDisruptionBudget.spec.maxUnavailable", "50%"),
    "service.annotations": (HUB, {"a": "b"}, "Service.metadata.annotations.a", "b"),
    "podMonitor.enabled": (INJECTION, True, "PodMonitor.spec.selector.matchLabels", {"keytide.dev/inject": "true"}),
    "podMonitor.namespace": (MONITORED, "m", "PodMonitor.metadata.namespace", "m"),
    "podMonitor.additionalLabels": (MONITORED, {"release": "p"}, "PodMonitor.metadata.labels.release", "p"),
    "podMonitor.namespaceSelector": (INJECTION | {"podMonitor": {"enabled": True}}, {"any": False, "matchNames": ["a"]},
                                     "PodMonitor.spec.namespaceSelector.matchNames", ["a"]),
    "podMonitor.selector": (MONITORED, {"matchLabels": {"a": "b"}}, "PodMonitor.spec.selector", {"matchLabels": {"a": "b"}}),
    "podMonitor.renderMode": (MONITORED, "skipIfMissing", "PodMonitor.-", None),
    "serviceMonitor.renderMode": (SCRAPED, "skipIfMissing", "ServiceMonitor.-", None),
    "prometheusRule.renderMode": (RULED, "skipIfMissing", "PrometheusRule.-", None),
    "podMonitor.interval": (MONITORED, "30s", "PodMonitor.spec.podMetricsEndpoints.0.interval", "30s"),
    "podMonitor.scrapeTimeout": (MONITORED, "5s", "PodMonitor.spec.podMetricsEndpoints.0.scrapeTimeout", "5s"),
    "podMonitor.honorLabels": (MONITORED, True, "PodMonitor.spec.podMetricsEndpoints.0.honorLabels", True),
    "podMonitor.relabelings": (MONITORED, RELABELING, "PodMonitor.spec.podMetricsEndpoints.0.relabelings", RELABELING),
    "podMonitor.metricRelabelings": (MONITORED, RELABELING, "PodMonitor.spec.podMetricsEndpoints.0.metricRelabelings", RELABELING),
    "serviceMonitor.enabled": (HUB, True, "ServiceMonitor.spec.endpoints.0.port", "keytide-metrics"),
    "serviceMonitor.namespace": (SCRAPED, "m", "ServiceMonitor.metadata.namespace", "m"),
    "serviceMonitor.additionalLabels": (SCRAPED, {"release": "p"}, "ServiceMonitor.metadata.labels.release", "p"),
    "serviceMonitor.interval": (SCRAPED, "30s", "ServiceMonitor.spec.endpoints.0.interval", "30s"),
    "serviceMonitor.scrapeTimeout": (SCRAPED, "5s", "ServiceMonitor.spec.endpoints.0.scrapeTimeout", "5s"),
    "serviceMonitor.honorLabels": (SCRAPED, True, "ServiceMonitor.spec.endpoints.0.honorLabels", True),
    "serviceMonitor.relabelings": (SCRAPED, RELABELING, "ServiceMonitor.spec.endpoints.0.relabelings", RELABELING),
    "serviceMonitor.metricRelabelings": (SCRAPED, RELABELING, "ServiceMonitor.spec.endpoints.0.metricRelabelings", RELABELING),
    "prometheusRule.enabled": (HUB, True, "PrometheusRule.spec.groups", yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"]),
    "prometheusRule.namespace": (RULED, "m", "PrometheusRule.metadata.namespace", "m"),
    "prometheusRule.additionalLabels": (RULED, {"release": "p"}, "PrometheusRule.metadata.labels.release", "p"),
    "prometheusRule.additionalGroups": (RULED, [GROUP], "PrometheusRule.spec.groups.-1", GROUP),
    "grafanaDashboard.enabled": (HUB, True, "dashboard", yaml.safe_load((CHART / "files/dashboard.json").read_text())),
    "grafanaDashboard.namespace": (SHOWN, "m", "ConfigMap/keytide-dashboard.metadata.namespace", "m"),
    "grafanaDashboard.sidecarLabel": (SHOWN, "show", "ConfigMap/keytide-dashboard.metadata.labels.show", "1"),
    "grafanaDashboard.sidecarLabelValue": (SHOWN, "yes", "ConfigMap/keytide-dashboard.metadata.labels.grafana_dashboard", "yes"),
    "grafanaDashboard.annotations": (SHOWN, {"folder": "f"}, "ConfigMap/keytide-dashboard.metadata.annotations.folder", "f"),
    "networkPolicy.enabled": (HUB, True, "NetworkPolicy.spec.policyTypes", ["Ingress", "Egress"]),
    "networkPolicy.ingressFrom": (FENCED, [PEER], "NetworkPolicy.spec.ingress.0.from", [PEER]),
    "networkPolicy.extraEgress": (FENCED, [EGRESS], "NetworkPolicy.spec.egress.+", EGRESS),
    "test.annotations": (INJECTION | {"aws": {"region": "us-east-1"}}, {"keytide.dev/primary-secret": "x"}, "Pod.metadata.annotations.keytide\\.dev/primary-secret", "x"),
    "test.serviceAccountName": (INJECTION, "tester", "Pod.spec.serviceAccountName", "tester"),
    "extraObjects": (HUB, [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "{{ .Release.Name }}-x"}}, "kind: Lease\nmetadata: {name: l}"],
                     "Secret.metadata.name", "keytide-x"),
}
#: What a value needs beside it.
NEEDS: dict[str, Object] = {
    "mode": {"config": HUB["config"]},
    "sidecar.env": {"config": {"keytide": {"outputs": [ENV_OUTPUT]}}},
    "volumes.spool.sizeLimit": {"config": {"keytide": SPOOL}},
    "aws.tokenAudience": {"aws": {"roleArn": ROLE}}, "aws.tokenExpirationSeconds": {"aws": {"roleArn": ROLE}},
}
#: Values that hold somebody else's object, of which the chart has only the default.
WHOLE = {"config", "startupProbe", "livenessProbe", "readinessProbe", "resources", "securityContext", "strategy", "podSecurityContext", "nodeSelector",
         "injection.namespaceSelector", "podMonitor.namespaceSelector"}


def leaves(values: Object, path: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        here = f"{path}{key}"
        found += leaves(value, f"{here}.") if isinstance(value, dict) and value and here not in WHOLE else [here]
    return found


def merged(*parts: Object) -> Object:
    result: Object = {}
    for part in parts:
        for key, value in part.items():
            result[key] = merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
    return result


def nested(path: str, value: Any) -> Object:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def find(objects: list[Object], where: str) -> Any:
    """What stands at a place such as `Deployment.spec.replicas`; `patch` and `dashboard` are inside a ConfigMap."""
    kind, *steps = where.replace("\\.", "\0").split(".")
    if steps == ["-"]:
        assert not [o for o in objects if o["kind"] == kind], f"there is a {kind}"
        return None
    if kind == "patch":
        at = yaml.safe_load(one(objects, "ConfigMap", "keytide-sidecar")["data"]["patch.yaml"])
    elif kind == "dashboard":
        at = yaml.safe_load(one(objects, "ConfigMap", "keytide-dashboard")["data"]["keytide.json"])
    else:
        name = kind.split("/")[1] if "/" in kind else "keytide" if kind == "ConfigMap" else None
        found = [o for o in objects if o["kind"] == kind.split("/")[0] and name in (None, o["metadata"]["name"])]
        assert found, f"no {kind} among {[(o['kind'], o['metadata']['name']) for o in objects]}"
        at = found[0]
    for step in (step.replace("\0", ".") for step in steps):
        if step == "+":
            return at
        at = at[int(step)] if isinstance(at, list) else at[step]
    return at


def test_every_value_is_tried_here() -> None:
    assert sorted(EFFECTS) == sorted(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))


@pytest.mark.parametrize("value", EFFECTS)
def test_a_value_does_what_it_says(value: str, render: Render) -> None:
    beside, to, where, expected = EFFECTS[value]
    beside = merged(beside, NEEDS.get(value, {}))
    seen = find(render(merged(beside, nested(value, to))), where)
    if where.endswith("+"):
        assert expected in seen, seen
        assert expected not in find(render(beside), where), "it was there before"
    else:
        assert seen == expected


# === Defaults


def test_whatever_is_not_needed_is_off(render: Render) -> None:
    kinds = lambda values: sorted({o["kind"] for o in render(values, "--no-hooks")})  # noqa: E731
    policies = ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"]
    assert kinds({}) == policies, "injection runs nothing and grants nothing"
    assert kinds({"mode": "sidecar"}) == ["ConfigMap"]
    assert kinds(HUB) == ["ConfigMap", "Deployment", "Lease", "PodDisruptionBudget", "Role", "RoleBinding", "Service", "ServiceAccount"]


def test_the_startup_probe_outlasts_the_startup_timeout(render: Render, tmp_path: Path) -> None:
    for said, seconds in ({"5m": 300, "90s": 90, "1h": 3600, "1h30m": 5400, "1h 1m 1s": 3661, "90500ms": 91, "1.5m": 90, "1m 0.2s": 61}).items():
        config = merged(HUB, nested("config.keytide.refresh.startup_timeout", said))
        probe = find(render(config), f"{CONTAINER}.startupProbe")
        assert probe["failureThreshold"] * probe["periodSeconds"] == seconds + 30
        assert probe["httpGet"]["path"] == "/startupz"
        assert check(find(render(config), "ConfigMap.data")["keytide.yaml"], {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": "/x"}, tmp_path)
    probe = find(render(HUB | {"startupProbe": {"periodSeconds": 10}}), f"{CONTAINER}.startupProbe")
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 330


def test_the_hub_survives_the_loss_of_a_node_and_a_drain(render: Render) -> None:
    objects = render(HUB)
    assert find(objects, "Deployment.spec.replicas") == 2
    selector = find(objects, "Deployment.spec.selector")
    assert find(objects, "PodDisruptionBudget.spec.selector") == selector
    assert [c["labelSelector"] for c in find(objects, f"{POD}.topologySpreadConstraints")] == [selector] * 2
    assert find(objects, "Service.spec.selector") == selector["matchLabels"]
    assert selector["matchLabels"].items() <= find(objects, "Deployment.spec.template.metadata.labels").items()
    test = one(objects, "Pod", "keytide-test")["metadata"]["labels"]
    assert not selector["matchLabels"].items() <= test.items(), "the test's pod counts as one of the hub"


def test_a_port_of_ones_own_is_the_one_that_keytide_opens(render: Render, tmp_path: Path) -> None:
    config = find(render(merged(HUB, {"http": {"port": 9100}})), "ConfigMap.data")["keytide.yaml"]
    assert yaml.safe_load(config)["keytide"]["http"]["listen"] == "[::]:9100"


@pytest.mark.parametrize(("values", "timeout", "failures"), [
    ({}, None, 330),
    ({"startupTimeoutSeconds": 60}, "60s", 90),
    ({"startupTimeoutSeconds": 60, "config": {"keytide": {"refresh": {"startup_timeout": "2m"}}}}, "2m", 150),
    ({"startupTimeoutSeconds": 60, "startupProbe": {"periodSeconds": 7}}, "60s", 13),
    ({"startupTimeoutSeconds": 60, "startupProbe": {"periodSeconds": None}}, "60s", 9),
], ids=["default", "value", "configuration", "period", "no period"])
def test_the_startup_probe_waits_for_as_long_as_keytide_may_take(
    values: Object, timeout: str | None, failures: int, render: Render, tmp_path: Path,
) -> None:
    for mode, container in ((HUB, CONTAINER), (SIDECAR, f"{PATCH}.spec.initContainers.0")):
        objects = render(merged(mode, values))
        config = find(objects, "ConfigMap.data")["keytide.yaml"]
        assert yaml.safe_load(config)["keytide"].get("refresh", {}).get("startup_timeout") == timeout
        assert check(config, environment_of(find(objects, container)), tmp_path).rstrip().endswith("\nvalid")
        assert find(objects, f"{container}.startupProbe.failureThreshold") == failures


@pytest.mark.parametrize("null", [
    {"http": None}, {"refresh": None}, {"http": {"listen": None}, "refresh": {"startup_timeout": None}}, {"reload": None}, {"spool": None, "virtual_keys": None},
    {"outputs": [{"kubernetes_secret": {"name": "app-keys", "lease": None}}]},
], ids=["http", "refresh", "their members", "reload", "spool", "lease"])
def test_what_is_null_in_the_configuration_is_not_said(null: Object, render: Render, tmp_path: Path) -> None:
    for values in (HUB, HUB | {"http": {"port": 9100}, "startupTimeoutSeconds": 60}):
        objects = render(merged(values, {"config": {"keytide": null}}))
        assert check(find(objects, "ConfigMap.data")["keytide.yaml"], environment_of(find(objects, CONTAINER)), tmp_path).rstrip().endswith("\nvalid")
        assert [o for o in objects if o["kind"] != "ConfigMap"] == [o for o in render(values) if o["kind"] != "ConfigMap"]
    with pytest.raises(Refused) as refusal:
        render({"mode": "hub", "config": {"keytide": None}})
    assert "has no kubernetes_secret" in str(refusal.value)
    assert render({"mode": "sidecar", "config": {"keytide": None}, "http": {"port": 9100}})


@pytest.mark.parametrize("taken", [
    "commonLabels", "commonAnnotations", "podLabels", "podAnnotations", "test.annotations", "networkPolicy", "serviceMonitor", "podDisruptionBudget.minAvailable",
])
@pytest.mark.parametrize("values", [INJECTION, SIDECAR, HUB], ids=["injection", "sidecar", "hub"])
def test_a_value_that_is_taken_away_is_as_one_that_is_empty(values: Object, taken: str, render: Render) -> None:
    assert render(merged(values, nested(taken, None))) == render(values)


@pytest.mark.parametrize("mode", ["injection", "sidecar"])
def test_a_configuration_that_is_taken_away_is_none(mode: str, render: Render) -> None:
    assert render({"mode": mode, "config": None}) == render({"mode": mode})


@pytest.mark.parametrize("path", ["/run/keytide/spool", "/run/keytide/spool/", "/run/keytide/spool/in"])
def test_a_volume_of_ones_own_is_as_good_for_the_spool(path: str, render: Render) -> None:
    own = {"extraVolumes": [{"name": "s", "emptyDir": {}}], "extraVolumeMounts": [{"name": "s", "mountPath": path}]}
    assert render(merged(SIDECAR, {"config": {"keytide": SPOOL}}, own))
    assert render(merged(SIDECAR, {"config": {"keytide": {"spool": {"directory": "/data/in"}}}}))


def test_no_label_is_there_twice_and_the_charts_own_win(template: Callable[..., str]) -> None:
    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"{sorted(k for k in keys if keys.count(k) > 1)} twice in line {node.start_mark.line}"
            return super().construct_mapping(node, deep)

    labels = {name: "mine" for name in ("helm.sh/chart", "app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component", "keytide.dev/inject")}
    annotations = {"kubectl.kubernetes.io/default-container": "mine"}
    for values in (HUB | {"podMonitor": {"enabled": True, "additionalLabels": labels | {"team": "edge"}}}, INJECTION):
        text = template(values | {"commonLabels": labels | {"team": "core"}, "podLabels": labels | {"team": "edge"}, "podAnnotations": annotations})
        objects = [o for o in yaml.load_all(text, Strict) if o]
        assert {o["metadata"]["labels"]["app.kubernetes.io/name"] for o in objects} == {"keytide"}
        assert {o["metadata"]["labels"]["team"] for o in objects if o["kind"] != "PodMonitor"} == {"core"}
        if values["mode"] == "hub":
            pod = find(objects, "Deployment.spec.template.metadata")
            assert find(objects, "Deployment.spec.selector.matchLabels").items() <= pod["labels"].items()
            assert pod["labels"]["team"] == find(objects, "PodMonitor.metadata.labels.team") == "edge"
            assert pod["annotations"]["kubectl.kubernetes.io/default-container"] == "mine"
        else:
            assert one(objects, "Pod")["metadata"]["labels"]["keytide.dev/inject"] == "true"


def test_a_release_scrapes_what_is_its_own(render: Render) -> None:
    monitor = lambda values: find(render(values | {"podMonitor": {"enabled": True}}, "--namespace", "here"), "PodMonitor.spec.namespaceSelector")  # noqa: E731
    assert monitor(INJECTION) == {"any": True}
    assert monitor(SIDECAR) == monitor(HUB) == {"matchNames": ["here"]}


def test_annotations_for_injection_change_no_test_of_another_mode(render: Render) -> None:
    annotations = {"test": {"annotations": {"keytide.dev/primary-secret": "x"}}}
    assert render({"mode": "sidecar"} | annotations) == render({"mode": "sidecar"})


# === The Role


@pytest.mark.parametrize(("outputs", "reload"), [
    ([{"name": "app-keys"}], []),
    ([{"name": "a", "lease": "mine"}, {"name": "b", "create": False}, {"name": "c", "create": True}], []),
    ([{"name": "b", "create": False}], [{"deployment": "z"}, {"deployment": "a"}, {"statefulset": "s"}, {"daemonset": "d"}]),
    ([{"name": "app-keys"}], [{"deployment": "a", "outputs": ["kubernetes_secret"]}, {"deployment": "a", "name": "again"}]),
], ids=["one", "several", "workloads", "twice"])
def test_the_role_is_what_keytide_prints(outputs: list[Object], reload: list[Object], render: Render, tmp_path: Path) -> None:
    config = {"aws": {"region": "us-east-1"}, "primary_secret": {"name": "app/keys"},
              "outputs": [{"kubernetes_secret": o} for o in outputs], "reload": [{"rollout": r} for r in reload]}
    objects = render({"mode": "hub", "config": {"keytide": config}})
    file = tmp_path / "keytide.yaml"
    file.write_text(find(objects, "ConfigMap.data")["keytide.yaml"])
    assert find(objects, "Role.rules") == yaml.safe_load(keytide("policy", "--kubernetes", "--config", file))["rules"]
    assert not [o for o in objects if o["kind"].startswith("ClusterRole")]
    # What an uninstall removes is what the hub holds.
    leases = {o["metadata"]["name"]: o for o in objects if o["kind"] == "Lease"}
    assert list(leases) == next(r["resourceNames"] for r in find(objects, "Role.rules") if r["resources"] == ["leases"])
    assert not [o for o in leases.values() if "spec" in o], "who holds it is not the chart's"


# === Configurations


@pytest.mark.parametrize("example", sorted(p.name for p in EXAMPLES.glob("*.yaml") if p.name not in ("monitoring.yaml", "injection.yaml")))
def test_keytide_accepts_the_configuration_of_an_example(example: str, render: Render, tmp_path: Path) -> None:
    objects = render(EXAMPLES / example)
    config = find(objects, "ConfigMap.data")["keytide.yaml"]
    deployed = [o for o in objects if o["kind"] == "Deployment"]
    container = find(objects, CONTAINER) if deployed else find(objects, f"{PATCH}.spec.initContainers.0")
    assert check(config, environment_of(container), tmp_path).rstrip().endswith("\nvalid")


def test_keytide_accepts_the_configuration_of_the_test_without_aws(render: Render, tmp_path: Path) -> None:
    for values in ({"mode": "injection"}, {"mode": "sidecar"}):
        objects = render(values)
        config = one(objects, "ConfigMap", "keytide-test")["data"]["keytide.yaml"]
        assert check(config, {}, tmp_path).rstrip().endswith("\nvalid")


# === What is refused

IMPOSSIBLE: list[tuple[str, Object, str]] = [
    ("an unknown value", {"replicas": 3}, "replicas"),
    ("an unknown mode", {"mode": "webhook"}, "mode"),
    ("a number as a text", {"aws": {"region": 1}}, "region"),
    ("no region", {"aws": {"region": "Frankfurt"}}, "region"),
    ("no role", {"aws": {"roleArn": "app', x: '"}}, "roleArn"),
    ("root", {"securityContext": {"runAsUser": 0}}, "runAsUser"),
    ("a port that is not keytide's", {"http": {"port": 80}}, "port"),
    ("a port's name that is too long", {"http": {"portName": "keytide-metrics2"}}, "portName"),
    ("a digest that is none", {"image": {"digest": "latest"}}, "digest"),
    ("a grace period in which nothing is stored", {"terminationGracePeriodSeconds": 5}, "terminationGracePeriodSeconds"),
    ("a setting that keytide does not have", {"mode": "hub", "config": {"keytide": {"outputz": []}}}, "outputz"),
    ("a setting of the wrong type", {"mode": "hub", "config": {"keytide": {"outputs": "x"}}}, "outputs"),
    ("no configuration", {"mode": "hub"}, "mode hub needs a configuration"),
    ("a hub that writes files", {"mode": "hub", "config": {"keytide": {"primary_secret": {"name": "x"}}}}, "has no kubernetes_secret"),
    ("rights that cannot be known", {"mode": "hub", "existingConfigMap": "x"}, "rbac.rules is empty"),
    ("two configurations", merged(SIDECAR, {"existingConfigMap": "x"}), "are both set"),
    ("a configuration for everybody", {"config": SIDECAR["config"]}, "are for the modes sidecar and hub"),
    ("two ports", merged(HUB, nested("config.keytide.http.listen", "[::]:9100")), "set http.port to the same port"),
    ("an odd duration", merged(HUB, nested("config.keytide.refresh.startup_timeout", "PT5M")), "reads hours, minutes, seconds and milliseconds"),
    ("variables of a file that is not written", merged(SIDECAR, nested("sidecar.env", ["A", "B"])), "format: kubernetes, keys: [A, B]}"),
    ("a spool that is not read", merged(SIDECAR, nested("sidecar.spool", True)), "spool: {directory: /run/keytide/spool/in}"),
    ("a spool without a volume", merged(SIDECAR, {"config": {"keytide": SPOOL}}), "set sidecar.spool to true"),
    ("a spool of nobody", merged(HUB, {"config": {"keytide": {"spool": {"plain_files": True}}}}), "or take mode sidecar"),
    ("a Service that there is not", INJECTION | {"serviceMonitor": {"enabled": True}}, "enable podMonitor"),
    ("a fence around others' pods", SIDECAR | {"networkPolicy": {"enabled": True}}, "which is yours"),
    ("a hub elsewhere", merged(MONITORED, {"podMonitor": {"namespaceSelector": {"any": True}}}), "the hub's pods are in the hub's namespace"),
    ("variables for everybody", INJECTION | {"sidecar": {"env": ["A"]}}, "keytide.dev/env"),
    ("a spool for everybody", INJECTION | {"sidecar": {"spool": True}}, "keytide.dev/spool"),
    ("isolation for everybody", INJECTION | {"sidecar": {"isolateCredentials": True}}, "keytide.dev/isolate-credentials"),
    ("containers of everybody", INJECTION | {"sidecar": {"containers": ["a"]}}, "keytide.dev/containers"),
    ("a startup probe that must succeed twice", {"startupProbe": {"successThreshold": 2}}, "startupProbe/successThreshold"),
    ("a liveness probe that must succeed twice", {"livenessProbe": {"successThreshold": 2}}, "livenessProbe/successThreshold"),
    ("a readiness probe that ends a container", {"readinessProbe": {"terminationGracePeriodSeconds": 9}}, "terminationGracePeriodSeconds"),
    ("a budget of nothing", merged(HUB, {"podDisruptionBudget": {"maxUnavailable": ""}}), "neither minAvailable nor maxUnavailable"),
    ("the hub's rights for everybody", merged(HUB, nested("serviceAccount.create", False)), "name one"),
    ("a test that no pod could pass", {"test": {"annotations": {"keytide.dev/primary-secret": "x"}}}, "set aws.region"),
    ("two scrapes", merged(MONITORED, SCRAPED), "scraped twice"),
    ("endpoints of one's own and AWS's", {"aws": {"stsEndpoint": "https://sts.example", "useFipsEndpoint": True}}, "refuses both together"),
]


@pytest.mark.parametrize(("values", "says"), [case[1:] for case in IMPOSSIBLE], ids=[case[0] for case in IMPOSSIBLE])
def test_what_cannot_be_meant_is_refused(values: Object, says: str, render: Render) -> None:
    with pytest.raises(Refused) as refusal:
        render(values)
    assert says in str(refusal.value)


def test_a_cluster_without_the_policy_api_is_refused_with_the_way_out(render: Render) -> None:
    with pytest.raises(Refused) as refusal:
        render({}, "--kube-version", "1.35.0")
    assert "--set mode=sidecar" in str(refusal.value) and "Kubernetes has it from 1.36 on" in str(refusal.value)
    # As an older cluster says it that has the API turned on, and as a newer one in which it is turned off.
    assert render({}, "--kube-version", "1.35.0", "--api-versions", "v1/Pod,admissionregistration.k8s.io/v1/MutatingAdmissionPolicy")
    with pytest.raises(Refused):
        render({}, "--api-versions", "v1/Pod")
    for mode in (SIDECAR, HUB):
        assert render(mode, "--kube-version", "1.29.0")
        with pytest.raises(Refused):
            render(mode, "--kube-version", "1.28.0")
    variables = merged(SIDECAR, NEEDS["sidecar.env"], nested("sidecar.env", ["A"]))
    assert render(variables, "--kube-version", "1.35.0")
    with pytest.raises(Refused) as refusal:
        render(variables, "--kube-version", "1.34.9")
    assert "fileKeyRef" in str(refusal.value)


@pytest.mark.parametrize(("name", "values"), [("podMonitor", MONITORED), ("serviceMonitor", SCRAPED), ("prometheusRule", RULED)])
def test_what_a_cluster_without_prometheus_operator_gets_is_chosen(name: str, values: Object, render: Render) -> None:
    kind = name[0].upper() + name[1:]
    there = ("--api-versions", f"v1/Pod,monitoring.coreos.com/v1/{kind}")
    for mode in ("alwaysRender", "failIfMissing", "skipIfMissing"):
        assert kind in [o["kind"] for o in render(merged(values, nested(f"{name}.renderMode", mode)), *there)]
    with pytest.raises(Refused) as refusal:
        render(merged(values, nested(f"{name}.renderMode", "failIfMissing")))
    assert f"this cluster does not have monitoring.coreos.com/v1/{kind}" in str(refusal.value)


def test_keytide_accepts_the_lines_that_a_refusal_asks_for(render: Render, tmp_path: Path) -> None:
    objects = render(merged(SIDECAR, {"config": {"keytide": {"outputs": [ENV_OUTPUT]} | SPOOL}, "sidecar": {"env": ["A"], "spool": True}}))
    said = check(find(objects, "ConfigMap.data")["keytide.yaml"], environment_of(find(objects, f"{PATCH}.spec.initContainers.0")), tmp_path)
    assert said.rstrip().endswith("\nvalid")
