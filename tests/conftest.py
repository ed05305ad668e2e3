import atexit
import os
import shutil
import signal
import tempfile

pytest_plugins = ["fixtures_s3", "matrix"]

# A shell that starts the tests with & has them ignore Ctrl-C, and so whatever they start and ask to stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Networks are prepared once for all tests, and never taken from a cache that an earlier version filled.
if "BOTTLENECK_CACHE" not in os.environ:
    os.environ["BOTTLENECK_CACHE"] = tempfile.mkdtemp(prefix="bottleneck-test-cache-")
    atexit.register(shutil.rmtree, os.environ["BOTTLENECK_CACHE"], ignore_errors=True)
