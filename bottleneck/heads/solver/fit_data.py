"""The data of a fit: workers, class indices, folds, weights and scaling.

Legend: N images, D features, K classes, F folds, P problems.
"""

import copy

import numpy as np

from bottleneck.heads.request import HeadRequest, Variant
from bottleneck.heads.solver.protocol import Workers, total
from bottleneck.heads.solver.worker import Worker

MAX_GRAM_IMAGES = 8192
"""More images than this are not rotated: their eigenvectors would take minutes."""
MAX_COMPACT_VALUES = 32_000_000
"""Images times dimensions that one worker solves alone: 256 MB in float64."""


class FitData:
    """The data of one fit, once classes and folds are known.

    With several labels an image its class is the set of them, and every label a problem of its own.
    """

    solver = "sums"
    """What the optimum is computed from: `products` of images, `images`, or `sums` over images."""

    def __init__(
        self,
        workers: Workers,
        counts: list[int],
        class_indices_N: np.ndarray,
        folds_N: np.ndarray,
        num_classes: int,
        request: HeadRequest,
        num_folds: int,
        weights_K: np.ndarray | None = None,
        sample_weights_N: np.ndarray | None = None,
        has_label_KL: np.ndarray | None = None,
    ) -> None:
        """Take the images' classes and folds, in the order of the workers; `counts` are images per worker.

        Args:
            num_folds: 1 where there is no cross-validation.
            weights_K: of the classes, in place of those of the request.
            sample_weights_N: of the images, above 0 where they are fitted on; None where all count alike.
            has_label_KL: for several labels an image, where each class is a set of them: bool, its labels.
        """
        self.has_label_KL = has_label_KL
        self.weights_K, self.sample_weights_N = weights_K, sample_weights_N
        self.workers, self.request, self.num_classes = workers, request, num_classes
        self.class_indices_N, self.folds_N = class_indices_N, folds_N
        self.bounds = np.cumsum([0, *counts])
        self.num_folds = num_folds
        self.variant = request.variants[0]
        self.columns = 1 if num_classes == 2 else num_classes
        self.num_targets = num_classes
        if has_label_KL is not None:
            self.columns = self.num_targets = has_label_KL.shape[1]

    @property
    def kind(self) -> str:
        """What is solved: `softmax`, `logistic` (two classes), `svm`, `mlp` or `labels`."""
        if self.has_label_KL is not None:
            return "labels"
        is_softmax = self.variant.kind == "logistic" and self.num_classes > 2
        return "softmax" if is_softmax else self.variant.kind

    def like(self, variant: Variant) -> "FitData":
        """The same images for another kind or scaling; `begin` has the workers apply it."""
        other = copy.copy(self)
        other.variant = variant
        return other

    def place(self) -> None:
        """Give the workers the classes, folds and scaling of their images."""
        weights_N = self.sample_weights_N
        self.workers.ask_each(
            Worker.place,
            [
                (
                    self.class_indices_N[own],
                    self.folds_N[own],
                    self.variant.scale,
                    None if weights_N is None else weights_N[own],
                    self.has_label_KL,
                )
                for own in map(slice, self.bounds, self.bounds[1:])
            ],
        )

    def begin(self, dim: int) -> None:
        """Place the images, choose the solver by size, and compute the scaling.

        Args:
            dim: D of the features.
        """
        self.place()
        fitted_N = self.folds_N >= 0
        self.class_indices_fit, self.folds_fit = self.class_indices_N[fitted_N], self.folds_N[fitted_N]
        self.sample_weights_fit = None if self.sample_weights_N is None else self.sample_weights_N[fitted_N]
        self.totals_F = np.bincount(self.folds_fit, self.sample_weights_fit, self.num_folds)
        num_images = len(self.class_indices_fit)
        if num_images < dim and num_images <= MAX_GRAM_IMAGES:
            self.solver = "products"
        elif num_images * dim <= MAX_COMPACT_VALUES:
            self.solver = "images"
        self.dim = dim
        self.moments = self._moments() if self.variant.scale == "standard" else {}

    def matrix(self, scaling: int) -> np.ndarray:
        """The Gram matrix of the fitted images, or the images, with the scaling of a fold."""
        center_D, scale_D = self.scaling(scaling)
        handles = self.workers.ask(Worker.share)
        if self.solver == "images":
            parts = [(rows.astype(np.float64), by) for rows, by in map(self.workers.fetch, handles)]
            return np.concatenate([((r if f is None else r * f[:, None]) - center_D) / scale_D for r, f in parts])
        size = self.workers.size
        pairs = [(i, j) for i in range(size) for j in range(i + 1)]
        # Of equal work: diagonal pairs and others go round separately.
        pairs = [pair for pair in pairs if pair[0] == pair[1]] + [pair for pair in pairs if pair[0] != pair[1]]
        turns = [pairs[rank::size] for rank in range(size)]
        asked = [([(handles[i], handles[j]) for i, j in turn], center_D, scale_D) for turn in turns]
        bounds = np.cumsum([0, *(int((part >= 0).sum()) for (part,) in self.by_worker(self.folds_N))])
        products_NN = np.empty((bounds[-1], bounds[-1]))
        for turn, answers in zip(turns, self.workers.ask_each(Worker.products, asked), strict=True):
            for (i, j), product in zip(turn, answers, strict=True):
                rows, columns = slice(bounds[i], bounds[i + 1]), slice(bounds[j], bounds[j + 1])
                products_NN[rows, columns], products_NN[columns, rows] = product, product.T
        return products_NN

    def expanded(self, weights: np.ndarray) -> np.ndarray:
        """Convert weights of images, from the Gram matrix, to weights of features [D, K]; others are returned as they
        are."""
        if self.solver != "products":
            return weights
        weights_NK = np.zeros((len(self.class_indices_N), weights.shape[1]))
        weights_NK[self.folds_N >= 0] = weights
        center_D, scale_D = self.scaling(-1)
        asked = [(own, center_D, scale_D) for (own,) in self.by_worker(weights_NK)]
        return total(self.workers.ask_each(Worker.expand, asked))

    def class_weights(self, left_out: int) -> np.ndarray:
        """Class weights [K] of the images outside a fold, as scikit-learn's `balanced`; of each label [L, K]."""
        if self.weights_K is not None:
            return self.weights_K
        if self.request.class_weight == "none":
            shape = self.num_classes if self.has_label_KL is None else (self.columns, self.num_classes)
            return np.ones(shape)
        seen_N = self.folds_fit != left_out
        sample_weights = None if self.sample_weights_fit is None else self.sample_weights_fit[seen_N]
        counts_K = np.bincount(self.class_indices_fit[seen_N], sample_weights, self.num_classes)
        if self.has_label_KL is not None:  # each label is a problem of two classes
            with_L, total = counts_K @ self.has_label_KL, counts_K.sum()
            pairs_L2 = np.stack([total - with_L, with_L], axis=1)
            weights_L2 = total / (2 * np.where(pairs_L2 > 0, pairs_L2, 1))
            weights_LK: np.ndarray = np.where(self.has_label_KL.T, weights_L2[:, 1:], weights_L2[:, :1])
            return weights_LK
        weights_K: np.ndarray = counts_K.sum() / (self.num_classes * np.where(counts_K > 0, counts_K, 1))
        return weights_K

    def scaling(self, left_out: int) -> tuple[np.ndarray, np.ndarray]:
        """Center and scale of the features, [D] each."""
        return self.moments.get(left_out, (np.zeros(self.dim), np.ones(self.dim)))

    def sums(self) -> np.ndarray:
        return total(self.workers.ask(Worker.sums, self.num_folds))

    def _moments(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Mean and standard deviation of the images outside each fold, as scikit-learn's StandardScaler."""
        sums_FD = self.sums()
        seen = [[f for f in range(self.num_folds) if f != left_out] for left_out in (*range(self.num_folds), -1)]
        numbers = [self.totals_F[folds].sum() for folds in seen]
        if self.num_folds == 1:  # nothing is left out
            seen, numbers = seen[1:], numbers[1:]
        means = np.stack([sums_FD[folds].sum(axis=0) / count for folds, count in zip(seen, numbers, strict=True)])
        squares = total(self.workers.ask(Worker.squares, self.num_folds, means))
        found = {}
        left_outs = [*range(self.num_folds), -1] if self.num_folds > 1 else [-1]
        for left_out, folds, count, mean_D, square_FD in zip(left_outs, seen, numbers, means, squares, strict=True):
            variance_D = square_FD[folds].sum(axis=0) / count
            eps = np.finfo(np.float64).eps
            constant_D = variance_D <= count * eps * variance_D + (count * mean_D * eps) ** 2
            found[left_out] = (mean_D, np.where(constant_D, 1.0, np.sqrt(variance_D)))
        return found

    def by_worker(self, *arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """Cut arrays over all images into the parts of the workers."""
        parts = zip(self.bounds, self.bounds[1:], strict=False)
        return [tuple(array[start:end] for array in arrays) for start, end in parts]
