"""Send requests that MLServer's codecs encode, and decode the responses with them."""

import json
import sys
import urllib.request

import numpy as np
import pandas as pd
from mlserver.codecs import NumpyCodec, NumpyRequestCodec, PandasCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

inputs = json.loads(sys.argv[2])


def ask(model, request):
    body = request.model_dump_json(exclude_none=True).encode()
    url = f"{sys.argv[1]}/v2/models/{model}/infer"
    http_request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(http_request) as response:
        return InferenceResponse.model_validate(json.load(response))


flowers = np.array(inputs["flowers"])
flowers_by_name = pd.DataFrame(flowers, columns=inputs["names"])
houses = pd.DataFrame(inputs["houses"])
houses = houses.astype(dict.fromkeys(("city", "built"), object))
strings = InferenceRequest(inputs=[StringCodec.encode_input("input", ["a", "b"])])
frame = PandasCodec.decode_response(ask("frame", PandasCodec.encode_request(pd.DataFrame({"x": [5.0]}))))


def array(model, request):
    return NumpyCodec.decode_output(ask(model, request).outputs[0]).tolist()


by_request = NumpyRequestCodec.encode_request(flowers)
outputs = {
    "numpy": NumpyRequestCodec.decode_response(ask("classifier", by_request)).tolist(),
    "pandas": array("classifier", PandasCodec.encode_request(flowers_by_name)),
    "houses": array("pipeline", PandasCodec.encode_request(houses)),
    "strings": StringCodec.decode_output(ask("texts", strings).outputs[0]),
    "frame": {name: values.tolist() for name, values in frame.items() if name not in ("gap", "at")},
}
print(json.dumps(outputs))
