"""The files of cluster/: valid for those that read them, closed to the world, and each thing to edit is explained."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import time
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
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) <= config["max_workers"]


def test_other_gpus_are_as_the_first_kind_and_start_only_when_they_are_asked_for() -> None:
    kinds = cloud("aws")["available_node_types"]
    assert set(kinds) == {"head", "gpu", "gpu_other", "gpu_on_demand", "decode"}
    spot, other, on_demand = (kinds[kind] for kind in ("gpu", "gpu_other", "gpu_on_demand"))
    assert (other["max_workers"], on_demand["max_workers"]) == (0, 0)
    for kind in (other, on_demand):
        assert {**kind, "max_workers": 0, "node_config": 0} == {**spot, "max_workers": 0, "node_config": 0}
    assert other["node_config"] == spot["node_config"] | {"InstanceType": other["node_config"]["InstanceType"]}
    assert other["node_config"]["InstanceType"] != spot["node_config"]["InstanceType"]
    assert on_demand["node_config"] | {"InstanceMarketOptions": {"MarketType": "spot"}} == spot["node_config"]


def test_lines_that_are_to_be_uncommented_are_ones_that_ray_accepts() -> None:
    """`# name: value` beside the others, for accounts without a default VPC or with a registry of their own."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    text, count = re.subn(
        r"^( *)# ((?:use_internal_ips|SubnetIds|initialization_commands|  - aws ecr).*)",
        r"\1\2",
        (CLUSTER / "aws.yaml").read_text().replace("[subnet-...]", "[subnet-1, subnet-2]"),
        flags=re.MULTILINE,
    )
    assert count == 5
    config = yaml.safe_load(text.replace("initialization_commands: []\n", ""))
    validate_config(prepare_config(config))
    assert config["provider"]["use_internal_ips"] is True
    nodes = [kind["node_config"] for kind in config["available_node_types"].values()]
    assert [node["SubnetIds"] for node in nodes] == [["subnet-1", "subnet-2"]] * 5
    [login] = config["initialization_commands"]
    assert subprocess.run(["bash", "-n", "-c", login]).returncode == 0


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
    assert set(re.findall(r"\]\(([a-z-]+(?:\.[a-z]+)?)\)", README)) <= files


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
    again, program, job, *arguments = shlex.split(spec["entrypoint"])
    assert (again, program) == ("until-done", "bottleneck")
    parse(importlib.import_module(f"jobs.{job}"), arguments)
    assert not set("$;&|<>()`\"'") & set(spec["entrypoint"]), "KubeRay puts it into a shell as it is"
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] == 0, "KubeRay would start GPUs again after exit codes that only a person can mend"
    assert spec["activeDeadlineSeconds"] > 0
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


def test_the_pod_that_hands_the_run_over_suits_a_restricted_namespace_and_kuberay_fills_it_in() -> None:
    spec = yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())["spec"]
    pod = spec["submitterPodTemplate"]["spec"]
    assert pod["securityContext"] == spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert pod["restartPolicy"] == "Never"
    [container] = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert "command" not in container, "KubeRay puts its own in only where there is none"
    assert "GPU" not in json.dumps(pod)
    assert "gpu" not in json.dumps(pod)
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert head == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        assert "annotations" not in group["template"]["metadata"]


def test_the_nightly_run_creates_the_file_of_its_config_map_and_may_do_nothing_else() -> None:
    cron, account, role, binding = yaml.safe_load_all((CLUSTER / "nightly.yaml").read_text())
    assert [one["kind"] for one in (cron, account, role, binding)] == [
        "CronJob",
        "ServiceAccount",
        "Role",
        "RoleBinding",
    ]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    name = account["metadata"]["name"]
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name}]
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == name
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container], [volume] = pod["containers"], pod["volumes"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    [mount] = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert container["command"] == ["kubectl", "create", "--filename", f"{mount['mountPath']}/kuberay.yaml"]
    assert f"kubectl create configmap {volume['configMap']['name']} --from-file=cluster/kuberay.yaml" in README


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


@pytest.mark.parametrize("name", ["iam-job.json", "iam-requeue.json", "iam-launch.json", "iam-options.json"])
def test_a_policy_allows_named_actions_only_and_deletes_nothing_of_the_store(name: str) -> None:
    statements = json.loads((CLUSTER / name).read_text())["Statement"]
    assert len({one["Sid"] for one in statements}) == len(statements)
    for one in statements:
        actions = [one["Action"]] if isinstance(one["Action"], str) else one["Action"]
        assert one["Effect"] == "Allow"
        assert not any("*" in action or "Delete" in action for action in actions)
        reads = ("ec2:Describe", "ecr:GetAuthorizationToken")  # which AWS does not tie to a resource
        assert one["Resource"] != "*" or all(action.startswith(reads) for action in actions)
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
    commands = re.findall(r"bottleneck submit [^\"`\n]*-- (\w+) ([^\"`\n>]*)", README)
    assert len(commands) >= 3
    for job, arguments in commands:
        assert job in JOBS
        parse(importlib.import_module(f"jobs.{job}"), shlex.split(arguments))
    [line] = blocks("crontab")
    assert len(line.split()[:5]) == 5
    assert "%" not in line, "cron would end the command there"
    assert "--extend" in line


def test_cron_runs_one_at_a_time_writes_a_log_and_starts_again_what_is_not_done(tmp_path: Path) -> None:
    """The line of the README itself, with a `bottleneck` that leaves work twice."""
    program = tmp_path / "bin/bottleneck"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/arguments
[ "$(wc -l < {tmp_path}/arguments)" -gt 2 ] && echo finished || exit 3
"""
    )
    program.chmod(0o755)
    [line] = blocks("crontab")
    command = line.split(maxsplit=5)[5].replace("/opt/bottleneck/bin", str(program.parent))
    command = command.replace("/opt/bottleneck/cluster", str(CLUSTER))
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PAUSE_SECONDS": "0"}
    held = subprocess.Popen(["flock", tmp_path / "bottleneck.lock", "cat"], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20
        while subprocess.run(["flock", "--nonblock", tmp_path / "bottleneck.lock", "true"]).returncode == 0:
            assert time.monotonic() < deadline
        assert subprocess.run(["sh", "-c", command], env=environment).returncode == 1
        assert not (tmp_path / "arguments").exists(), "another night's run is under way"
    finally:
        held.communicate()
    assert subprocess.run(["sh", "-c", command], env=environment).returncode == 0
    assert len((tmp_path / "arguments").read_text().splitlines()) == 3
    log = (tmp_path / "bottleneck.log").read_text()
    assert log.count("exit code 3, starting again") == 2
    assert log.endswith("finished\n")


@pytest.mark.parametrize(("codes", "starts", "ended"), [("0", 1, 0), ("3 5 0", 3, 0), ("3 4", 2, 4), ("2", 1, 2)])
def test_until_done_starts_again_where_that_may_help(tmp_path: Path, codes: str, starts: int, ended: int) -> None:
    assert until_done(tmp_path, codes) == (starts, ended)


def test_until_done_gives_up_with_the_last_exit_code(tmp_path: Path) -> None:
    assert until_done(tmp_path, "3 3 3 5 0") == (4, 5)


def until_done(folder: Path, codes: str) -> tuple[int, int]:
    """How often a command that ends with these exit codes is started, and the exit code in the end."""
    (folder / "codes").write_text("\n".join(codes.split()) + "\n")
    (folder / "started").write_text("")
    command = 'echo "$1" >> started; exit "$(sed -n "$(wc -l < started)p" codes)"'
    done = subprocess.run(
        [CLUSTER / "until-done", "sh", "-c", command, "sh", "two words"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PAUSE_SECONDS": "0"},
    )
    started = (folder / "started").read_text().splitlines()
    assert set(started) == {"two words"}
    return len(started), done.returncode
