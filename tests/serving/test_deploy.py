"""The files of `deploy/` are valid and name metrics, options and routes that exist."""

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
def test_every_metric_in_a_file_exists(name: str) -> None:
    metrics = set(re.findall(r"worldpm_\w+", (DEPLOY / name).read_text()))
    assert metrics
    assert {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in metrics} <= metric_names()


def test_the_panels_of_the_dashboard_are_complete_and_distinct() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    assert all(panel["targets"] and panel["title"] for panel in dashboard["panels"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_kubernetes_knows_the_manifests() -> None:
    manifests = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "worldpm.yaml").read_text()))
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.33", strict=True)

    assert {manifest["kind"] for manifest in manifests} == {
        "StatefulSet",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
    }


def test_mounted_and_copied_files_exist() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    volumes = [volume for service in compose["services"].values() for volume in service["volumes"]]
    mounts = [volume for volume in volumes if volume.startswith("./")]
    assert mounts
    assert all((DEPLOY / mount.split(":")[0]).is_file() for mount in mounts)

    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    names = " ".join(copied).split()
    assert all((DEPLOY.parent / name).exists() for name in names)


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on the path")
def test_promtool_takes_the_rules() -> None:
    commands = (("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml"))
    for command in commands:
        done = subprocess.run(
            [str(PROMTOOL), *command], cwd=DEPLOY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
