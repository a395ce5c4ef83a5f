"""The files of `deploy/` are valid, and name only metrics, options, fields and files that exist."""

import json
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import tyro
import yaml
from packaging.requirements import Requirement

from tests.serving.test_serve import process
from worldpm.cli import VERBS
from worldpm.serving.prometheus import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
ELASTIC = DEPLOY / "elastic"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PROMTOOL = shutil.which("promtool")
IMAGE = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux"}
"""Variables of markers in requirements.lock, with the values of the image."""
IMPERATIVES = "Add|Check|Compare|Look"
"""First words of the instruction in a summary."""
MAPPING_TYPES = {"constant_keyword", "date", "keyword", "long", "match_only_text", "wildcard"}
"""The types of Elasticsearch that fit a log."""


def read_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def metric_names() -> set[str]:
    metrics = Metrics()
    metrics.watch_queue(lambda: 0, lambda: 0)
    metrics.watch_service(lambda: True, lambda: 0)
    metrics.watch_replicas(lambda: 0, lambda: 0)
    return {
        match.removesuffix("_created")
        for match in re.findall(r"^# TYPE (\w+) ", metrics.page().decode(), re.MULTILINE)
    }


@pytest.mark.parametrize("name", ["alerts.yml", "alerts_test.yml", "grafana/dashboard.json"])
def test_every_metric_in_a_file_exists(name: str) -> None:
    metrics = set(re.findall(r"worldpm_\w+", (DEPLOY / name).read_text()))
    assert metrics
    assert {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in metrics} <= metric_names()


def test_the_panels_of_the_dashboard_are_complete_and_distinct() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    assert all(panel["targets"] and panel["title"] for panel in dashboard["panels"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def alerts() -> list[Any]:
    rules = [rule for group in read_yaml("alerts.yml")["groups"] for rule in group["rules"]]
    return [rule for rule in rules if "alert" in rule]


def test_every_alert_has_a_firing_and_a_quiet_test() -> None:
    tests = read_yaml("alerts_test.yml")["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    firing = {case["alertname"] for case in cases if case["exp_alerts"]}
    quiet = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert firing == quiet == {rule["alert"] for rule in alerts()}


def test_every_summary_has_an_instruction() -> None:
    for rule in alerts():
        summary = rule["annotations"]["summary"]
        assert re.fullmatch(rf".+\. ({IMPERATIVES})\b.+\.", summary), rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on the path")
def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    copy, key = tmp_path / "deploy", tmp_path / "worldpm.key"
    shutil.copytree(DEPLOY, copy)
    key.write_text("secret")
    commands = (
        ("check", "config", "prometheus.yml"),
        ("check", "config", "kubernetes/prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    )
    for command in commands:
        file = copy / command[-1]
        # promtool checks that the key file exists, and some builds do not support Kubernetes
        content = file.read_text().replace("/etc/prometheus/worldpm.key", str(key))
        content = content.replace("kubernetes_sd_configs: [{ role: pod }]", "static_configs: []")
        file.write_text(content)
        done = subprocess.run(
            [str(PROMTOOL), *command], cwd=copy, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def manifests(kind: str | None = None) -> list[Any]:
    """All Kubernetes objects, or all of one kind."""
    objects = [item for file in MANIFESTS for item in yaml.safe_load_all(file.read_text())]
    return [item for item in objects if kind is None or item["kind"] == kind]


def pods() -> list[Any]:
    """The templates of all pods."""
    specs = [item["spec"] for item in manifests() if "spec" in item]
    # A CronJob contains a Job template, which contains the pod template
    specs = [spec.get("jobTemplate", {"spec": spec})["spec"] for spec in specs]
    return [spec["template"] for spec in specs if "template" in spec]


def containers() -> list[Any]:
    return [container for pod in pods() for container in pod["spec"]["containers"]]


def test_the_manifests_match_the_schemas_of_kubernetes() -> None:
    for manifest in manifests():
        kubernetes_validate.validate(manifest, "1.33", strict=True)

    kinds = {
        file.stem: {item["kind"] for item in yaml.safe_load_all(file.read_text())}
        for file in MANIFESTS
    }
    server = {"StatefulSet", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    assert kinds == {
        "worldpm": {*server, "PersistentVolumeClaim"},
        "network": {"NetworkPolicy"},
        "jobs": {"CronJob", "PersistentVolumeClaim"},
        "webhook": {"ServiceAccount", "Role", "RoleBinding", "Deployment", "Service"},
    }


def patched() -> list[Any]:
    """The objects of the server with the JSON patches of `gpu/`."""
    recipe = read_yaml("kubernetes/gpu/kustomization.yaml")
    objects = [
        item
        for name in recipe["resources"]
        for item in yaml.safe_load_all((DEPLOY / "kubernetes/gpu" / name).read_text())
    ]
    for entry in recipe["patches"]:
        (item,) = [
            item
            for item in objects
            if entry["target"] == {"kind": item["kind"], "name": item["metadata"]["name"]}
        ]
        for change in yaml.safe_load(entry["patch"]):
            *parents, last = change["path"].strip("/").split("/")
            target = item
            for parent in parents:
                target = target[int(parent) if isinstance(target, list) else parent]
            if last == "-":
                target.append(change["value"])
            else:
                assert (change["op"] == "replace") == (last in target)
                target[last] = change["value"]
    return objects


def test_the_server_on_gpus_matches_the_schemas_and_scales_by_its_queue() -> None:
    objects = {item["kind"]: item for item in patched()}
    for item in objects.values():
        kubernetes_validate.validate(item, "1.33", strict=True)

    (container,) = objects["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    options = tyro.cli(VERBS["serve"].options, args=container["args"][1:])
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert getattr(options, "replicas", None) == gpus == 8

    (metric,) = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    target = int(metric["pods"]["target"]["averageValue"])
    assert 4 * target == getattr(options, "queue_tokens", None)
    # The adapter gives this metric, with labels that the scrape job adds
    (rule,) = read_yaml("kubernetes/gpu/prometheus-adapter.yml")["rules"]
    name = metric["pods"]["metric"]["name"]
    assert name == rule["name"]["matches"]
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert name in metric_names()
    (job,) = read_yaml("kubernetes/prometheus.yml")["scrape_configs"]
    added = {change.get("target_label") for change in job["relabel_configs"]}
    assert set(rule["resources"]["overrides"]) <= added


def test_every_volume_of_a_pod_exists_and_secrets_are_for_its_group_only() -> None:
    claims = {item["metadata"]["name"] for item in manifests("PersistentVolumeClaim")}
    (server,) = manifests("StatefulSet")
    claimed = {item["metadata"]["name"] for item in server["spec"]["volumeClaimTemplates"]}
    for pod in pods():
        volumes = pod["spec"]["volumes"]
        names = {volume["name"] for volume in volumes}
        for container in pod["spec"]["containers"]:
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert names <= mounted <= names | claimed
        for volume in volumes:
            assert volume.get("secret", {}).get("defaultMode", 0o400) == 0o400
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or claim in claims
        assert pod["spec"]["securityContext"]["fsGroup"]


def test_every_path_of_a_container_is_below_a_mount() -> None:
    paths = [
        (word.partition("=")[2] or word, container)
        for container in containers()
        for word in container["args"]
    ]
    absolute = [(path, container) for path, container in paths if path.startswith("/")]
    assert absolute
    for path, container in absolute:
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert any(path.startswith(f"{mount}/") for mount in mounts), path


def test_a_network_policy_selects_every_pod_and_every_event_has_a_receiver() -> None:
    selected = [
        policy["spec"]["podSelector"]["matchLabels"] for policy in manifests("NetworkPolicy")
    ]
    assert all(pod["metadata"]["labels"] in selected for pod in pods())

    services = {item["metadata"]["name"] for item in manifests("Service")}
    words = [word for container in containers() for word in container["args"]]
    urls = [word.removeprefix("--webhook=") for word in words if word.startswith("--webhook=")]
    assert {httpx.URL(url).host for url in urls} == {"worldpm-webhook"} <= services


def test_the_receiver_may_start_the_job_that_it_names() -> None:
    (receiver,) = manifests("Deployment")
    (role,) = manifests("Role")
    words = receiver["spec"]["template"]["spec"]["containers"][0]["args"]
    (job,) = [word.removeprefix("--from=cronjob/") for word in words if "cronjob/" in word]
    suspended = [
        item["metadata"]["name"] for item in manifests("CronJob") if item["spec"].get("suspend")
    ]
    assert suspended == [job] == role["rules"][0]["resourceNames"]


def command_lines() -> Iterator[Any]:
    """Arguments of every `worldpm` command in the files, as cases with a name."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["worldpm"]' in dockerfile
    (words,) = re.findall(r"^CMD (.+)$", dockerfile, re.MULTILINE)
    yield pytest.param(json.loads(words), id="Dockerfile")
    for file in sorted(DEPLOY.glob("compose*.yaml")):
        yield pytest.param(read_yaml(file.name)["services"]["worldpm"]["command"], id=file.name)
    for pod in pods():
        for container in pod["spec"]["containers"]:
            if container["image"].startswith("worldpm:"):
                yield pytest.param(container["args"], id=f"kubernetes {container['args'][0]}")
    for file in [*MANIFESTS, *DEPLOY.glob("*.yaml")]:
        comments = re.findall(r"^ *#.* worldpm ((?:log|fairness) .+)$", file.read_text(), re.M)
        for number, comment in enumerate(comments):
            yield pytest.param(shlex.split(comment), id=f"{file.name} comment {number}")


@pytest.mark.parametrize("words", list(command_lines()))
def test_every_command_line_has_options_that_exist(words: list[str]) -> None:
    tyro.cli(VERBS[words[0]].options, args=words[1:])


@pytest.mark.parametrize("words", list(command_lines()))
def test_the_image_has_the_extras_of_every_command_line(words: list[str]) -> None:
    (recipe,) = re.findall(
        r"--upgrade (.* --extra .*) --generate", (DEPLOY.parent / "Makefile").read_text()
    )
    assert set(VERBS[words[0]].extra.split(",")) <= {"", *re.findall(r"--extra (\w+)", recipe)}


def test_mounted_and_copied_files_exist() -> None:
    files = [read_yaml(file.name) for file in DEPLOY.glob("compose*.yaml")]
    services = [service for file in files for service in file["services"].values()]
    mounts = [volume for service in services for volume in service["volumes"]]
    mounts = [mount for mount in mounts if mount.startswith("./")]
    assert mounts
    assert all((DEPLOY / mount.split(":")[0]).is_file() for mount in mounts)

    assert copied()
    assert all((DEPLOY.parent / name).exists() for name in copied())


def copied() -> list[str]:
    """Paths that the Dockerfile copies."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    return " ".join(re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE)).split()


def test_docker_reads_only_what_it_copies() -> None:
    lines = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied())


def test_compose_defines_the_secrets_that_it_uses_and_commits_none() -> None:
    used: set[str] = set()
    defined: dict[str, Any] = {}
    for file in DEPLOY.glob("compose*.yaml"):
        content = read_yaml(file.name)
        defined |= content["secrets"]
        for service in content["services"].values():
            secrets = service.get("secrets", [])
            used |= {item if isinstance(item, str) else item["source"] for item in secrets}
    assert used == defined.keys()
    assert "/secrets/" in (DEPLOY / ".gitignore").read_text().splitlines()
    assert all(secret["file"].startswith("./secrets/") for secret in defined.values())


def versions(file: Path) -> dict[str, str]:
    """Versions of the packages in a lock, without those that the image does not need."""
    lines = re.findall(r"^[a-z][^\s\\]*==[^\\\n]+", file.read_text(), re.MULTILINE)
    requirements = [Requirement(line.strip()) for line in lines]
    return {
        requirement.name: str(requirement.specifier)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(IMAGE)
    }


def test_the_image_has_the_versions_of_the_lock_and_a_hash_of_each() -> None:
    image = versions(DEPLOY / "image.lock")
    everywhere = versions(DEPLOY.parent / "requirements.lock")
    assert {name: everywhere.get(name) for name in image} == image
    assert {"fastapi", "transformers", "numpy", "hatchling"} <= image.keys()

    entries = re.split(r"\n(?=\S)", (DEPLOY / "image.lock").read_text().strip())
    packages = [entry for entry in entries if not entry.startswith("#")]
    assert len(packages) == len(image)
    for package in packages:
        assert re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+", package), package


def test_the_image_has_the_torch_of_the_tests() -> None:
    pins = [
        set(re.findall(r"\btorch==[\d.]+", (DEPLOY.parent / name).read_text()))
        for name in ("Makefile", "deploy/Dockerfile")
    ]
    assert len(pins[0]) == 1
    assert pins[0] == pins[1]


def mapped_fields(properties: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of fields with their types."""
    for name, field in properties.items():
        if "properties" in field:
            yield from mapped_fields(field["properties"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field["type"]


@pytest.fixture(scope="module")
def mapping() -> dict[str, str]:
    template = json.loads((ELASTIC / "index-template.json").read_text())
    return dict(mapped_fields(template["template"]["mappings"]["properties"]))


def test_the_index_template_defines_a_data_stream_with_known_types(mapping: dict[str, str]) -> None:
    template = json.loads((ELASTIC / "index-template.json").read_text())
    assert template["data_stream"] == {}
    assert "composed_of" not in template
    assert re.fullmatch(r"\d+d", template["template"]["lifecycle"]["data_retention"])
    assert set(mapping.values()) <= MAPPING_TYPES
    assert mapping["@timestamp"] == "date"  # a data stream requires it


def leaves(content: object, prefix: str = "") -> Iterator[str]:
    """Dotted names of a log line's fields."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from leaves(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix


def test_the_mapping_has_every_field_of_the_log(
    road: Path, tmp_path: Path, mapping: dict[str, str]
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"ann": {"key": "secret"}}))
    keys.chmod(0o600)
    with process(road, "--keys", keys) as (started, url):
        authorized = {"Authorization": "Bearer secret"}
        body = {"prompt": "How?", "responses": ["So.", "Thus."]}
        statuses = [
            httpx.post(f"{url}/v1/rewards", json=sent, headers=headers).status_code
            for sent, headers in ((body, authorized), ({}, authorized), (body, {}))
        ]
        started.send_signal(signal.SIGTERM)
        output, _ = started.communicate(timeout=60)
    assert statuses == [200, 422, 401]

    lines = [json.loads(line) for line in output.decode().splitlines()]
    access = [line for line in lines if line["log"]["logger"] == "worldpm.access"]
    fields = set().union(*map(leaves, access))
    assert {"http.response.status_code", "user.name"} <= fields <= mapping.keys()


def queried_fields(query: object) -> Iterator[str]:
    """Fields that a search reads."""
    if isinstance(query, list):
        for item in query:
            yield from queried_fields(item)
    if not isinstance(query, dict):
        return
    for name, value in query.items():
        if name == "field":
            yield value
        elif name == "fields":
            yield from value
        elif name == "sort":
            yield from (field for item in value for field in item)
        elif name in ("term", "range") or (name == "terms" and "field" not in value):
            yield from value
        else:
            yield from queried_fields(value)


def test_queries_read_mapped_fields(mapping: dict[str, str]) -> None:
    queries = json.loads((ELASTIC / "queries.json").read_text())
    assert len(queries) == 5
    readme = (ELASTIC / "README.md").read_text()
    for name, query in queries.items():
        assert f"| `{name}` |" in readme
        assert query["question"]
        fields = set(queried_fields(query["search"]))
        assert fields
        assert fields <= mapping.keys()


@pytest.fixture(scope="module")
def saved() -> list[Any]:
    """The saved objects of Kibana."""
    lines = (ELASTIC / "dashboard.ndjson").read_text().splitlines()
    *objects, summary = map(json.loads, lines)
    assert (summary["exportedCount"], summary["missingRefCount"]) == (len(objects), 0)
    return objects


def test_references_of_saved_objects_resolve(saved: list[Any]) -> None:
    keys = [(item["type"], item["id"]) for item in saved]
    assert len(set(keys)) == len(keys)
    references = [reference for item in saved for reference in item["references"]]
    assert {(reference["type"], reference["id"]) for reference in references} <= set(keys)

    (view,) = [item for item in saved if item["type"] == "index-pattern"]
    template = json.loads((ELASTIC / "index-template.json").read_text())
    assert [view["attributes"]["title"]] == template["index_patterns"]
    (dashboard,) = [item for item in saved if item["type"] == "dashboard"]
    panels = json.loads(dashboard["attributes"]["panelsJSON"])
    names = [f"{panel['panelIndex']}:{panel['panelRefName']}" for panel in panels]
    assert names == [reference["name"] for reference in dashboard["references"]]
    assert len({panel["panelIndex"] for panel in panels}) == len(panels)


def test_saved_searches_are_the_queries_and_read_mapped_fields(
    saved: list[Any], mapping: dict[str, str]
) -> None:
    searches = [item for item in saved if item["type"] == "search"]
    queries = json.loads((ELASTIC / "queries.json").read_text())
    assert [search["id"] for search in searches] == list(queries)
    for search in searches:
        attributes = search["attributes"]
        source = json.loads(attributes["kibanaSavedObjectMeta"]["searchSourceJSON"])
        assert [source["indexRefName"]] == [item["name"] for item in search["references"]]
        named = set(re.findall(r"([\w.@]+) ?[:<>]", source["query"]["query"]))
        assert named
        columns = {*attributes["columns"], *(field for field, _ in attributes["sort"])}
        assert named | columns <= mapping.keys()
        assert attributes["description"] == queries[search["id"]]["question"]
