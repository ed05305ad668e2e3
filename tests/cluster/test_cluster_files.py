"""The files of cluster/: valid for those that read them, closed to the world, and each thing to edit is explained."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from assets import asset

from bottleneck.distributed.metrics import METRICS
from jobs.__main__ import JOBS
from jobs.command_line import parse

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
README = (CLUSTER / "README.md").read_text()
CLOUDS = ("aws", "gcp")


def blocks(language: str) -> list[str]:
    """The README's blocks of a language, without the indentation they have in lists."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]


def cloud(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    return found


def pod_templates() -> list[dict[str, Any]]:
    spec = yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


# `ray up`


@pytest.mark.parametrize("name", CLOUDS)
def test_ray_accepts_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cloud(name))
    validate_config(prepared)
    commands = " ".join(prepared["head_start_ray_commands"] + prepared["worker_start_ray_commands"])
    assert "0.0.0.0" not in commands, "Ray's default, which opens the dashboard"


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_takes_no_tasks_and_workers_grow_from_none_on_spot_machines(name: str) -> None:
    config = cloud(name)
    kinds = config["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert "--num-cpus=0 --num-gpus=0" in config["head_start_ray_commands"][-1]
    assert "spot" not in json.dumps(kinds["head"]).lower()
    for kind in ("gpu", "decode"):
        assert kinds[kind]["min_workers"] == 0
        assert "spot" in json.dumps(kinds[kind]["node_config"]).lower()
    assert kinds["gpu"]["resources"]["GPU"] == 1
    assert "GPU" not in kinds["decode"]["resources"]
    assert sum(kinds[kind]["max_workers"] for kind in ("gpu", "decode")) <= config["max_workers"]


@pytest.mark.parametrize("name", CLOUDS)
def test_no_node_of_a_cluster_starts_without_the_token(name: str) -> None:
    config = cloud(name)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert commands[-1].startswith("RAY_AUTH_MODE=token ray start ")
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    [path] = [one.partition("=")[2] for one in config["docker"]["run_options"] if "RAY_AUTH_TOKEN_PATH" in one]
    assert config["file_mounts"][path] == "~/.ray/auth_token"
    assert "RAY_USE_TLS=1" in (CLUSTER / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", CLOUDS)
def test_the_dashboard_is_for_the_head_itself_and_no_file_opens_a_port(name: str) -> None:
    config = cloud(name)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert "security_group" not in config["provider"]
    assert not {"IpPermissions", "networkInterfaces", "--publish", "-p"} & set(
        re.split(r"[\s:\"]+", json.dumps(config))
    )
    for opened in re.findall(r"authorize-security-group-ingress (.*)", README):
        port = re.search(r"--port (\S+)", opened)
        assert "--source-group" in opened or (port and port[1] == "22" and "0.0.0.0" not in opened), opened


@pytest.mark.parametrize("name", CLOUDS)
def test_shared_memory_holds_the_object_store_and_the_store_the_shards_under_way(name: str) -> None:
    config = cloud(name)
    [shared] = [int(found) for one in config["docker"]["run_options"] for found in re.findall(r"shm-size=(\d+)g", one)]
    store = int(re.search(r"object-store-memory=(\d+)", config["worker_start_ray_commands"][-1])[1])  # type: ignore[index]
    cores = config["available_node_types"]["gpu"]["resources"]["CPU"]
    shard = 512 * 224 * 224 * 3
    assert shared * 2**30 > store
    assert store / 2 > 2 * cores * shard  # Ray Data's half; each core makes one while another waits
    assert f"{shard / 1e6:.0f} MB" in (CLUSTER / f"{name}.yaml").read_text()


# What people edit


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.yaml")), ids=lambda path: path.name)
def test_what_is_to_be_edited_stands_at_the_top_and_says_what_goes_there(path: Path) -> None:
    lines = path.read_text().splitlines()
    edits = [number for number, line in enumerate(lines) if "EDIT" in line.partition(" # ")[0].partition("#")[0]]
    assert edits
    assert max(edits) < 25, "too far down"
    for number in edits:
        assert len(lines[number].partition(" # ")[2]) > 10, f"{path.name}:{number + 1} does not say what goes there"
    anchors = re.findall(r": &(\w+) ", "\n".join(lines[:25]))
    for anchor in anchors:
        assert re.search(rf"\*{anchor}\b", path.read_text()), f"{anchor} is edited for nothing"


def test_the_readme_names_every_file_and_no_other() -> None:
    files = {path.name for path in CLUSTER.iterdir() if not path.name.endswith(("README.md", ".dockerignore"))}
    assert {name for name in files if name not in README} == set()
    assert set(re.findall(r"\]\(([a-z-]+\.[a-z]+)\)", README)) <= files


# Kubernetes


def unknown_or_wrong(value: Any, schema: dict[str, Any], place: str) -> list[str]:
    """What a Kubernetes server with strict fields would refuse; JSON schema alone lets unknown fields pass."""
    if schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-int-or-string"):
        return []
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "number": (int, float)}
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        return [f"{place}: expected {schema['type']}, found {value!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{place}: expected one of {schema['enum']}, found {value!r}"]
    wrong = [f"{place}: {name} is missing" for name in schema.get("required", []) if name not in value]
    if isinstance(value, list):
        return wrong + [
            one for i, item in enumerate(value) for one in unknown_or_wrong(item, schema["items"], f"{place}[{i}]")
        ]
    if isinstance(value, dict) and ("properties" in schema or "additionalProperties" in schema):
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            wrong += (
                [f"{place}.{name} is unknown"] if inner is None else unknown_or_wrong(item, inner, f"{place}.{name}")
            )
    return wrong


def test_kuberay_accepts_the_run() -> None:
    definition = yaml.load(
        asset("kuberay/ray.io_rayjobs.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    run = yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())
    group, version = run["apiVersion"].split("/")
    assert (definition["spec"]["group"], definition["spec"]["names"]["kind"]) == (group, run["kind"])
    [schema] = [one["schema"]["openAPIV3Schema"] for one in definition["spec"]["versions"] if one["name"] == version]
    assert unknown_or_wrong(run["spec"], schema["properties"]["spec"], "spec") == []
    spoilt = yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())["spec"]
    spoilt["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "a"
    assert len(unknown_or_wrong(spoilt, schema["properties"]["spec"], "spec")) == 1


def test_the_run_on_kubernetes_is_a_command_that_exists_and_ends_with_its_cluster() -> None:
    spec = yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[0] == "bottleneck"
    parse(importlib.import_module(f"jobs.{words[1]}"), words[2:])
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "bottleneck-ray-token"}
    assert "--from-file=auth_token" in README
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert [group["minReplicas"] for group in cluster["workerGroupSpecs"]] == [0, 0]
    import ray

    assert cluster["rayVersion"] == ray.__version__


@pytest.mark.parametrize("spec", pod_templates(), ids=["head", "gpu", "decode"])
def test_pods_run_as_nobody_special_with_room_for_the_object_store(spec: dict[str, Any]) -> None:
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["serviceAccountName"]
    [container] = spec["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert "hostNetwork" not in spec
    assert not any("hostPort" in port for port in container.get("ports", []))
    if container["name"] == "ray-worker":
        stop = container["lifecycle"]["preStop"]["exec"]["command"][-1]
        assert int(stop.split()[-1]) < spec["terminationGracePeriodSeconds"]
        assert any("spot" in one["key"] for one in spec["tolerations"])


# The rights


@pytest.mark.parametrize("name", ["iam-job.json", "iam-requeue.json", "iam-launch.json"])
def test_a_policy_allows_named_actions_only_and_deletes_nothing_of_the_store(name: str) -> None:
    statements = json.loads((CLUSTER / name).read_text())["Statement"]
    assert len({one["Sid"] for one in statements}) == len(statements)
    for one in statements:
        actions = [one["Action"]] if isinstance(one["Action"], str) else one["Action"]
        assert one["Effect"] == "Allow"
        assert not any("*" in action or "Delete" in action for action in actions)
        assert one["Resource"] != "*" or all(action.startswith("ec2:Describe") for action in actions)
        if "iam:PassRole" in actions:
            assert all(re.search(r":role/bottleneck-(head|worker)$", role) for role in one["Resource"])


def test_the_launch_policy_speaks_of_the_cluster_that_the_file_starts() -> None:
    text = (CLUSTER / "iam-launch.json").read_text()
    config = cloud("aws")
    assert f'"aws:RequestTag/ray-cluster-name": "{config["cluster_name"]}"' in text
    assert f'"aws:ResourceTag/ray-cluster-name": "{config["cluster_name"]}"' in text


# Grafana


def expressions() -> list[str]:
    dashboard = json.loads((CLUSTER / "grafana.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads((CLUSTER / "grafana.json").read_text())
    assert dashboard["uid"] == "bottleneck"
    assert dashboard["title"]
    assert dashboard["schemaVersion"] >= 36
    names = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert names == {"datasource": "datasource", "session": "query"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["targets"]
        assert panel["title"]
        assert panel["description"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} covers another panel"
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for expression in expressions():
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing), expression


def test_the_dashboard_shows_the_metrics_there_are_and_no_others() -> None:
    shown = set(re.findall(r"ray_(bottleneck_\w+)", " ".join(expressions())))
    assert shown == METRICS.keys()


# The README's own pieces


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block[:20])
def test_yaml_in_the_readme_parses(block: str) -> None:
    assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block[:30])
def test_commands_in_the_readme_parse_and_name_files_that_exist(block: str) -> None:
    assert subprocess.run(["bash", "-n", "-c", block], capture_output=True, text=True).stderr == ""
    for name in re.findall(r"cluster/[\w.-]+", block):
        assert (ROOT / name).exists(), name
    for text in re.findall(r"'(\{.*?\})'", block):
        json.loads(text)


def test_the_nightly_runs_are_programs_and_their_command_is_one() -> None:
    [dag] = blocks("python")
    compile(ast.parse(dag), "dag.py", "exec")
    commands = re.findall(r"bottleneck submit [^\"`\n]*-- (\w+) ([^\"`\n]*)", README)
    assert len(commands) >= 3
    for job, arguments in commands:
        assert job in JOBS
        parse(importlib.import_module(f"jobs.{job}"), shlex.split(arguments))
    [line] = blocks("crontab")
    assert len(line.split()[:5]) == 5
    assert "%" not in line, "cron would end the command there"
    assert "--extend" in line
