"""What `describe` says of a network is what Keras and the extraction say of it."""

import io
import json
from pathlib import Path

import keras
import pytest
from PIL import Image
from tiny import real_spec

from bottleneck.networks.build import build_network
from bottleneck.networks.describe import describe, draw_network, table
from jobs.__main__ import main


def test_totals_are_keras_own() -> None:
    description = describe("mobilenet_0.25")
    keras.utils.clear_session()
    whole, body = build_network("mobilenet_0.25", with_top=True), build_network("mobilenet_0.25", with_top=False)
    assert description.num_parameters == whole.count_params()
    assert description.num_body_parameters == body.count_params()
    assert [layer.name for layer in description.layers] == [layer.name for layer in whole.layers[1:]]
    assert [layer.name for layer in description.layers if not layer.in_top] == [layer.name for layer in body.layers[1:]]


def test_dimensions_are_those_of_extracted_features() -> None:
    spec = real_spec()
    description = describe(spec.base)
    assert f"{description.default.name}:avg" == spec.layers[0]
    assert description.default.pooled_dim == spec.dims[0]


def test_vgg16_is_the_one_of_the_paper() -> None:
    """138 million parameters: Simonyan and Zisserman 2015, table 2, configuration D."""
    description = describe("vgg16")
    assert description.num_parameters == 138_357_544
    assert description.num_body_parameters == 14_714_688
    lines = {line.split()[0]: line.split() for line in table(description).splitlines() if line.strip()}
    assert lines["block5_pool"][-3:] == ["0", "512", "25,088"]
    assert lines["fc2"][-2:] == ["-", "4,096"]
    assert lines["block5_pool"][1] == "*"
    assert lines["fc1"][1] == "+"


@pytest.mark.parametrize("file_format", ["png", "svg"])
def test_the_job_draws_the_network(file_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"net.{file_format}"
    assert main(["--json", "describe", "mobilenet_0.25", "--plot", str(path)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["parameters"] == 475_544
    assert result["default_layer"] == "conv_pw_13_relu:avg"
    data = path.read_bytes()
    if file_format == "png":
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.width > 1000
    else:
        assert b"<svg" in data
    assert draw_network(describe("mobilenet_0.25"), file_format) == data


def test_wrong_names_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "vgg17"]) == 2
    assert "Expected vgg19, vgg16, " in capsys.readouterr().err
    assert main(["describe", "vgg16", "--plot", "net.pdf"]) == 2
    assert ".png or .svg" in capsys.readouterr().err
