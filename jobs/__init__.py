"""What you run: one file a job, with its docstring, its Config and main(config) -> exit code."""
