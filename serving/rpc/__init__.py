"""The Open Inference Protocol over gRPC, with the extra `grpc`."""
