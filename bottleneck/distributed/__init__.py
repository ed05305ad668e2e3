"""Everything that runs on Ray: extraction on Ray Data, fits on Ray Train, clusters and their jobs.

    dashboard      Validate the address of a Ray cluster's dashboard and connect to it.
    exchange       Pass requests and answers between the workers of a fit, through an actor beside them.
    fit            Fit a head on the features of an output, in this process or as a Ray Train job.
    heap           Return free memory that the C library keeps to the system.
    job_log        Follow a cluster job's log over connections that may break, and extract its result.
    local_ray      Start a private Ray on this machine: its folder, token and object store.
    metrics        Export a run's metrics to Prometheus, through Ray.
    monitor        Collect what a run's actors report, for the display and the forecast.
    network        Prepare a run's network once, and hand it to the actors through the cache or Ray's object store.
    pipeline       Build the Ray Data dataset of an extraction: a row is a shard, its result a receipt.
    placement      Decide where networks go: on GPUs, or spread over the nodes' cores.
    ray_resources  Ask Ray what the workers have: GPUs, bfloat16, free resources.
    ray_session    Start or join Ray, and stop it if it was started here.
    run            Drive an extraction on Ray Data: start the actors, hand out the plan, collect receipts, finish.
    run_options    The options of a run: how it uses its machines.
    stages         The two stages of an extraction as Ray Data calls them: prepare a shard, extract and commit it.
    train          Fit a head as a Ray Train job: rank 0 coordinates, the other workers answer it.

Imports heads and the folders below it, never inspect. Ray is imported here and in doctor/cluster only.
"""
