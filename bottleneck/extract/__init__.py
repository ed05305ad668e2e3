"""Extract one shard on one machine, without Ray: read, decode, run the network, commit.

    convert       Rotate, convert to RGB and resize a decoded image.
    decode        Decode an image into RGB pixels at the base's input size, or reject it with a reason.
    estimate      Forecast the rate and time of an extraction, from a sample or from a run's first batches.
    header_size   Read an image's size from its header, before a decoder reserves memory for it.
    local         Extract a whole source in this process, without Ray.
    open_damaged  Open JPEGs and PNGs whose pixels are complete although something behind them is damaged.
    open_plan     Open the plan of an output and compare it with a request, or make a new one.
    prepare       Read and decode the images of a shard: the half of the work that needs no network.
    sample        Measure reading, decoding, extracting and encoding on a few images of a plan.
    sandbox       Decode in a child process, or with a time limit, so that a hostile image cannot end a run.
    shard         Extract a prepared shard and commit its data file.
    summary       Count receipts, stop a run with too many rejected images, and summarise it.
    work          What the workers of a run need to know beside the shard.

Imports dataset and the folders below it.
"""
