"""What a feature is: which changes make it another one, and what a request may say."""

from dataclasses import fields, replace
from typing import Any

import pytest
import tiny

from bottleneck.errors import UsageError
from bottleneck.pixels import USUAL, PixelsRequest
from bottleneck.sources.reading import Limits
from bottleneck.spec import FeatureRequest, FeatureSpec, canonical_layer, sha256_json, split_layer

SPEC = FeatureSpec(
    base="vgg16",
    weights="imagenet",
    weights_sha256="ab" * 32,
    layers=("block5_pool:avg", "fc2:none"),
    dims=(512, 4096),
    image_size_px=224,
    resize="squash",
    interpolation="bilinear",
    exif="apply",
    decode="exact",
    precision="bfloat16",
    dtype="float16",
)
OTHER: dict[str, Any] = {
    "base": "vgg19",
    "weights_sha256": "cd" * 32,
    "layers": ("block5_pool:max", "fc2:none"),
    "dims": (512, 4095),
    "image_size_px": 160,
    "resize": "crop",
    "interpolation": "nearest",
    "exif": "ignore",
    "decode": "draft",
    "precision": "float32",
    "dtype": "float32",
    "pixels": USUAL["imagenet"],
    "quantization": 1,
}


def test_every_field_but_the_name_of_the_weights_is_varied_here() -> None:
    assert {*OTHER, "weights"} == {field.name for field in fields(FeatureSpec)}


@pytest.mark.parametrize("field", OTHER)
def test_a_field_changes_the_fingerprint(field: str) -> None:
    assert replace(SPEC, **{field: OTHER[field]}).fingerprint != SPEC.fingerprint


def test_the_order_of_layers_changes_the_fingerprint() -> None:
    turned = replace(SPEC, layers=SPEC.layers[::-1], dims=SPEC.dims[::-1])
    assert turned.fingerprint != SPEC.fingerprint


def test_the_name_of_the_weights_does_not_change_the_fingerprint() -> None:
    assert replace(SPEC, weights="s3://bucket/vgg16.h5").fingerprint == SPEC.fingerprint


def test_the_fingerprint_is_the_same_in_every_version() -> None:
    """It names files that are there for years: a new field or another serialisation must not change it unnoticed."""
    assert SPEC.fingerprint == "06dd99980486e1be2e86a758b242c4bae60799411fa728b8119f217963440f9e"
    assert SPEC.short_fingerprint == "06dd9998"


def test_a_spec_comes_back_from_json() -> None:
    assert FeatureSpec.from_json(SPEC.to_json()) == SPEC
    assert FeatureSpec.from_json(SPEC.to_json()).fingerprint == SPEC.fingerprint


@pytest.mark.parametrize("change", ["unknown", "missing"])
def test_a_spec_of_another_version_is_refused_by_its_fields(change: str) -> None:
    value = SPEC.to_json()
    if change == "unknown":
        value["colour_space"] = "lab"
    else:
        del value["exif"]
    with pytest.raises(UsageError, match=r"another version.*(colour_space|exif)"):
        FeatureSpec.from_json(value)


def test_a_spec_says_which_request_resolves_to_it() -> None:
    request = tiny.spec().request
    shared = {field.name for field in fields(FeatureRequest)} - {"input"}
    assert request.input == PixelsRequest()
    assert {name: getattr(request, name) for name in shared} == {name: getattr(tiny.spec(), name) for name in shared}


@pytest.mark.parametrize(
    ("layer", "canonical"),
    [("fc2", "fc2:none"), ("fc2:none", "fc2:none"), ("block5_pool:avg", "block5_pool:avg"), ("a/b:max", "a/b:max")],
)
def test_a_layer_has_one_full_name(layer: str, canonical: str) -> None:
    assert canonical_layer(layer) == canonical
    assert ":".join(split_layer(canonical)) == canonical


@pytest.mark.parametrize("layer", ["block5_pool:mean", "block5_pool:", ":avg", "a:b:c"])
def test_a_layer_with_an_unknown_pooling_or_no_name_is_refused(layer: str) -> None:
    with pytest.raises(UsageError, match=f"avg, max or none.*Received: {layer}"):
        FeatureRequest(layers=(layer,))


@pytest.mark.parametrize("layers", [("fc2", "fc2"), ("fc2", "fc2:none"), ("a:avg", "b", "a:avg")])
def test_a_layer_named_twice_is_refused(layers: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=f"twice. Received: {' '.join(layers)}"):
        FeatureRequest(layers=layers)


def test_a_layer_may_be_taken_with_two_poolings() -> None:
    assert FeatureRequest(layers=("a:avg", "a:max")).layers == ("a:avg", "a:max")


@pytest.mark.parametrize("weights", ["random:", "random:x", "random:-1", "random:1.5", "random: 1", "random:\u00b2"])
def test_a_random_seed_that_is_no_number_is_refused(weights: str) -> None:
    with pytest.raises(UsageError, match=f"whole number.*Received: {weights}"):
        FeatureRequest(weights=weights)


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_pixels": 0}, {"max_bytes": -1}, {"max_pixels": -1}])
def test_limits_that_accept_nothing_are_refused(limits: dict[str, Any]) -> None:
    [(name, value)] = limits.items()
    with pytest.raises(UsageError, match=rf"`{name}` .*Received: {value}"):
        Limits(**limits)


def test_formats_mean_the_same_in_any_order_and_come_back_from_json() -> None:
    limits = Limits(formats=("tiff", "heic", "tiff"))
    assert limits == Limits(formats=("heic", "tiff"))
    assert Limits.from_json(limits.to_json()) == limits
    with pytest.raises(UsageError, match=r"`formats` takes tiff, jpeg2000 or heic. Received: 'tif'. Did you mean tiff"):
        Limits(formats=("tif",))  # type: ignore[arg-type]


def test_limits_of_plans_that_only_knew_tiff_are_read() -> None:
    old = {"max_bytes": 10, "max_pixels": 20}
    assert Limits.from_json({**old, "tiff": True}) == Limits(max_bytes=10, max_pixels=20, formats=("tiff",))
    assert Limits.from_json({**old, "tiff": False}) == Limits(max_bytes=10, max_pixels=20)


def test_a_format_whose_package_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Limits(formats=("heic",)).check_installed()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    Limits(formats=("tiff",)).check_installed()
    with pytest.raises(UsageError, match=r"pip install 'bottleneck-features\[heic\]'"):
        Limits(formats=("heic",)).check_installed()


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})
    assert sha256_json({"a": "\u00e9"}) != sha256_json({"a": "e\u0301"})
