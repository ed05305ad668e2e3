pytest_plugins = ["fixtures_s3", "matrix"]
