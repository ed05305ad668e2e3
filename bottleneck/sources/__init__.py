"""Which images a source holds, whatever its form: files, tars, Parquet columns or a list of URIs, and their labels.

Imports `storage`; knows nothing of networks.
"""
