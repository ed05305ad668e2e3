"""The approximate inverse of the Hessian."""

from __future__ import annotations

import numpy as np
import pytest

from bottleneck.heads.solver import objective
from bottleneck.heads.solver.losses import Problems
from bottleneck.heads.solver.newton import Coordinates, Optimum, minimize
from bottleneck.heads.solver.objective import LocalObjective
from bottleneck.heads.solver.preconditioner import Preconditioner
from bottleneck.heads.solver.rows import Rows
from jobs.benchmark.made_up import made_up_features


def test_a_hessian_that_is_a_kronecker_product_is_inverted() -> None:
    rng = np.random.default_rng(0)
    num_problems, num_classes, dim = 2, 4, 5
    probabilities_NPK = rng.dirichlet(np.ones(num_classes), (50, num_problems))
    pairs_PKK = np.einsum("npk,npl->pkl", probabilities_NPK, probabilities_NPK)
    curvature_PK = (probabilities_NPK * (1 - probabilities_NPK)).sum(axis=0)
    variances_J, penalty_J = np.append(rng.uniform(0.1, 9, dim), 1.0), np.append(np.ones(dim), 0.0)
    precondition = Preconditioner(penalty_J, variances_J, curvature_PK, pairs_PKK)
    wanted_JPK = rng.standard_normal((dim + 1, num_problems, num_classes))
    wanted_JPK -= wanted_JPK.mean(axis=2, keepdims=True)  # gradients never have a shift of all classes
    classes_PKK = probabilities_NPK.sum(axis=0)[:, :, None] * np.eye(num_classes) - pairs_PKK
    hessian_JPK = penalty_J[:, None, None] * wanted_JPK
    hessian_JPK += variances_J[:, None, None] * np.einsum("pkl,jpl->jpk", classes_PKK, wanted_JPK)
    np.testing.assert_allclose(precondition(hessian_JPK, np.arange(2)), wanted_JPK, atol=1e-10)
    np.testing.assert_allclose(precondition(hessian_JPK[:, 1:], np.array([1])), wanted_JPK[:, 1:], atol=1e-10)


def test_classes_that_are_mistaken_for_one_another_take_fewer_products(monkeypatch: pytest.MonkeyPatch) -> None:
    class_indices_N = np.arange(1_500) % 12
    features_ND = made_up_features(class_indices_N, 12, 40, seed=1).astype(np.float64)
    center_D = features_ND.mean(axis=0)
    variances_D, rotation_DD = np.linalg.eigh(np.cov(features_ND.T))
    coordinates = Coordinates(center_D[None], np.ones((1, 40)), rotation_DD, variances_D, 0.0)
    problems = Problems("softmax", np.array([1.0]), np.array([-1]), np.zeros(1, int), np.ones((1, 12)))
    rows = Rows(features_ND, class_indices_N, np.zeros(1_500, int))

    def solve() -> Optimum:
        return minimize(LocalObjective(rows, np.float32), problems, coordinates, np.zeros((41, 1, 12)), 1e-18)

    coupled = solve()
    monkeypatch.setattr(objective, "COUPLED_VALUES", 0)
    alone = solve()
    assert coupled.gaps_P[0] < 1e-18
    one, other = (found.theta_JPK - found.theta_JPK.mean(axis=2, keepdims=True) for found in (coupled, alone))
    np.testing.assert_allclose(one, other, atol=1e-8 * np.abs(other).max())
    assert coupled.products < 0.75 * alone.products
    assert coupled.steps <= 12
