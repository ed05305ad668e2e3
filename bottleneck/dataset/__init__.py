"""The table on the store: plan, data files, reading, extending, reprocessing, exporting.

    contents        The content of an export: rows in order, batch by batch, with labels as numbers.
    differences     The message for a run whose settings are not those of the plan.
    export          Export features to files of other programs, with one data file in memory at a time.
    export_formats  Write HDF5, NumPy and TFRecord, and choose the writer of a file.
    export_tables   Write CSV, Parquet, Lance and MATLAB files.
    extend          List a source again and plan its new images as an extension.
    features        Read the features of an output as arrays, tables and batches.
    footer          Read the footer of a data file from its last bytes.
    make_plan       Make a plan: list a source, freeze it, and commit the plan of a new output.
    plan            The plan of an output, with its extensions and revisions, and which shards are committed.
    plan_parts      The frozen listing: Parquet parts of 32 shards each, one row group per shard, streamed.
    requeue         Reprocess images: plan their shards again as a revision, which replaces the data files whole.
    schema          The rows of a data file: outcome fields and their Parquet schema.
    shuffle         Order any number of rows by the sha256 of their keys, in bounded memory.
    success         Account for every shard in `_SUCCESS.json`, and check whether an output is finished.
    write           Write a data file: a shard's rows become one Parquet object, created whole, and a receipt.

Imports sources, networks and storage.
"""
