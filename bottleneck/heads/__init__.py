"""The classifier on features: splits, fit, evaluation, predictions, export. `solver` finds the optimum.

Imports `extract` and what is below it; no Ray.
"""
