"""Deal groups of images to the held-out part and the folds, evenly for every class.

Legend: U units, K classes, P pairs of a unit and a class it has images of.
"""

import numpy as np

HELD_OUT = -2
"""The fold number of held-out images; folds count from 0."""


class Units:
    """The units that are dealt, and their folds."""

    def __init__(
        self, units_N: np.ndarray, class_indices_N: np.ndarray, digests_N: np.ndarray, num_classes: int
    ) -> None:
        num_units = int(units_N.max()) + 1
        self.num_classes = num_classes
        self.folds_U = np.zeros(num_units, np.int64)
        self.is_test_U = np.zeros(num_units, bool)
        self.sizes_U = np.bincount(units_N, minlength=num_units)
        self.order_U = np.full(num_units, np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(self.order_U, units_N, digests_N)
        pairs, self.images_P = np.unique(class_indices_N * num_units + units_N, return_counts=True)
        self.class_P, self.unit_P = np.divmod(pairs, num_units)
        self.starts = np.searchsorted(self.class_P, np.arange(num_classes + 1))
        # A unit of several classes is dealt with those of its rarest one, of which there are fewest to choose from.
        self.by_rarity = np.lexsort((np.arange(num_classes), np.bincount(class_indices_N, minlength=num_classes)))
        rank_K = np.argsort(self.by_rarity)
        rank_U = np.full(num_units, num_classes)
        np.minimum.at(rank_U, self.unit_P, rank_K[self.class_P])
        self.dealt_as_U = self.by_rarity[rank_U]

    def of(self, code: int) -> tuple[np.ndarray, np.ndarray]:
        """The units of a class, with the number of its images in each."""
        own = slice(self.starts[code], self.starts[code + 1])
        return self.unit_P[own], self.images_P[own]

    def fitted(self, code: int) -> np.ndarray:
        """The units of a class that are fitted on."""
        units, _ = self.of(code)
        found: np.ndarray = units[self.folds_U[units] >= 0]
        return found

    def hold_out(self, units: np.ndarray) -> None:
        """Hold out units before any are dealt."""
        self.is_test_U[units] = True
        self.folds_U[units] = HELD_OUT

    def too_few(self, test_fraction: float, num_folds: int) -> tuple[np.ndarray, int]:
        """Classes with too few units, and how many are needed."""
        # Two images of a class that is cross-validated are both fitted on; three give one to the test.
        needed = min((1 if num_folds == 1 else 2) + (1 if test_fraction else 0), 2)
        counts_K = np.bincount(self.class_P[self.folds_U[self.unit_P] >= 0], minlength=self.num_classes)
        return np.flatnonzero(counts_K < needed), needed

    def deal(self, test_fraction: float, num_folds: int) -> None:
        """Hold out a share of each class, and deal the rest to folds."""
        is_dealt_U = self.is_test_U.copy()
        least = 1 if num_folds == 1 else 2
        for code in self.by_rarity.tolist():
            units, images = self.of(code)
            own = (self.dealt_as_U[units] == code) & ~is_dealt_U[units]
            order = np.argsort(self.order_U[units[own]], kind="stable")
            workers, sizes = units[own][order], images[own][order]
            if test_fraction:
                # Units of several classes may have been dealt with a rarer one.
                out_before = int(images[is_dealt_U[units] & (self.folds_U[units] == HELD_OUT)].sum())
                wanted = round(test_fraction * int(images.sum())) - out_before
                # A large unit is held out only where that comes closer to the share.
                num_out = int((np.cumsum(sizes) - sizes / 2 < wanted).sum())
                num_fitted = int((is_dealt_U[units] & (self.folds_U[units] >= 0)).sum())
                most = max(0, len(workers) - max(least - num_fitted, 0))
                num_out = min(max(num_out, 0 if out_before else 1), most)
                self.folds_U[workers[:num_out]] = HELD_OUT
                workers, sizes = workers[num_out:], sizes[num_out:]
            is_dealt_U[units[own]] = True
            if len(workers):
                mixed = np.argsort(_mixed(self.order_U[workers]), kind="stable")
                workers, sizes = workers[mixed], sizes[mixed]
                # Classes start at different folds, so that small ones do not all fill the first.
                starts = np.cumsum(sizes) - sizes
                self.folds_U[workers] = (starts * num_folds // int(sizes.sum()) + code) % num_folds
        self._take_back(least)

    def _take_back(self, least: int) -> None:
        """Return held-out units to classes with too few others, which units of several classes can cause."""
        counts_K = np.bincount(self.class_P[self.folds_U[self.unit_P] >= 0], minlength=self.num_classes)
        for code in np.flatnonzero(counts_K < least).tolist():
            units, _ = self.of(code)
            out = units[(self.folds_U[units] == HELD_OUT) & ~self.is_test_U[units]]
            out = out[np.lexsort((self.order_U[out], self.sizes_U[out]))]
            self.folds_U[out[: least - len(self.fitted(code))]] = 0

    def mend(self, num_folds: int) -> None:
        """Move units if a fold is empty, or has all units of a class."""
        for _ in range(num_folds):
            for code in self.lonely():
                units = self.fitted(code)
                if len(units) > 1:
                    here = self.folds_U[units[0]]
                    sizes = np.bincount(
                        self.folds_U[self.folds_U >= 0], self.sizes_U[self.folds_U >= 0], minlength=num_folds
                    )
                    sizes[here] = np.inf
                    self.folds_U[units[self._smallest(units)]] = int(sizes.argmin())
            counts = np.bincount(self.folds_U[self.folds_U >= 0], minlength=num_folds)
            empty = np.flatnonzero(counts == 0).tolist()
            if not empty and not self.lonely():
                return
            for fold in empty:
                fullest = np.flatnonzero(self.folds_U == counts.argmax())
                if len(fullest) > 1:
                    self.folds_U[fullest[self._smallest(fullest)]] = fold
                    counts = np.bincount(self.folds_U[self.folds_U >= 0], minlength=num_folds)

    def _smallest(self, units: np.ndarray) -> int:
        return int(np.lexsort((self.order_U[units], self.sizes_U[units]))[0])

    def lonely(self) -> list[int]:
        """Classes all of whose fitted units are in one fold."""
        folds_P = self.folds_U[self.unit_P]
        fitted = folds_P >= 0
        lowest, highest = np.full(self.num_classes, np.iinfo(np.int64).max), np.full(self.num_classes, -1)
        np.minimum.at(lowest, self.class_P[fitted], folds_P[fitted])
        np.maximum.at(highest, self.class_P[fitted], folds_P[fitted])
        return np.flatnonzero(lowest == highest).tolist()


def connected(copies_N: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    """Number units so that copies and images of a group, transitively, share one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, groups_N = np.unique(groups_N, return_inverse=True)
    num_copies = int(copies_N.max()) + 1
    num_nodes = num_copies + int(groups_N.max()) + 1
    graph = coo_array((np.ones(len(copies_N), bool), (copies_N, num_copies + groups_N)), (num_nodes, num_nodes))
    _, found = connected_components(graph, directed=False)
    units_N: np.ndarray = np.unique(found[copies_N], return_inverse=True)[1]
    return units_N


def _mixed(digests: np.ndarray) -> np.ndarray:
    """Mix digests into another order (the finalizer of SplitMix64, Steele et al. 2014)."""
    mixed = digests.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
