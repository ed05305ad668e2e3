"""Find the optimum of a fit: a coordinator asks the workers that hold the images.

Three solvers find the same optimum, and the size of the data decides: the Gram matrix of the images if there are fewer
of them than dimensions, the images themselves if they fit one worker, else sums over images that stay with their
workers.

Legend: N images, D features, K classes, F folds, P problems.
"""

from bottleneck.heads.request import Arrays
from bottleneck.heads.solver.certify import certified_gap
from bottleneck.heads.solver.fit_data import FitData
from bottleneck.heads.solver.grid import Grid
from bottleneck.heads.solver.mlp_fit import fit_mlp
from bottleneck.heads.solver.sums_fit import SumsFit
from bottleneck.heads.solver.whole_fit import WholeFit


class Coordinator:
    """One fit, once the classes and folds of all images are known."""

    def __init__(self, data: FitData) -> None:
        self.data = data

    @property
    def solver(self) -> str:
        """The solver that was chosen: `products`, `images` or `sums`."""
        return self.data.solver

    def fit(self, dim: int) -> tuple[Arrays, Grid]:
        """Fit, and return the arrays of the head and the grid it was chosen from."""
        request = self.data.request
        grid = Grid(best=request.variants[0], best_c=request.c[0])
        if request.kind == "mlp":
            self.data.begin(dim)
            arrays = fit_mlp(self.data)
        else:
            arrays = self._best(dim, grid).fit(grid)
            grid.gap = certified_gap(self.data, arrays, grid.best_c)
        data = self.data
        if data.kind == "softmax":  # a constant in all classes' scores has no effect; scikit-learn's sum to zero
            arrays["intercept"] = arrays["intercept"] - arrays["intercept"].mean()
        if data.moments:
            arrays["mean"], arrays["scale"] = data.moments[-1]
        return arrays, grid

    def _best(self, dim: int, grid: Grid) -> SumsFit | WholeFit:
        """Cross-validate each kind and scaling in turn; of the fits, which hold matrices, only the best is kept."""
        every, best = self.data, None
        for variant in every.request.variants:
            self.data = every.like(variant)
            self.data.begin(dim)
            fit = SumsFit(self.data) if self.data.solver == "sums" else WholeFit(self.data)
            fit.cross_validate(grid)
            if grid.best == variant:
                best = fit
        assert best is not None
        if best.data is not self.data:
            self.data = best.data
            self.data.place()
        return best
