"""Bottleneck features from a bucket of images: the library. Importing it loads nothing heavy."""

# First of all: pandas looks for pydata's package of this name and reads __version__. Without one, or with 1.5.0 and
# up, importing pandas (and so ray.data) breaks; below, pandas warns in every process, which the filter silences.
__version__ = "0.1.0"

import warnings

warnings.filterwarnings("ignore", message="Pandas requires version .* of .bottleneck.")
