"""Models that the benchmarks log as code: `mlflow.pyfunc.log_model` stores each file as a program."""
