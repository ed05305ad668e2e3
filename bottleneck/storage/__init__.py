"""Where bytes live: folders and buckets behind the few verbs of `store.Store`.

    local          A folder as a store; objects appear under their names only when they are complete.
    local_files    Read local files, lock them, and tell what their errors mean.
    parquet        Open Parquet files safely: without pyarrow's threads, and without foreign types.
    readonly       Any fsspec file system (gs, az, http, ...) as a read-only store.
    retry          The retry policy: which errors are retried, for how long, and with which pauses.
    s3             A prefix of an S3 bucket as a store.
    s3_errors      The error codes of S3 stores, with their meaning, remedy and treatment.
    s3_listing     List a long prefix in parallel, by ranges of keys, in order.
    source_folder  A folder as a source: links that lead out of it are not followed.
    store          The store protocol, its errors, and `open_store`.

Imports only the modules directly in bottleneck/.
"""
