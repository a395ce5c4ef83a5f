"""What `deploy/` holds is valid, and speaks of metrics, options and routes that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from worldpm.serving.prometheus import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMTOOL = shutil.which("promtool")


def metric_names() -> set[str]:
    metrics = Metrics()
    metrics.watch_queue(lambda: 0, lambda: 0)
    return {
        match.removesuffix("_created")
        for match in re.findall(r"^# TYPE (\w+) ", metrics.page().decode(), re.MULTILINE)
    }


@pytest.mark.parametrize("name", ["alerts.yml", "grafana/dashboard.json"])
def test_every_metric_that_is_asked_for_is_told(name: str) -> None:
    asked = set(re.findall(r"worldpm_\w+", (DEPLOY / name).read_text()))
    assert asked
    assert {re.sub(r"_(bucket|sum|count)$", "", one) for one in asked} <= metric_names()


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    assert all(panel["targets"] and panel["title"] for panel in dashboard["panels"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_kubernetes_knows_the_manifests() -> None:
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "worldpm.yaml").read_text()))
    for manifest in found:
        kubernetes_validate.validate(manifest, "1.33", strict=True)
    assert {manifest["kind"] for manifest in found} == {
        "StatefulSet",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
    }


def test_files_that_others_name_are_there() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    mounts = [
        mount
        for service in compose["services"].values()
        for mount in service["volumes"]
        if mount.startswith("./")
    ]
    assert mounts
    assert all((DEPLOY / mount.split(":")[0]).is_file() for mount in mounts)
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert all((DEPLOY.parent / name).exists() for line in copied for name in line.split())


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on the path")
def test_promtool_takes_the_rules() -> None:
    for words in (("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")):
        done = subprocess.run(
            [str(PROMTOOL), *words], cwd=DEPLOY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
