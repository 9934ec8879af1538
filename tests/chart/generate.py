"""Writes what is generated of the chart and of deploy/: the chart's README, the part of its schema that is keytide's own, the
manifests for those who do not use Helm, and IAM's policies: `KEYTIDE_GENERATE=1 ./tests/run chart`. `--check` only says what differs."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/keytide"
EXAMPLES = CHART / "examples"
DEPLOY = ROOT / "deploy"
CONSUMER = ROOT / "tests/chart/consumer"

NOTICE = "# Made from helm/keytide by tests/chart/generate.py: KEYTIDE_GENERATE=1 ./tests/run chart\n"


def run(*command, **options):
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr or done.stdout}")
    return done.stdout


def keytide(*arguments):
    # Without the credentials, proxies and certificates of whoever runs this.
    return run(os.environ["KEYTIDE_BINARY"], *arguments, env={})


def schema():
    """The chart's schema, with that of a configuration as `config`."""
    whole = json.loads((CHART / "values.schema.json").read_text())
    config = json.loads(keytide("schema", "config"))
    whole["$defs"] = config["$defs"]
    whole["properties"]["config"] = {key: config[key] for key in ("type", "properties")}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def readme():
    text = run(os.environ["KEYTIDE_HELM_DOCS"], "--chart-search-root", CHART, "--dry-run", "--log-level", "error",
               "--sort-values-order", "file")
    if not text:
        sys.exit("helm-docs wrote nothing: it says why with --log-level info")
    silent = re.findall(r"^\| (\S+) \|.*\| +\|$", text, flags=re.MULTILINE)
    if silent:
        sys.exit(f"values.yaml does not say what these values are: {', '.join(silent)}")
    return text


def manifests(chart, namespace, *values):
    """What Helm would install, without what only Helm needs."""
    arguments = [word for file in values for word in ("--values", file)]
    text = run(os.environ["KEYTIDE_HELM"], "template", "keytide", chart, "--namespace", namespace, "--skip-tests",
               "--set", "injection.wait=false", "--kube-version", "1.36.0", *arguments)
    text = re.sub(r"^# Source: .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^ *(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", "", text, flags=re.MULTILINE)
    return NOTICE + re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def consumer():
    """The chart of somebody who uses this one, with it."""
    with tempfile.TemporaryDirectory() as directory:
        chart = Path(directory) / "my-app"
        shutil.copytree(CONSUMER, chart)
        shutil.copytree(CHART, chart / "charts/keytide")
        return manifests(chart, "my-app")


def policies():
    """IAM's documents for the hub of deploy/kubernetes/hub.yaml."""
    text = (DEPLOY / "kubernetes/hub.yaml").read_text()
    found = re.search(r"^  keytide\.yaml: \|\n((?:    .*\n)+)", text, flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "keytide.yaml"
        config.write_text("".join(line[4:] for line in found[1].splitlines(keepends=True)))
        common = ("policy", "--config", config, "--account", "123456789012")
        provider = "https://oidc.eks.us-east-1.amazonaws.com/id/EXAMPLE"
        for name, arguments in {
            "permissions": (),
            "irsa-trust": ("--oidc-provider", provider, "--service-account", "my-app:keytide"),
            "pod-identity-trust": (),
        }.items():
            yield DEPLOY / f"iam/{name}.json", keytide(*common, "--document", name, *arguments)


def generated():
    yield CHART / "values.schema.json", schema()
    yield CHART / "README.md", readme()
    yield DEPLOY / "kubernetes/injection.yaml", manifests(CHART, "keytide", EXAMPLES / "injection.yaml")
    yield DEPLOY / "kubernetes/hub.yaml", manifests(CHART, "my-app", EXAMPLES / "hub-irsa.yaml")
    yield DEPLOY / "kubernetes/sidecar.yaml", consumer()
    yield from policies()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path, text in generated():
        if not path.exists() or path.read_text() != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                print(f"wrote {path.relative_to(ROOT)}")
    if check and stale:
        sys.exit(f"not as tests/chart/generate.py writes it; KEYTIDE_GENERATE=1 ./tests/run chart does: {', '.join(stale)}")


if __name__ == "__main__":
    main()
