"""A worker of a fit: reads its images, and computes on them what the coordinator asks.

Features are read once, by the worker that owns their files, and stay there as they are stored; what travels are sums,
products and, where all images fit one worker, the images themselves, from worker to worker.

Legend: N images of this worker, D features, K classes, F folds, P problems.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bottleneck.dataset.features import Features, side_by_side
from bottleneck.dataset.schema import ok_rows
from bottleneck.errors import FeaturesError
from bottleneck.heads.solver import mlp
from bottleneck.heads.solver.gram import Path, basis_of_products, basis_of_rows, solve_path
from bottleneck.heads.solver.label_counts import AnyCounts, counts_of
from bottleneck.heads.solver.losses import Problems, log_loss
from bottleneck.heads.solver.objective import LocalObjective
from bottleneck.heads.solver.rows import Rows, as_dtype
from bottleneck.heads.splits import SplitRule, Traits, all_traits
from bottleneck.spec import layers_in

PRODUCT_VALUES = 8_000_000
"""Values per block while products of images are summed: 64 MB of float64."""
SUM_VALUES = 1_000_000
"""Values per block of all other sums: 8 MB of float64, a few such arrays at a time."""


class Worker:
    """The images of one worker. The coordinator asks for its public methods."""

    def __init__(self, publish: Callable[[Any], Any] = lambda value: value, fetch: Callable[[Any], Any] = lambda h: h):
        """Args: publish, fetch: make an array readable by other workers, and read it there."""
        self.publish, self.fetch = publish, fetch
        self.features_ND = np.empty((0, 0), np.float32)
        self.class_indices_N = np.empty(0, np.int64)
        self.folds_N = np.empty(0, np.int64)
        self.sample_weights_N: np.ndarray | None = None
        self.has_label_KL: np.ndarray | None = None
        self.keys = pa.array([], pa.large_string())

    # Reading

    def read(
        self, features: Features, layer: str, files: list[str], num_rows: int, rule: SplitRule
    ) -> tuple[list[str], np.ndarray, Traits, int]:
        """Read files, keeping labelled ok images.

        Args:
            num_rows: ok images in these files, at least.
            rule: which tells what the split needs to know of each image.

        Returns:
            The labels here, every image's label as a number into them, its traits, and the number without label.
        """
        dim = features.spec.dim_of(layer)
        self.features_ND = np.empty((num_rows, dim), features.spec.dtype)
        keys, labels, traits = [], [], [rule.no_traits()]
        end = unlabelled = 0
        for name in files:
            table = features.table(
                name, list(dict.fromkeys(["key", "label", "status", *rule.columns(), *layers_in(layer)]))
            )
            labelled, num_unlabelled = labelled_rows(table)
            unlabelled += num_unlabelled
            values_ND = side_by_side(labelled, layer)
            start, end = end, end + len(labelled)
            if end > len(self.features_ND):
                self.features_ND = np.resize(self.features_ND, (end, dim))
            self.features_ND[start:end] = values_ND
            check_finite(self.features_ND[start:end], labelled, f"{features.plan.output}/{name}")
            keys += labelled.column("key").cast(pa.large_string()).chunks
            labels.append(labelled.column("label"))
            traits.append(rule.traits(labelled))
        self.features_ND = self.features_ND[:end]
        self.keys = pa.chunked_array(keys, pa.large_string()).combine_chunks()
        pa.default_memory_pool().release_unused()  # up to a dozen times a data file, for as long as the fit takes
        return *encoded(labels), all_traits(traits), unlabelled

    def hold(self, features_ND: np.ndarray) -> None:
        """Hold images that are already in memory."""
        self.features_ND = features_ND
        self.keys = pa.array(np.arange(len(features_ND))).cast(pa.large_string())

    def place(
        self,
        class_indices_N: np.ndarray,
        folds_N: np.ndarray,
        scale: str,
        sample_weights_N: np.ndarray | None = None,
        has_label_KL: np.ndarray | None = None,
    ) -> None:
        """Take the images' class indices, folds, scaling, weights (None where all count alike), and the labels of each
        class where those are sets of labels."""
        self.has_label_KL = has_label_KL
        self.class_indices_N, self.folds_N, self.sample_weights_N = class_indices_N, folds_N, sample_weights_N
        self.factors_N = None
        if scale == "l2":
            norms = [np.linalg.norm(as_dtype(self.features_ND[part], np.float64), axis=1) for part in self._parts()]
            norms_N = np.concatenate([np.empty(0), *norms])
            self.factors_N = 1 / np.where(norms_N == 0, 1, norms_N)

    # Sums

    def sums(self, num_folds: int) -> np.ndarray:
        """Sum the weighted features of every fold, [F, D]."""
        return self._by_fold(num_folds)

    def squares(self, num_folds: int, means_FD: np.ndarray) -> np.ndarray:
        """Sum the weighted squared distances to each mean, of every fold: [F, F, D]."""
        return np.stack([self._by_fold(num_folds, mean_D) for mean_D in means_FD])

    def _by_fold(self, num_folds: int, squared_from_D: np.ndarray | None = None) -> np.ndarray:
        result_FD = np.zeros((num_folds, self.features_ND.shape[1]))
        for part in self._parts():
            block_ND = self._block(part)
            if squared_from_D is not None:
                block_ND = (block_ND - squared_from_D) ** 2
            if self.sample_weights_N is not None:
                block_ND = block_ND * self.sample_weights_N[part, None]
            for fold in range(num_folds):
                result_FD[fold] += block_ND[self.folds_N[part] == fold].sum(axis=0)
        return result_FD

    def covariance(self, center_D: np.ndarray, scale_D: np.ndarray) -> np.ndarray:
        """Covariance [D, D] of the fitted images, times their number; float32 is enough for a preconditioner."""
        result_DD = np.zeros((len(center_D), len(center_D)))
        for part in self._parts():
            block_ND = self._block(part)[self.folds_N[part] >= 0]
            scaled_ND = ((block_ND - center_D) / scale_D).astype(np.float32)
            result_DD += scaled_ND.T @ scaled_ND
        return result_DD

    # Images as a whole

    def share(self) -> Any:
        """A handle with which other workers read the fitted images of this one."""
        fitted_N = self.folds_N >= 0
        factors_N = None if self.factors_N is None else self.factors_N[fitted_N]
        return self.publish((self.features_ND if fitted_N.all() else self.features_ND[fitted_N], factors_N))

    def products(self, pairs: list[tuple[Any, Any]], center_D: np.ndarray, scale_D: np.ndarray) -> list[np.ndarray]:
        """Inner products of the scaled images behind pairs of handles."""
        results = []
        for left, right in pairs:
            (left_ND, left_N), (right_ND, right_N) = self.fetch(left), self.fetch(right)
            result_NN = np.zeros((len(left_ND), len(right_ND)))
            width = max(1, PRODUCT_VALUES // max(1, len(left_ND) + len(right_ND)))
            for start in range(0, left_ND.shape[1], width):
                columns = slice(start, start + width)
                blocks = [
                    (part_ND[:, columns].astype(np.float64) - center_D[columns]) / scale_D[columns]
                    for part_ND in ((left_ND,) if left_ND is right_ND else (left_ND, right_ND))
                ]
                result_NN += blocks[0] @ blocks[-1].T
            if left_N is not None:
                result_NN *= left_N[:, None] * right_N
            results.append(result_NN)
        return results

    def expand(self, weights_NK: np.ndarray, center_D: np.ndarray, scale_D: np.ndarray) -> np.ndarray:
        """Sum this worker's scaled images times weights, [D, K]."""
        result_DK = np.zeros((len(center_D), weights_NK.shape[1]))
        for part in self._parts():
            result_DK += ((self._block(part) - center_D) / scale_D).T @ weights_NK[part]
        return result_DK

    def solve(
        self,
        handle: Any,
        solver: str,
        class_indices_N: np.ndarray,
        folds_N: np.ndarray,
        left_out: int,
        kind: str,
        c_values: list[float],
        class_weights_K: np.ndarray,
        tolerance: float,
        sample_weights_N: np.ndarray | None,
        has_label_KL: np.ndarray | None,
    ) -> Path:
        """The path of one fold along growing C, on the matrix of all images behind a handle."""
        matrix = self.fetch(handle)
        make = basis_of_products if solver == "products" else basis_of_rows
        basis = make(matrix, folds_N != left_out, centred=kind != "svm")
        return solve_path(
            basis,
            class_indices_N,
            folds_N,
            left_out,
            kind,
            c_values,
            class_weights_K,
            tolerance,
            sample_weights_N,
            has_label_KL,
        )

    # The objective, for images that stay where they are

    def objective(self, product_dtype: str) -> None:
        rows = Rows(self.features_ND, self.class_indices_N, self.folds_N, self.factors_N, self.sample_weights_N)
        self._objective = LocalObjective(rows, np.dtype(product_dtype))

    def evaluate(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> list[np.ndarray]:
        return self._objective.evaluate(W, b, problems)

    def fix(self, W: np.ndarray, b: np.ndarray, problems: Problems) -> np.ndarray | None:
        return self._objective.fix(W, b, problems)

    def product(self, V: np.ndarray, v: np.ndarray, chosen_P: np.ndarray) -> list[np.ndarray]:
        return self._objective.product(V, v, chosen_P)

    def count_left_out(self, W: np.ndarray, b: np.ndarray, left_out: int) -> AnyCounts:
        """Count what these weights predict for the images of a fold."""
        counts = counts_of(np.empty((0, len(b))), np.empty(0, int), self.has_label_KL)
        for part in self._scores(W, b, left_out):
            counts += counts_of(*part, self.has_label_KL)
        return counts

    def log_losses(self, W: np.ndarray, b: np.ndarray, left_out: int, temperatures: np.ndarray) -> np.ndarray:
        """Summed log loss of the images of a fold, at every temperature."""
        result = np.zeros(len(temperatures))
        for scores_NK, class_indices_N in self._scores(W, b, left_out):
            result += [log_loss(scores_NK * factor, class_indices_N) for factor in temperatures]
        return result

    def left_out_scores(self, W: np.ndarray, b: np.ndarray, left_out: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield numbers of the images of a fold, and the scores [n, K] that these weights give them."""
        left_N = np.flatnonzero(self.folds_N == left_out)
        for start in range(0, len(left_N), 8192):
            part = left_N[start : start + 8192]
            yield part, self._block(part) @ W + b

    def _scores(self, W: np.ndarray, b: np.ndarray, left_out: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for part, scores_NK in self.left_out_scores(W, b, left_out):
            yield scores_NK, self.class_indices_N[part]

    def mlp_gradient(
        self,
        parameters: list[np.ndarray],
        chosen_N: np.ndarray,
        center_D: np.ndarray,
        scale: Any,
        weights_K: np.ndarray,
    ) -> list[np.ndarray]:
        """Gradient of an mlp over some of this worker's images."""
        inputs_ND = (self._block(chosen_N) - center_D) / scale
        class_indices_N = self.class_indices_N[chosen_N]
        weights_N = weights_K[class_indices_N]
        if self.sample_weights_N is not None:
            weights_N = weights_N * self.sample_weights_N[chosen_N]
        return mlp.gradient(parameters, inputs_ND, class_indices_N, weights_N)

    def _block(self, part: Any) -> np.ndarray:
        block_ND = as_dtype(self.features_ND[part], np.float64)
        return block_ND if self.factors_N is None else block_ND * self.factors_N[part, None]

    def _parts(self) -> list[slice]:
        size = max(1, SUM_VALUES // max(1, self.features_ND.shape[1]))
        return [slice(start, start + size) for start in range(0, len(self.features_ND), size)]


def labelled_rows(table: pa.Table) -> tuple[pa.Table, int]:
    """The ok rows with a label, and the number of ok rows without one."""
    ok = ok_rows(table)
    labelled = ok.filter(pc.is_valid(ok.column("label"))).combine_chunks()
    return labelled, len(ok) - len(labelled)


def check_finite(features_ND: np.ndarray, rows: pa.Table, name: str) -> None:
    """Raise FeaturesError, with the key of the first row, where features of a data file are NaN or infinite."""
    finite_N = np.isfinite(features_ND).all(axis=1)
    if not finite_N.all():
        key = rows.column("key")[int(np.flatnonzero(~finite_N)[0])].as_py()
        raise FeaturesError(
            f"{name} has features that are NaN or infinite, first those of {key}. Look at it with `bottleneck verify "
            "--full`; delete the file and extract again."
        )


def encoded(labels: list[Any]) -> tuple[list[str], np.ndarray]:
    """The distinct labels, and the index of every row's label."""
    chunks = [chunk.cast(pa.string()) for column in labels for chunk in column.chunks]
    encoded = pa.chunked_array(chunks, pa.string()).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
