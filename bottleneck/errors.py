"""Every error a user can meet, in one tree; each kind has the exit code of its job."""

import re


class BottleneckError(Exception):
    """An error that a user can fix: the message says what happened, what was expected and what to do."""

    exit_code = 5

    def __init__(self, message: str = "") -> None:
        # Many messages quote another error, and go on after it, which may have ended with a dot itself.
        super().__init__(re.sub(r"(?<=[^\s./])\.\.(?=\s|$)", ".", message))


class UsageError(BottleneckError):
    """A wrong argument: unknown layer, empty source, an output that holds something else."""

    exit_code = 2


class IncompleteError(BottleneckError):
    """Work is left; running the same command again continues it."""

    exit_code = 3


class FingerprintError(BottleneckError):
    """The request differs from what the output was planned with; the message names the fields."""

    exit_code = 4


class StoreError(BottleneckError):
    """Source or output cannot be used: credentials, endpoint, rights, disk."""


class WeightsError(BottleneckError):
    """The weights are not available, do not fit the network, or are not the planned ones."""


class OutOfMemoryError(BottleneckError):
    """Too little memory to decode an image within the limits, which does not reject the image."""


class FeaturesError(BottleneckError):
    """The network produced NaN or infinity."""


class ClusterError(BottleneckError):
    """A Ray cluster cannot be reached, rejected the token, or could not run a job."""


class TooManyRejectedError(BottleneckError):
    """More of the planned images were rejected than `--max-rejected` allows."""

    exit_code = 6


class CorruptError(BottleneckError):
    """Verification found an output that is not what the plan says."""

    exit_code = 1
