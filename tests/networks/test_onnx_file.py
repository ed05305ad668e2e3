"""Any network in an ONNX file is a base; files that cannot be one are refused with a reason.

Legend: N images, H x W pixels, C channels, D features of a layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from assets import asset
from onnx import TensorProto, helper, numpy_helper

import bottleneck
from bottleneck.dataset.plan import load_plan
from bottleneck.errors import BottleneckError, FingerprintError, UsageError, WeightsError
from bottleneck.networks.base import Base
from bottleneck.networks.onnx_file import open_onnx
from bottleneck.networks.prepare import prepare_network
from bottleneck.networks.prepared import differences, reference_pixels
from bottleneck.pixels import PixelsRequest
from bottleneck.spec import FeatureRequest, FeatureSpec
from jobs.__main__ import main

Shape = list[int | str | None]


def write_network(
    path: Path,
    shape: Shape = ["batch", 3, 32, 32],  # noqa: B006  # read only
    *,
    nodes: list[Any] | None = None,
    element: int = TensorProto.FLOAT,
    opset: int = 17,
    external: bool = False,
    seed: int = 0,
) -> Path:
    """A convolution with ReLU, `map`, and a dense layer on its mean, `vector`."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(5, 3, 3, 3)).astype(np.float32)
    dense = rng.normal(size=(5, 4)).astype(np.float32)
    is_last = shape[-1] == 3
    body = nodes or [
        *([helper.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2])] if is_last else []),
        helper.make_node("Conv", ["first" if is_last else "image", "kernel"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["vector"]),
    ]
    graph = helper.make_graph(
        body,
        "network",
        [helper.make_tensor_value_info("image", element, shape)],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, [shape[0], 4])],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(dense, "dense")],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


def request(path: Path, *layers: str, **pixels: Any) -> FeatureRequest:
    asked = PixelsRequest(**(pixels or {"pixels": "unit"}))
    return FeatureRequest(base="onnx", weights=str(path), layers=layers, dtype="float32", input=asked)


def by_hand(pixels_NHWC: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The map [N, H, W, 5] and vector [N, 4] of `write_network`, for input values as they are."""
    rng = np.random.default_rng(seed)
    kernel_OIHW, dense = rng.normal(size=(5, 3, 3, 3)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    padded = np.pad(pixels_NHWC.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    size = pixels_NHWC.shape[1]
    map_NHWC = sum(
        np.einsum("nhwc,oc->nhwo", padded[:, y : y + size, x : x + size], kernel_OIHW[:, :, y, x])
        for y in range(3)
        for x in range(3)
    )
    map_NHWC = np.maximum(map_NHWC, 0)
    return map_NHWC, map_NHWC.mean(axis=(1, 2)) @ dense


@pytest.mark.parametrize("shape", [["batch", 3, 32, 32], ["n", 32, 32, 3], [None, 3, None, None], [1, 3, 32, 32]])
def test_layers_and_pixels_mean_what_they_say(shape: Shape, tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.onnx", shape)
    asked = request(
        path, "map:avg", "map", "vector", "map:max",
        channels="bgr", scale=0.5, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), image_size=32,
    )  # fmt: skip
    base = Base.of(asked, "float32", 4)
    assert base.spec.dims == (5, 32 * 32 * 5, 4, 5)
    pixels_NHWC = reference_pixels(32)[[0, 1, 0]]
    values_NHWC = (pixels_NHWC[..., ::-1] * 0.5 - np.array([1.0, 2.0, 3.0])) / np.array([4.0, 5.0, 6.0])
    map_NHWC, vector_ND = by_hand(values_NHWC)
    expected = (map_NHWC.mean(axis=(1, 2)), map_NHWC.reshape(3, -1), vector_ND, map_NHWC.max(axis=(1, 2)))
    assert differences(base(pixels_NHWC), expected) < 1e-5


def test_names_in_a_file_may_be_those_that_are_used_here(tmp_path: Path) -> None:
    """As in a model that was exported, whose input is `pixels`."""
    path = write_network(tmp_path / "net.onnx")
    model = onnx.load(path)
    ours = {"image": "pixels", "map": "features_0", "kernel": "bottleneck_1", "dense": "bottleneck_scale"}
    for node in model.graph.node:
        node.input[:] = [ours.get(name, name) for name in node.input]
        node.output[:] = [ours.get(name, name) for name in node.output]
    for one in (*model.graph.input, *model.graph.initializer):
        one.name = ours.get(one.name, one.name)
    onnx.save_model(model, tmp_path / "ours.onnx")
    pixels_NHWC = reference_pixels(32)[[0, 1]]
    expected = Base.of(request(path, "map:avg", "vector"), "float32", 4)(pixels_NHWC)
    found = Base.of(request(tmp_path / "ours.onnx", "features_0:avg", "vector"), "float32", 4)(pixels_NHWC)
    assert differences(found, expected) == 0


def test_what_decides_a_feature_is_in_the_fingerprint(tmp_path: Path) -> None:
    def spec(path: Path, **pixels: Any) -> FeatureSpec:
        asked = request(path, **pixels)
        return prepare_network(asked).spec(asked, "float32")

    path = write_network(tmp_path / "net.onnx")
    first = spec(path)
    assert first == spec(path, scale=1 / 255, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert FeatureSpec.from_json(json.loads(json.dumps(first.to_json()))) == first
    assert first.request.input.resolved() == first.pixels
    others = [spec(path, pixels=name) for name in ("imagenet", "clip", "caffe", "tf", "raw")]
    others += [spec(path, pixels="unit", channels="bgr"), spec(write_network(tmp_path / "other.onnx", seed=1))]
    assert len({one.fingerprint for one in [first, *others]}) == 8
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(path.read_bytes())
    assert spec(copy).fingerprint == first.fingerprint


def test_a_base_of_the_catalog_has_the_fingerprint_it_always_had() -> None:
    assert "pixels" not in tiny.spec().to_json()
    assert tiny.spec().fingerprint == "e1cf48bbc5ec7ef645a627ef33ec066099e454d4f3e2ec3abe4ed74984e1c072"


def test_values_beside_the_file_are_read_and_count(tmp_path: Path) -> None:
    one = write_network(tmp_path / "one.onnx")
    beside = write_network(tmp_path / "folder" / "net.onnx", external=True)
    networks = [prepare_network(request(path)) for path in (one, beside)]
    assert differences(list(networks[0].references), networks[1].references) == 0
    weights = tmp_path / "folder" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[::-1])
    changed = prepare_network(request(beside))
    assert changed.weights_sha256 != networks[1].weights_sha256
    assert changed.key != networks[1].key


def _moved(path: Path) -> None:
    (path.parent / "weights.bin").rename(path.parent.parent / "weights.bin")
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"../w.bin..."))


def _text(path: Path) -> None:
    path.write_text("no network")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _huge(path: Path) -> None:
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 10**9
    path.write_bytes(model.SerializeToString())


REFUSED: list[tuple[str, dict[str, Any], Callable[[Path], None] | None, str]] = [
    ("no file of ONNX", {}, _text, "damaged, or no ONNX file"),
    ("cut", {}, _cut, "damaged, or no ONNX file"),
    ("declares too much", {}, _huge, "declares 1000000000 x 3 x 3 x 3 values, which it does not have"),
    ("values outside its folder", {"external": True}, _moved, "no file inside its folder"),
    (
        "operators of its own",
        {"nodes": [helper.make_node("Magic", ["image"], ["vector"], domain="com.example")]},
        None,
        "operators outside the ONNX standard .Magic of com.example.",
    ),
    ("an unknown operator", {"nodes": [helper.make_node("Magic", ["image"], ["vector"])]}, None, "Magic"),
    ("old", {"opset": 8}, None, "opset 8"),
    ("no image", {"shape": ["n", 10]}, None, "expected N x 3 x H x W"),
    ("one channel", {"shape": ["n", 1, 32, 32]}, None, "expected N x 3 x H x W"),
    ("whole numbers", {"element": TensorProto.INT64}, None, "expected float32, float16 or uint8"),
    (
        "huge maps",
        {
            "nodes": [
                helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([1, 2**34]), "")),
                helper.make_node("ConstantOfShape", ["shape"], ["wide"]),
                helper.make_node("ReduceMean", ["wide"], ["vector"], axes=[1]),
            ]
        },
        None,
        "values for one image",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("what", "options", "change", "message"), REFUSED, ids=[one[0] for one in REFUSED])
def test_what_cannot_be_used_is_refused_with_a_reason(
    what: str, options: dict[str, Any], change: Callable[[Path], None] | None, message: str, tmp_path: Path
) -> None:
    path = write_network(tmp_path / "folder" / "net.onnx", **options)
    if change:
        change(path)
    with pytest.raises(WeightsError, match=message):
        open_onnx(str(path), "net.onnx")


def test_a_network_of_one_batch_size_or_that_mixes_images_is_refused(tmp_path: Path) -> None:
    fixed = [
        helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([1, -1]), "")),
        helper.make_node("Reshape", ["image", "shape"], ["vector"]),
    ]
    with pytest.raises(WeightsError, match=r"mixes the images of a batch|cannot run this file"):
        prepare_network(request(write_network(tmp_path / "net.onnx", [1, 3, 32, 32], nodes=fixed)))


@pytest.mark.parametrize(
    ("layers", "pixels", "message"),
    [
        (("maps:avg",), {}, r"no tensor of this name .* Expected map \(32 x 32 x 5\)"),
        (("vector:avg",), {}, "plain vector and cannot be pooled"),
        ((), {"image_size": 32}, "does not say how it takes pixels"),
        ((), {"pixels": "unit", "image_size": 48}, "is 32 x 32 pixels"),
    ],
)
def test_what_does_not_fit_the_file_is_told(
    layers: tuple[str, ...], pixels: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        prepare_network(request(write_network(tmp_path / "net.onnx"), *layers, **pixels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "onnx"}, "goes with `weights` FILE.onnx"),
        ({"base": "vgg16", "weights": "net.onnx"}, "goes with `weights` FILE.onnx"),
        ({"base": "vgg16", "input": PixelsRequest(pixels="unit")}, "knows how it takes pixels"),
    ],
)
def test_a_request_that_mixes_files_and_the_catalog_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FeatureRequest(**options)


@pytest.mark.parametrize(
    "options", [{"mean": (1.0,)}, {"std": (1.0, 0.0, 1.0)}, {"image_size": 0}, {"pixels": "torch"}, {"scale": 0.0}]
)
def test_pixels_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PixelsRequest(**options)


@pytest.mark.filterwarnings("ignore::FutureWarning:keras.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("base", "weights", "pixels"),
    [
        ("mobilenet_0.75", "weights/mobilenet_7_5_224_tf_no_top.rebuilt.h5", "tf"),
        ("vgg16", "weights/vgg16_notop.rebuilt.h5", "caffe"),
    ],
)
def test_keras_networks_exported_give_the_features_of_the_base(
    base: str, weights: str, pixels: str, tmp_path: Path
) -> None:
    from bottleneck.networks.keras_import import import_keras

    keras, file = import_keras(), str(asset(weights))
    options: dict[str, Any] = {"include_top": False, "weights": file, "input_shape": (224, 224, 3)}
    if base == "vgg16":
        network = keras.applications.VGG16(**options)
    else:
        network = keras.applications.MobileNet(alpha=0.75, **options)
    network(np.zeros((1, 224, 224, 3), np.float32))
    path = tmp_path / "exported.onnx"
    network.export(path, format="onnx", verbose=False)
    own = prepare_network(FeatureRequest(base=base, weights=file))
    brought = prepare_network(request(path, pixels=pixels))
    assert brought.dims == own.dims
    assert differences(list(brought.references), own.references) <= 1e-4


def test_jobs_take_an_onnx_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the features to a head, an exported model and back."""

    def run(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        exit_code = main([*map(str, arguments), "--json"])
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert exit_code == 0, result
        return result

    photos = tiny.digits_folder(tmp_path / "photos", per_class=12)
    path, output, head = write_network(tmp_path / "net.onnx"), tmp_path / "features", tmp_path / "head"
    options = ["--base", "onnx", "--weights", path, "--pixels", "unit", "--layers", "map", "--dtype", "float32"]
    made = run("extract", photos, output, *options, "--local")
    assert made["ok"] == made["images"] == 120
    assert run("verify", output, "--recompute", "4")["exit_code"] == 0
    plan = load_plan(str(output))
    assert plan is not None
    assert plan.spec.pixels is not None
    with pytest.raises(FingerprintError, match="pixels"):
        bottleneck.extract_images(str(photos), str(output), request(path, "map", pixels="raw"))
    bottleneck.fit_head(bottleneck.open_features(str(output)), c=1.0).save(str(head))
    photo = next(photos.rglob("*.*"))
    [answer] = run("classify", photo, "--head", head)["images"]
    found = run("similar", photo, output, "--top", "1")
    assert len(found["queries"][0]["similar"]) == 1
    file = tmp_path / "fused.onnx"
    facts = run("export", head, file)
    assert facts["max_difference"] < 1e-5
    session = __import__("onnxruntime").InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    spec = bottleneck.Head.load(str(head)).origin.spec
    from bottleneck.extract.decode import Decoded, decode
    from bottleneck.sources.reading import Limits

    decoded = decode(photo.read_bytes(), spec, Limits())
    assert isinstance(decoded, Decoded)
    [probabilities_NK] = session.run(None, {"pixels": decoded.pixels_HWC[None]})
    best = facts["classes"][int(probabilities_NK[0].argmax())]
    assert best == answer["classes"][0]["class"]
    from bottleneck.heads.export import export_head

    with pytest.raises(BottleneckError, match="exported as one"):
        export_head(bottleneck.Head.load(str(head)), "keras")
    predicted = run("predict", photos, head, tmp_path / "predictions")
    assert predicted["images"] == 120


def test_describe_lists_the_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_network(tmp_path / "net.onnx")
    assert main(["describe", "onnx", "--weights", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    shapes = {layer["name"]: (layer["shape"], layer["pooled_dim"], layer["dim"]) for layer in result["layers"]}
    assert shapes["map"] == ([32, 32, 5], 5, 5120)
    assert shapes["vector"] == ([4], None, 4)
    assert result["default_layer"] == "vector:none"
    assert main(["describe", "onnx"]) == 2
    assert main(["describe", "vgg16", "--weights", str(path)]) == 2
