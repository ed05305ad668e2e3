"""The library as its user types it: the six lines, their types, and what they leave alone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

import bottleneck
from bottleneck import Head, fit_head
from bottleneck.dataset.features import Features
from bottleneck.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
SIX_LINES = """
import bottleneck

bottleneck.extract_images("photos", "features")            # this process, no Ray; returns the summary
features = bottleneck.open_features("features")
head = bottleneck.fit_head(features, c=(0.1, 1, 10))        # this process; num_workers=4: a Ray Train job
X, y = features.arrays()                                    # float32 [N, D], labels [N]; features.keys() apart
print(head.score(X, y))
head.save("head")                                           # a head fitted by hand can be saved, too
"""
SMALL = 'base="mobilenet_0.25", weights="random:0"'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the six lines have run, on photos of ten classes and a network without trained weights."""
    folder = tmp_path_factory.mktemp("library")
    tiny.digits_folder(folder / "photos", per_class=5)
    program = SIX_LINES.replace('"features")  ', f'"features", {SMALL})  ')
    assert SMALL in program
    (folder / "example.py").write_text(program + "\nimport sys\nprint(*sys.modules)\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    score, modules = done.stdout.splitlines()
    assert 0.1 < float(score) <= 1
    assert "ray" not in modules.split()
    return folder


@pytest.fixture
def features(folder: Path) -> Features:
    return bottleneck.open_features(str(folder / "features"))


def test_the_six_lines_leave_features_and_a_head(folder: Path, features: Features) -> None:
    assert bottleneck.verify_output(str(folder / "features"), full=True).exit_code == 0
    X, y = features.arrays()
    assert (X.dtype, X.shape, y.shape) == (np.dtype("float32"), (50, 256), (50,))
    assert features.keys()[0] == "0/0000.jpg"
    head = Head.load(str(folder / "head"))
    assert head.origin.features == str(folder / "features")
    assert head.origin.details["accuracy"] >= 0


def test_the_six_lines_have_types(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(f"{SIX_LINES}\nreveal_type(features)\nreveal_type(head)\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(tmp_path / "example.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert '"bottleneck.dataset.features.Features"' in done.stdout
    assert '"bottleneck.heads.head.Head"' in done.stdout


def test_every_public_name_is_there_and_no_folder_has_one() -> None:
    assert {name for name in bottleneck.__all__ if not hasattr(bottleneck, name)} == set()
    assert set(bottleneck.__all__) <= set(dir(bottleneck))
    folders = {path.name for path in (ROOT / "bottleneck").iterdir() if path.is_dir()}
    assert not folders & set(bottleneck.__all__)
    with pytest.raises(AttributeError, match="nansum"):
        bottleneck.nansum  # noqa: B018  # what pandas looks for


def test_a_head_fitted_by_hand_is_saved_and_loaded(tmp_path: Path, features: Features) -> None:
    X, y = features.arrays()
    by_hand = Head(C=2.0, class_weight=None).fit(X, y)
    by_hand.save(str(tmp_path / "head"))
    loaded = Head.load(str(tmp_path / "head"))
    np.testing.assert_array_equal(loaded.predict_proba(X), by_hand.predict_proba(X))
    assert loaded.get_params() == by_hand.get_params()
    with pytest.raises(UsageError, match="was fitted on arrays"):
        loaded.check_fits(features.spec)
    with pytest.raises(UsageError, match="holds a head already"):
        by_hand.save(str(tmp_path / "head"))


def test_a_fit_here_is_that_of_its_arrays(features: Features) -> None:
    head = fit_head(features, c=1, test_fraction=0)
    np.testing.assert_allclose(head.coef_, Head().fit(*features.arrays()).coef_, atol=1e-8)
    assert head.origin.details["num_workers"] == 0
    assert fit_head(features.plan.output, bottleneck.HeadRequest(test_fraction=0), scale="l2").scale == "l2"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "forest"}, "`kind` takes logistic, svm, mlp or auto. Received: 'forest'"),
        ({"scale": "standart"}, "Did you mean standard?"),
        ({"class_weight": "equal"}, "`class_weight` takes none or balanced"),
        ({"c": 0}, "`c` takes numbers above 0. Received: 0"),
        ({"num_workers": -1}, "`num_workers` takes a number from 0 up"),
        ({"use_gpu": True}, "`num_workers` from 1 up"),
    ],
)
def test_a_wrong_option_names_the_valid_ones(features: Features, options: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told.replace("?", r"\?")):
        fit_head(features, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["resize", "interpolation", "exif", "decode", "precision", "dtype"])
def test_a_wrong_literal_of_a_request_is_an_error(option: str) -> None:
    with pytest.raises(UsageError, match=f"`{option}` takes"):
        bottleneck.FeatureRequest(**{option: "none of them"})


def test_a_fit_on_ray_train_gives_the_same_and_leaves_the_callers_ray_running(features: Features) -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        with_ray = fit_head(features, num_workers=2)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    np.testing.assert_allclose(with_ray.coef_, fit_head(features).coef_, atol=1e-8)
