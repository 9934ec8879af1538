"""What is generated is as it would be generated now, and Helm finds nothing to say."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from conftest import CHART, EXAMPLES, ROOT, Refused, helm, run


def test_what_is_generated_is_current() -> None:
    run(sys.executable, ROOT / "tests/chart/generate.py", "--check", environment=dict(os.environ))


@pytest.mark.parametrize("example", sorted(p.name for p in EXAMPLES.glob("*.yaml")))
def test_helm_lint_has_nothing_to_say(example: str) -> None:
    base = ["--values", EXAMPLES / "injection.yaml"] if example == "monitoring.yaml" else []
    said = helm("lint", "--strict", CHART, *base, "--values", EXAMPLES / example)
    assert not [line for line in said.splitlines() if line.startswith("[")], said


def test_every_value_has_a_place_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(yaml.safe_load((CHART / "values.yaml").read_text())) | {"global"} == set(schema["properties"])
    loose = [name for name, part in schema["properties"].items() if "properties" in part and part.get("additionalProperties") is not False]
    assert loose == ["config", "securityContext"], "these take members that they do not know"


def test_the_package_holds_what_it_needs(tmp_path: Path) -> None:
    helm("package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("keytide-*.tgz")
    names, _ = run("tar", "--list", "--file", package)
    assert {"keytide/values.schema.json", "keytide/README.md", "keytide/files/alerts.yaml", "keytide/files/dashboard.json"} <= set(names.split())
    assert not [name for name in names.split() if "examples/" in name or name.endswith(".gotmpl")]
    assert helm("template", "x", package, "--kube-version", "1.36.0").count("kind: MutatingAdmissionPolicy\n") == 1
    with pytest.raises(Refused):
        helm("template", "x", package, "--kube-version", "1.36.0", "--set", "mode=none")
