"""Models that benchmarks log as code: each file is a program for `mlflow.pyfunc.log_model`."""
