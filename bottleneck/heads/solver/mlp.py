"""The tutorials' small network: one hidden layer, relu, softmax; Adam on minibatches.

Inputs are centred and divided by one number, so that rates suit features of any size. Where images are fewer than
dimensions they come rotated into their own span, which costs as much as N. The coordinator draws the order of images
from the seed of the request, so any number of workers gives the same head, up to rounding.

Legend: N images of a minibatch, D features, H hidden units, K classes.
"""

from collections.abc import Callable

import numpy as np

from bottleneck.heads.request import HeadRequest
from bottleneck.heads.solver.losses import probabilities

EPOCHS = 40
STEPS = 2000
"""At least, whatever the number of images."""
MIN_BATCH, MAX_BATCH = 32, 1024
RATE = 1e-3
DECAY = 1e-2
"""Of the weights, a step, times the rate (Loshchilov and Hutter 2019)."""

Parameters = list[np.ndarray]
"""Hidden weights [D, H] and biases [H], weights [H, K] and biases [K]."""


def start(dim: int, hidden_size: int, num_classes: int, rng: np.random.Generator) -> Parameters:
    """Weights by He's rule."""
    return [
        rng.normal(0, np.sqrt(2 / dim), (dim, hidden_size)),
        np.zeros(hidden_size),
        rng.normal(0, np.sqrt(1 / hidden_size), (hidden_size, num_classes)),
        np.zeros(num_classes),
    ]


def gradient(
    parameters: Parameters, inputs_ND: np.ndarray, class_indices_N: np.ndarray, weights_N: np.ndarray
) -> Parameters:
    """Sum over images of the gradient of weighted cross-entropy."""
    hidden, hidden_b, out, out_b = parameters
    active_NH = np.maximum(inputs_ND @ hidden + hidden_b, 0)
    slope_NK = probabilities(active_NH @ out + out_b)
    slope_NK[np.arange(len(class_indices_N)), class_indices_N] -= 1
    slope_NK *= weights_N[:, None]
    back_NH = (slope_NK @ out.T) * (active_NH > 0)
    return [inputs_ND.T @ back_NH, back_NH.sum(axis=0), active_NH.T @ slope_NK, slope_NK.sum(axis=0)]


def train(
    dim: int,
    num_classes: int,
    num_images: int,
    request: HeadRequest,
    gradient_of: Callable[[Parameters, np.ndarray], Parameters],
    on_epoch: Callable[[int, int], None] | None = None,
) -> Parameters:
    """Train from the request's seed.

    Args:
        request: with the number of hidden units, epochs and seed.
        gradient_of: the summed gradient over images, given by number.
        on_epoch: called with the epochs done and their number.
    """
    rng = np.random.default_rng(request.seed)
    parameters = start(dim, request.hidden_size, num_classes, rng)
    first = [np.zeros_like(value) for value in parameters]
    second = [np.zeros_like(value) for value in parameters]
    batch = int(np.clip(num_images // 32, MIN_BATCH, MAX_BATCH))
    steps_an_epoch = -(-num_images // batch)
    usual = max(EPOCHS, -(-STEPS // steps_an_epoch)) if num_images < 1_000_000 else EPOCHS // 4
    epochs = request.epochs or usual
    step = 0
    for epoch in range(epochs):
        order_N = rng.permutation(num_images)
        for begin in range(0, num_images, batch):
            chosen = order_N[begin : begin + batch]
            step += 1
            # The rate falls to zero along a cosine, so that the end does not depend on the last few images.
            rate = RATE * (1 + np.cos(np.pi * step / (epochs * steps_an_epoch))) / 2
            for at, slope in enumerate(gradient_of(parameters, np.sort(chosen))):
                slope = slope / len(chosen)
                first[at] += 0.1 * (slope - first[at])
                second[at] += 0.001 * (slope**2 - second[at])
                move = first[at] / (1 - 0.9**step) / (np.sqrt(second[at] / (1 - 0.999**step)) + 1e-8)
                if at % 2 == 0:
                    move = move + DECAY * parameters[at]
                parameters[at] = parameters[at] - rate * move
        if on_epoch:
            on_epoch(epoch + 1, epochs)
    return parameters
