"""The policies in cluster/ on servers that enforce them: they suffice for the work, and for nothing else."""

from __future__ import annotations

import copy
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import botocore.session
import pytest
import s3fs
import yaml
from fixtures_s3 import use_environment
from servers import CephServer, MotoServer
from tiny import REQUEST, jpeg

from bottleneck.audit.verify import verify
from bottleneck.dataset.extend import extend_plan
from bottleneck.dataset.plan import load_plan
from bottleneck.extract.local import extract_images
from bottleneck.storage.store import open_store

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"


def policy(name: str, **edits: str) -> dict[str, Any]:
    """A policy with its EDIT words replaced."""
    text = (CLUSTER / name).read_text()
    for word, value in edits.items():
        text = text.replace(f"EDIT-{word}", value)
    assert "EDIT" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def grant(server: CephServer, user: str, bucket: str, *policies: dict[str, Any]) -> None:
    """Ceph's user policies know no conditions on lists, its bucket policies do: the same statements with a principal.

    It knows no s3:if-none-match; that condition is left out, and a test of its own says where the header is sent.
    """
    statements = [
        one | {"Principal": {"AWS": [f"arn:aws:iam:::user/{user}"]}}
        for each in policies
        for one in copy.deepcopy(each["Statement"])
        if one["Resource"].split(":::")[1].split("/")[0] == bucket
    ]
    for statement in statements:
        if "Null" in statement.get("Condition", {}):
            del statement["Condition"]
    server.client.put_bucket_policy(
        Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements})
    )


@pytest.fixture
def worker(ceph_server: CephServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client with the job's role; this process has it too. The buckets are `bucket` and `bucket`-out."""
    user = f"worker-{bucket}"
    ceph_server.admin(
        *("user", "create", f"--uid={user}", f"--display-name={user}", "--max-buckets=-1"),
        *(f"--access-key={user}", f"--secret={ceph_server.secret_key}"),
    )
    ceph_server.create_bucket(f"{bucket}-out")
    job = policy("iam-job.json", input=bucket, output=f"{bucket}-out")
    for one in (bucket, f"{bucket}-out"):
        grant(ceph_server, user, one, job)
    ceph_server.upload(bucket, {f"photos/{number}.jpg": jpeg(number) for number in range(3)} | {"secret/a.jpg": b"a"})
    use_environment(monkeypatch, ceph_server.environment | {"AWS_ACCESS_KEY_ID": user})
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=ceph_server.endpoint_url,
        region_name=ceph_server.region,
        aws_access_key_id=user,
        aws_secret_access_key=ceph_server.secret_key,
    )


def refused(call: Any, **request: Any) -> bool:
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**request)
    return bool(caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403)


def test_the_jobs_role_extracts_extends_and_verifies_and_all_it_writes_but_the_summary_is_created_once(
    worker: Any, ceph_server: CephServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Amazon the role may write only with If-None-Match, the summary apart; Ceph cannot ask, so this test looks."""
    seen: list[tuple[str, bool]] = []
    call = s3fs.S3FileSystem._call_s3

    async def record(self: Any, method: str, *arguments: Any, **request: Any) -> Any:
        if method == "put_object" and request["Bucket"] == f"{bucket}-out":
            seen.append((request["Key"], request.get("IfNoneMatch") == "*"))
        return await call(self, method, *arguments, **request)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", record)
    source, output = f"s3://{bucket}/photos", f"s3://{bucket}-out/features"
    assert extract_images(source, output, REQUEST).ok == 3
    ceph_server.upload(bucket, {"photos/new.jpg": jpeg(3)})
    plan = load_plan(output)
    assert plan is not None
    extend_plan(plan)
    assert extract_images(source, output, REQUEST).ok == 4
    assert verify(output).exit_code == 0
    assert [key for key, created in seen if not created] == ["features/_SUCCESS.json"] * 2
    keys = [key for key, created in seen if created]
    assert len(set(keys)) == 6, seen  # for each time: the plan, its part, a shard
    assert keys[0] == keys[1]  # whether the store creates once is tried with the first part
    assert len(keys) == 7, seen


def test_an_image_that_has_gone_is_a_rejected_row_under_this_role(
    worker: Any, ceph_server: CephServer, bucket: str
) -> None:
    """Without the right to list, the store answers 403 for what is not there, and 403 stops a run."""
    assert open_store(f"s3://{bucket}/photos").stat("gone.jpg") is None
    assert open_store(f"s3://{bucket}-out/features").stat("plan.json") is None


def test_the_jobs_role_does_nothing_else(worker: Any, ceph_server: CephServer, bucket: str) -> None:
    output = f"{bucket}-out"
    worker.put_object(Bucket=output, Key="features/data/a.parquet", Body=b"a")
    assert refused(worker.delete_object, Bucket=output, Key="features/data/a.parquet")
    assert refused(worker.delete_object, Bucket=bucket, Key="photos/0.jpg")
    assert refused(worker.put_object, Bucket=bucket, Key="photos/0.jpg", Body=b"")
    assert refused(worker.put_object, Bucket=output, Key="elsewhere/a", Body=b"")
    assert refused(worker.get_object, Bucket=bucket, Key="secret/a.jpg")
    assert refused(worker.list_objects_v2, Bucket=bucket, Prefix="secret/")
    assert refused(worker.list_objects_v2, Bucket=output, Prefix="elsewhere/")
    assert refused(worker.put_bucket_policy, Bucket=output, Policy="{}")
    assert ceph_server.keys(bucket) == ["photos/0.jpg", "photos/1.jpg", "photos/2.jpg", "secret/a.jpg"]


@pytest.fixture
def amazon() -> Iterator[MotoServer]:
    """EC2 and IAM as moto plays them, which looks at a policy's actions."""
    from ray.autoscaler._private.aws.utils import client_cache, resource_cache

    for cached in (client_cache, resource_cache):
        cached.cache_clear()  # Ray keeps its clients by region, also those of a server that is gone
    with MotoServer() as server:
        yield server


def test_ray_starts_tags_and_ends_machines_with_the_launch_policy_and_no_more(
    amazon: MotoServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    use_environment(monkeypatch, amazon.environment)
    monkeypatch.setenv("HOME", str(tmp_path))  # the key for ssh is written there
    iam, ec2 = boto3.client("iam"), boto3.client("ec2")
    for name in ("bottleneck-head", "bottleneck-worker"):
        iam.create_instance_profile(InstanceProfileName=name)
    [vpc] = ec2.describe_vpcs()["Vpcs"]
    group = ec2.create_security_group(GroupName="bottleneck", Description="ssh", VpcId=vpc["VpcId"])["GroupId"]
    image = ec2.describe_images()["Images"][0]["ImageId"]
    launch = policy("iam-launch.json", account="123456789012")
    for statement in launch["Statement"]:  # moto asks about "*" alone, and about no tags
        statement.pop("Condition", None)
        statement["Resource"] = "*"
    iam.create_user(UserName="launcher")
    iam.put_user_policy(UserName="launcher", PolicyName="launch", PolicyDocument=json.dumps(launch))
    key = iam.create_access_key(UserName="launcher")["AccessKey"]

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    boto3.setup_default_session()
    enforce = urllib.request.Request(
        f"{amazon.endpoint_url}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}
    )
    urllib.request.urlopen(enforce).close()

    text = (CLUSTER / "aws.yaml").read_text().replace("ami-EDIT", image).replace("sg-EDIT", group)
    text = text.replace("EDIT-region", amazon.region).replace("EDIT-zones", f"{amazon.region}a,{amazon.region}b")
    config = bootstrap_aws(prepare_config(yaml.safe_load(text)))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for kind in ("head", "gpu", "decode"):
        node = config["available_node_types"][kind]["node_config"]
        created = provider.create_node(node, {"ray-node-kind": "head" if kind == "head" else "worker"}, 1)
        assert set(created) <= set(provider.non_terminated_nodes({}))
        provider.set_node_tags(next(iter(created)), {"ray-node-status": "up-to-date"})
    nodes = provider.non_terminated_nodes({})
    assert len(nodes) == 3
    provider.terminate_nodes(nodes)
    assert provider.non_terminated_nodes({}) == []
    # What it would need to open a port or to give itself rights is not there.
    for client, action, request in (
        ("ec2", "authorize_security_group_ingress", {"GroupId": group}),
        ("ec2", "create_security_group", {"GroupName": "a", "Description": "a"}),
        ("iam", "create_role", {"RoleName": "a", "AssumeRolePolicyDocument": "{}"}),
    ):
        with pytest.raises(botocore.exceptions.ClientError, match=r"UnauthorizedOperation|AccessDenied"):
            getattr(boto3.client(client), action)(**request)


def test_machines_start_in_private_subnets_of_an_account_without_a_default_vpc(
    amazon: MotoServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the lines of aws.yaml for it uncommented."""
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    use_environment(monkeypatch, amazon.environment)
    monkeypatch.setenv("HOME", str(tmp_path))
    boto3.setup_default_session()
    iam, ec2 = boto3.client("iam"), boto3.client("ec2")
    for name in ("bottleneck-head", "bottleneck-worker"):
        iam.create_instance_profile(InstanceProfileName=name)
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    zones = [f"{amazon.region}{letter}" for letter in "ab"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
        for number, zone in enumerate(zones)
    ]
    ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.9.0/24", AvailabilityZone=zones[0])  # which nobody has named
    group = ec2.create_security_group(GroupName="bottleneck", Description="ssh", VpcId=vpc)["GroupId"]
    image = ec2.describe_images()["Images"][0]["ImageId"]
    text = (CLUSTER / "aws.yaml").read_text().replace("ami-EDIT", image).replace("sg-EDIT", group)
    text = text.replace("EDIT-region", amazon.region).replace("EDIT-zones", ",".join(zones))
    text = text.replace("[subnet-...]", f"[{', '.join(subnets)}]")
    text = re.sub(r"# (use_internal_ips: true|SubnetIds: )", r"\1", text)
    config = bootstrap_aws(prepare_config(yaml.safe_load(text)))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for kind in ("head", "gpu", "gpu_on_demand", "gpu_other"):
        node = config["available_node_types"][kind]["node_config"]
        assert node["SubnetIds"] == subnets
        created = provider.create_node(node, {"ray-node-kind": "head" if kind == "head" else "worker"}, 1)
        [instance] = created.values()
        assert instance.subnet_id in subnets
    assert len(provider.non_terminated_nodes({})) == 4
