"""The Open Inference Protocol over gRPC; requires the extra `grpc`."""

import os

# gRPC's preparation for forks writes lines to stderr that are not JSON. The front does not need it, since
# model processes run another program.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
