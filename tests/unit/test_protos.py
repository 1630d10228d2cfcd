"""The generated gRPC files match `serving/grpc/inference.proto`; `scripts/protos` generates them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from serving.grpc import inference_pb2, inference_pb2_grpc

ROOT = Path(__file__).parents[2]
PROTO = "serving/grpc/inference.proto"


def compiled(folder: Path) -> FileDescriptorProto:
    """Return the descriptor of the .proto file."""
    protoc = pytest.importorskip("grpc_tools.protoc")
    output = folder / "descriptors"
    assert protoc.main(["protoc", f"-I{ROOT}", f"--descriptor_set_out={output}", PROTO]) == 0
    (file,) = FileDescriptorSet.FromString(output.read_bytes()).file
    _clear_json_names(file.message_type)
    return file


def _clear_json_names(messages: Iterable[DescriptorProto]) -> None:
    """Remove the derived names that the generated module omits."""
    for message in messages:
        for field in message.field:
            field.ClearField("json_name")
        _clear_json_names(message.nested_type)


def test_generated_messages_match_the_proto_file(tmp_path: Path) -> None:
    generated = FileDescriptorProto.FromString(inference_pb2.DESCRIPTOR.serialized_pb)
    assert generated == compiled(tmp_path)


def test_generated_service_has_each_method() -> None:
    methods = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    servicer = vars(inference_pb2_grpc.GRPCInferenceServiceServicer)
    assert {name for name in servicer if name[0] != "_"} == {*methods}
