"""The independent reader behind `verify`.

    data_file     Check a data file: its footer, its bytes and its schema.
    objects       Read and check the JSON objects of an output field by field; `Wrong` says what is wrong.
    plan          Check a plan with its extensions and revisions.
    report        The result of a verification.
    revisions     Check a revision: it may replan the images of its shards, but no others.
    rows          Check the rows of a data file: outcomes as planned, features or predictions for ok rows only.
    tables        Read Parquet tables of an output and check their schemas.
    verification  One pass over an output: compare plan, listing, footers, keys and `_SUCCESS.json`.
    verify        Prove that an output is what its plan says: nothing lost, duplicated or foreign.

Imports errors and nothing else of ours, so that it cannot repeat a mistake of the writer.
"""
