"""The Open Inference Protocol over gRPC; needs the extra `grpc`."""

import os

# Processes that the front starts run another program, so that gRPC need not prepare for a fork. Otherwise it
# prints lines that are no JSON.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
