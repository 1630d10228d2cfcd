"""Call the service with Triton's client and its default options, which use the binary tensor extension."""

import json
import sys

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

payload = json.loads(sys.argv[2])
client = InferenceServerClient(sys.argv[1])


def tensor(name, values, binary=True):
    array = np.array(values)
    array = array.astype(object) if array.dtype.kind == "U" else array
    infer_input = InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    infer_input.set_data_from_numpy(array, binary_data=binary)
    return infer_input


def infer(model, inputs, outputs=None, **more):
    result = client.infer(model, inputs, outputs=outputs, **more)
    names = [output["name"] for output in result.get_response()["outputs"]]
    found = {name: result.as_numpy(name) for name in names}
    return {name: to_jsonable(array.tolist()) for name, array in found.items()}


def to_jsonable(value):
    if isinstance(value, list):
        return [to_jsonable(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


flowers = np.array(payload["flowers"])
found = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready() and client.is_model_ready("classifier", "1"),
    "server": client.get_server_metadata()["name"],
    "model": client.get_model_metadata("arrays"),
    "index": [item["name"] for item in client.get_model_repository_index()],
    "one tensor": infer("classifier", [tensor("flowers", flowers)]),
    "pinned": infer("classifier", [tensor("flowers", flowers)], model_version="1"),
    "single precision": infer("classifier", [tensor("flowers", flowers.astype(np.float32))]),
    "a tensor a column": infer(
        "classifier", [tensor(name, flowers[:, [index]]) for index, name in enumerate(payload["names"])]
    ),
    "in JSON": infer(
        "classifier",
        [tensor("flowers", flowers, binary=False)],
        [InferRequestedOutput("output-0", binary_data=False)],
    ),
    "columns of all kinds": infer(
        "pipeline",
        [
            tensor("city", ["Bonn", "Köln"]),
            tensor("garden", [True, False]),
            tensor("rooms", np.array([3, 2], np.int32)),
            tensor("area", [80.5, 41.0]),
            tensor("built", ["1999-05-01T00:00:00", "1965-01-31T00:00:00"]),
        ],
    ),
    "texts with a parameter": infer("texts", [tensor("input", ["a", "ä"])], parameters={"times": 2}),
    "arrays": infer(
        "arrays",
        [tensor("image", np.array(payload["images"], np.uint8)), tensor("words", [["a", "b"], ["c", "d"]])],
    ),
    "a frame": infer(
        "frame", [tensor("x", [5.0])], [InferRequestedOutput("half"), InferRequestedOutput("at")]
    ),
}
try:
    client.infer("classifier", [tensor("flowers", ["a", "b"])])
except InferenceServerException as error:
    found["refused"] = error.status(), error.message()
print(json.dumps(found))
