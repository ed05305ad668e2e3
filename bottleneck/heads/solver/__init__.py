"""The optimum of a fit: a coordinator asks the workers that hold the rows, in this process or elsewhere.

Imports features and splits; knows nothing of heads or of Ray.
"""
