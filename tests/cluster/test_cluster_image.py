"""The image of a cluster's nodes: pinned and without secrets; its commands work, as far as they run without docker."""

from __future__ import annotations

import re
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
PIN = re.compile(r"^([a-z0-9._-]+)==([^ ;]+)((?: ;[^\\\n]*)?) \\\n((?:    --hash=\S+(?: \\)?\n)+)", re.MULTILINE)


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines()) if word]


def of(instruction: str) -> list[str]:
    return [rest for word, rest in instructions() if word == instruction]


def test_the_image_is_pinned_runs_as_a_user_and_holds_no_secret() -> None:
    [base] = of("FROM")
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-[a-z-]+(@sha256:[0-9a-f]{64})?", base)
    assert of("USER") == ["1000:1000"]
    for command in of("RUN"):
        assert not re.search(r"pip install(?!.*--no-cache-dir)", command)
        if "pip install" in command:
            assert "--no-deps --require-hashes" in command or "--no-deps --no-build-isolation" in command
    assert of("ENTRYPOINT") == ['["tini", "-g", "--"]']
    assert any("apt-get install" in command and " tini " in command for command in of("RUN"))
    text = (CLUSTER / "Dockerfile").read_text()
    assert not re.search(r"latest|_KEY=|PASSWORD|SECRET|TOKEN=", text)
    assert "RAY_AUTH_MODE=token" in text
    assert of("ADD") == []


def test_the_image_copies_what_exists_and_what_is_let_through_to_its_builder() -> None:
    let_through = {
        line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = {word for rest in of("COPY") for word in rest.split()[:-1]}
    copied = {name.replace("${VARIANT}", variant) for name in copied for variant in ("cpu", "gpu")}
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("command", of("RUN"), ids=lambda command: command[:30])
def test_each_command_of_the_image_parses(command: str) -> None:
    assert subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_the_image_holds_what_runs_and_no_test_tools(variant: str) -> None:
    image = {name: pin for name, *pin in PIN.findall((CLUSTER / f"{variant}.lock").read_text())}
    assert len(image) > 100
    assert all("--hash=sha256:" in pin[2] for pin in image.values())
    assert not {"pytest", "moto", "mypy", "ruff", "bottleneck"} & set(image)
    assert {
        "ray",
        "tensorflow",
        "onnx",
        "onnxruntime",
        "ncnn",
        "tf2onnx",
        "s3fs",
        "boto3",
        "gcsfs",
        "google-api-python-client",
    } <= set(image)
    assert ("nvidia-cudnn-cu12" in image) == (variant == "gpu")
    assert ("tensorflow-cpu" in image) == (variant == "cpu")


@pytest.mark.faults
def test_the_images_commands_make_an_environment_in_which_the_command_works(tmp_path: Path) -> None:
    """Everything but the system packages and the user, in an environment instead of a container; takes minutes."""
    venv.create(tmp_path / "venv", with_pip=True)
    for names in of("COPY"):
        *sources, target = names.replace("${VARIANT}", "cpu").split()
        for source in sources:
            path = tmp_path / target.removeprefix("/")
            into = path / Path(source).name if target.endswith("/") else path
            into.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, into)
    environment = {"PATH": f"{tmp_path}/venv/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    for command in of("RUN"):
        if not command.startswith(("apt-get", "useradd")):
            command = command.replace("/opt/bottleneck", f"{tmp_path}/opt/bottleneck")
            done = subprocess.run(
                ["bash", "-c", command], env=environment, cwd=tmp_path, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-2000:]
    assert "0.1.0" in done.stdout
