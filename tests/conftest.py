import signal

pytest_plugins = ["fixtures_s3", "matrix"]

# A shell that starts the tests with & has them ignore Ctrl-C, and so whatever they start and ask to stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
