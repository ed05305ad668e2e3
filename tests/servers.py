"""A real S3 store for the tests: Ceph's RADOS Gateway where it is installed, else moto in a subprocess.

Ceph enforces credentials, conditional writes and durability as production stores do, so claims about object storage
are tested on it; moto keeps the functional tests running on a laptop without it.

    with make_server() as server:
        server.create_bucket("images")
        subprocess.run([...], env=os.environ | server.environment)

On Debian or Ubuntu: apt-get install --no-install-recommends ceph-mon ceph-osd radosgw
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import botocore.config
import botocore.session
import s3fs

CEPH_PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
FOLDER_PREFIX = "bottleneck-s3-"
# Above Ray's worker ports (10002-19999), below the ephemeral ports, which any outgoing connection may take
# while a killed server is down.
PORTS = range(20000, 32000)
START_SECONDS = 90
UPLOAD_BATCH_FILES = 256

# The kernel ends the daemons when the thread that started them ends, so one thread that lives as long as the process
# starts them all; a test may then restart a server from any thread.
_launcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-launcher")


class S3Server(ABC):
    """One S3 server in a temporary folder on free ports; several may run at once."""

    kind: ClassVar[str]
    region = "us-east-1"
    access_key = "testkey"
    secret_key = "testsecret"

    def __init__(self) -> None:
        _remove_left_over_folders()
        # Not pytest's tmp_path: it keeps the folders of three runs, and these are large.
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        self._lock: int | None = _lock(self.folder / "lock")
        self.port = free_port()
        self.endpoint_url = f"http://127.0.0.1:{self.port}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.wipe()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()

    @abstractmethod
    def start(self) -> None:
        """Start what does not run, the first time or after `kill9`, and return when S3 answers."""

    def kill9(self) -> None:
        """Kill every daemon at once with SIGKILL, as a power cut would; Ceph keeps its data, moto forgets it."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def wipe(self) -> None:
        """Kill the daemons and remove their data."""
        self.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def pids(self) -> dict[str, int]:
        """Daemon name -> process id, for tests that stop or kill a single one; "gateway" is the one that speaks S3."""
        return {name: process.pid for name, process in self._processes.items()}

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach this server through the default credential chain, and nothing of the user's."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1,localhost",
        }

    @cached_property
    def client(self) -> Any:
        """A botocore client with the owner's credentials, whatever this process' environment says."""
        return botocore.session.Session().create_client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=botocore.config.Config(s3={"addressing_style": "path"}, proxies={}),
        )

    @cached_property
    def _filesystem(self) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(
            key=self.access_key,
            secret=self.secret_key,
            endpoint_url=self.endpoint_url,
            client_kwargs={"region_name": self.region},
            skip_instance_cache=True,
        )

    def create_bucket(self, bucket: str) -> None:
        """Create an empty bucket."""
        self.client.create_bucket(Bucket=bucket)

    def upload(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Store key -> bytes, many requests at a time."""
        self._filesystem.pipe({f"{bucket}/{key}": data for key, data in objects.items()}, batch_size=32)

    def upload_folder(self, folder: Path, bucket: str, prefix: str = "") -> int:
        """Store every file below `folder` as `prefix` + its relative path; returns how many."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for start in range(0, len(files), UPLOAD_BATCH_FILES):
            batch = files[start : start + UPLOAD_BATCH_FILES]
            self.upload(bucket, {prefix + path.relative_to(folder).as_posix(): path.read_bytes() for path in batch})
        return len(files)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Every key, in the order the server lists them; asked of botocore, so it also checks what s3fs wrote."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def read_only_environment(self, bucket: str) -> dict[str, str] | None:
        """The environment of a second user who may list and read `bucket` but not write; None where not enforced."""
        return None

    def _runs(self, name: str) -> bool:
        return name in self._processes and self._processes[name].poll() is None

    def _launch(self, name: str, *command: str | Path) -> None:
        if self._runs(name):
            return
        log = self.folder / f"{name}.out"

        def launch() -> subprocess.Popen[bytes]:
            with log.open("ab") as stream:
                return subprocess.Popen(
                    [*_end_with_us(), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,  # a Ctrl-C in the terminal is for pytest, which then wipes in order
                    env=_clean_environment(),
                )

        self._processes[name] = _launcher.submit(launch).result()

    def _wait_for(self, what: str, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            for name, process in self._processes.items():
                if process.poll() is not None:
                    tail = (self.folder / f"{name}.out").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{self.kind}: {name} ended with {process.returncode} before {what}:\n{tail}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.kind}: waited {START_SECONDS} s for {what}; see {self.folder}")
            time.sleep(0.05)

    def _answers_http(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.endpoint_url, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            with error:
                return error.code < 500
        except OSError:
            return False


class MotoServer(S3Server):
    """moto's S3: in memory, without checks of credentials; right about keys, pages, ranges and create-once."""

    kind = "moto"

    def start(self) -> None:
        self._launch("gateway", sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port))
        self._wait_for("S3", self._answers_http)


class CephServer(S3Server):
    """A Ceph cluster of one monitor, one storage daemon on a sparse file, and the S3 gateway."""

    kind = "ceph"

    def __init__(self) -> None:
        super().__init__()
        self._monitor_port = free_port()
        self._configuration = self.folder / "ceph.conf"

    def start(self) -> None:
        first = not self._configuration.exists()
        if first:
            self._make_monitor()
        self._launch("monitor", "ceph-mon", "-c", self._configuration, "-i", "a", "-f")
        if first:
            self._make_storage()
        elif not self._runs("storage"):
            self._ceph("osd", "down", "0")  # forget the address it had before it was killed
        self._launch("storage", "ceph-osd", "-c", self._configuration, "-i", "0", "-f")
        self._wait_for("the storage daemon", lambda: " 1 up" in self._ceph("osd", "stat"))
        if first:
            self._create_user("test", self.access_key, self.secret_key)
        self._launch("gateway", "radosgw", "-c", self._configuration, "-n", "client.rgw.a", "-f")
        self._wait_for("S3", self._answers_http)

    def admin(self, *arguments: str) -> str:
        """Run radosgw-admin (users, quotas) and return its output."""
        return self._run("radosgw-admin", "-c", self._configuration, "-n", "client.rgw.a", *arguments)

    def read_only_environment(self, bucket: str) -> dict[str, str]:
        user = f"reader-{bucket}"
        self._create_user(user, user, self.secret_key)
        statement = {
            "Effect": "Allow",
            "Principal": {"AWS": [f"arn:aws:iam:::user/{user}"]},
            "Action": ["s3:ListBucket", "s3:GetObject"],
            "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self.client.put_bucket_policy(Bucket=bucket, Policy=policy)
        return self.environment | {"AWS_ACCESS_KEY_ID": user}

    def _create_user(self, name: str, access_key: str, secret_key: str) -> None:
        keys = [f"--access-key={access_key}", f"--secret={secret_key}"]
        self.admin("user", "create", f"--uid={name}", f"--display-name={name}", "--max-buckets=0", *keys)

    def _make_monitor(self) -> None:
        address, cluster_id = f"[v2:127.0.0.1:{self._monitor_port}]", str(uuid.uuid4())
        for name in ("mon", "osd", "run"):
            (self.folder / name).mkdir()
        monitors, keyring = self.folder / "monmap", self.folder / "keyring"
        written = CEPH_CONFIGURATION.format(folder=self.folder, cluster_id=cluster_id, address=address, port=self.port)
        self._configuration.write_text(written)
        self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", cluster_id, monitors)
        # Between the local daemons nothing is authenticated, but radosgw wants to see a keyring.
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "client.rgw.a")
        make = ("ceph-mon", "-c", self._configuration, "--mkfs", "-i", "a")
        self._run(*make, "--monmap", monitors, "--keyring", os.devnull)

    def _make_storage(self) -> None:
        storage_id = str(uuid.uuid4())
        self._ceph("osd", "new", storage_id)
        self._ceph("osd", "crush", "add", "osd.0", "1.0", "root=default", "host=a")
        make = ("ceph-osd", "-c", self._configuration, "-i", "0", "--mkfs")
        self._run(*make, "--osd-uuid", storage_id, "--no-mon-config")

    def _ceph(self, *arguments: str) -> str:
        return self._run("ceph", "-c", self._configuration, "--connect-timeout", "20", *arguments)

    def _run(self, *command: str | Path) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, env=_clean_environment())
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout


# No manager daemon, no replicas, no authentication between the local daemons. The storage daemon picks its own ports
# from 6800 up. Admin sockets are off: a temporary folder may be too deep for the path of a Unix socket.
CEPH_CONFIGURATION = """\
[global]
fsid = {cluster_id}
mon_host = {address}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {folder}/run
admin_socket =
pid_file =
log_file = {folder}/$name.log
crash_dir = {folder}
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
# Start-up speed: the defaults wait in steps of 1 s and 5 s.
paxos_propose_interval = 0.05
paxos_min_wait = 0.02
objecter_tick_interval = 0.25
[mon]
mon_data = {folder}/mon
mon_data_avail_crit = 1
mon_data_avail_warn = 2
[osd]
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_create = true
bluestore_block_size = 21474836480
bluestore_fsck_on_mount = false
osd_memory_target = 1073741824
osd_class_update_on_start = false
osd_crush_update_on_start = false
# A killed gateway stays registered this long, and whatever changes a bucket or user waits for it (default 30 s).
osd_client_watch_timeout = 2
[client.rgw.a]
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_data = {folder}/run
rgw_thread_pool_size = 64
rgw_num_control_oids = 1
keyring = {folder}/keyring
ms_mon_client_mode = crc
"""


def has_ceph() -> bool:
    """Whether every program of the gateway is installed."""
    return all(shutil.which(program) for program in CEPH_PROGRAMS)


def make_server(kind: str | None = None) -> S3Server:
    """A server that is not started yet: Ceph where it is installed, else moto, or the kind that is asked for."""
    servers: dict[str, type[S3Server]] = {"ceph": CephServer, "moto": MotoServer}
    return servers[kind or ("ceph" if has_ceph() else "moto")]()


def free_port() -> int:
    """A port nobody listens on, drawn at random so that two test runs hardly ever draw the same one."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port among 100 drawn from {PORTS}")


def _end_with_us() -> list[str]:
    """A prefix that has the kernel kill the daemon when pytest dies, however it dies (Linux only)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _clean_environment() -> dict[str, str]:
    """The programs of Ceph are partly system Python: a virtual environment's paths would break them."""
    return {name: value for name, value in os.environ.items() if name not in ("CEPH_ARGS", "CEPH_CONF", "PYTHONPATH")}


def _lock(path: Path) -> int:
    """Hold `path` locked as long as this process lives; BlockingIOError when another does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _left_over_folders() -> Iterator[Path]:
    for lock in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*/lock"):
        try:
            os.close(_lock(lock))
        except OSError:  # in use, or another user's
            continue
        yield lock.parent


def _remove_left_over_folders() -> None:
    """What a killed test run could not remove."""
    for folder in _left_over_folders():
        shutil.rmtree(folder, ignore_errors=True)
