"""Fit the small network, on rotated images, images, or images that stay with their workers.

Legend: N images, D features, K classes, F folds, P problems.
"""

import numpy as np
from threadpoolctl import threadpool_limits

from bottleneck.heads.request import Arrays
from bottleneck.heads.solver import mlp
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.gram import basis_of_products, basis_of_rows
from bottleneck.heads.solver.protocol import total
from bottleneck.heads.solver.worker import Worker


def fit_mlp(data: FitData) -> Arrays:
    """Fit the small network, and return the arrays of the head."""
    center_D, scale_D = data.scaling(-1)
    weights_K = data.class_weights(-1)

    def on_epoch(epoch: int, epochs: int) -> None:
        data.workers.report({"epoch": epoch, "epochs": epochs})

    if data.solver == "sums":
        weight = data.totals_F.sum()
        center_D = center_D if data.moments else data.sums().sum(axis=0) / weight
        squares = total(data.workers.ask(Worker.squares, data.num_folds, center_D[None]))[0].sum(axis=0)
        scale_D = scale_D * np.sqrt((squares / weight / scale_D**2).mean())
        fitted_N = np.flatnonzero(data.folds_N >= 0)

        def by_workers(parameters: mlp.Parameters, chosen: np.ndarray) -> mlp.Parameters:
            chosen = fitted_N[chosen]
            cuts = np.searchsorted(chosen, data.bounds)
            own = [chosen[a:b] - at for a, b, at in zip(cuts, cuts[1:], data.bounds, strict=False)]
            asked = [(parameters, part, center_D, scale_D, weights_K) for part in own]
            answers = data.workers.ask_each(Worker.mlp_gradient, asked)
            return [sum(parts[1:], parts[0]) for parts in zip(*answers, strict=True)]

        parameters = mlp.train(data.dim, data.num_classes, len(fitted_N), data.request, by_workers, on_epoch)
        hidden, hidden_b = parameters[0] / scale_D[:, None], parameters[1]
        hidden_b = hidden_b - center_D @ hidden
        if data.moments:  # the head scales by itself
            mean_D, std_D = data.scaling(-1)
            hidden, hidden_b = hidden * std_D[:, None], hidden_b + mean_D @ hidden
    else:
        matrix = data.matrix(-1)
        every_N = np.ones(len(matrix), bool)
        make = basis_of_products if data.solver == "products" else basis_of_rows
        basis = make(matrix, every_N, centred=True)
        scale = np.sqrt((basis.rows_NR**2).sum() / len(matrix) / min(data.dim, basis.rows_NR.shape[1]))
        inputs_NR = basis.rows_NR / scale
        weights_N = weights_K[data.class_indices_fit]
        if data.sample_weights_fit is not None:
            weights_N = weights_N * data.sample_weights_fit

        def here(parameters: mlp.Parameters, chosen: np.ndarray) -> mlp.Parameters:
            return mlp.gradient(parameters, inputs_NR[chosen], data.class_indices_fit[chosen], weights_N[chosen])

        # Products of so few rows gain nothing from more threads, and lose much where cores are shared.
        with threadpool_limits(1):
            parameters = mlp.train(inputs_NR.shape[1], data.num_classes, len(matrix), data.request, here, on_epoch)
        weights = basis.back @ (parameters[0] / scale)
        hidden, hidden_b = data.expanded(weights), parameters[1] - basis.center @ weights
    out, out_b = parameters[2], parameters[3]
    if data.num_classes == 2:  # one column of log odds
        out, out_b = out[:, 1:] - out[:, :1], out_b[1:] - out_b[:1]
    return {
        "hidden_coef": hidden.T.copy(),
        "hidden_intercept": hidden_b,
        "coef": out.T.copy(),
        "intercept": out_b,
    }
