"""KServe's client."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

told = json.loads(sys.argv[2])


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    flowers = np.array(told["flowers"])

    async def ask(binary):
        flower = InferInput("flowers", [*flowers.shape], "FP64")
        flower.set_data_from_numpy(flowers, binary_data=binary)
        request = InferRequest("classifier", [flower], request_id="mine")
        answer = await client.infer(sys.argv[1], request, model_name="classifier")
        (output,) = answer.outputs
        return answer.id, answer.model_name, output.as_numpy().tolist()

    return {
        "live": await client.is_server_live(sys.argv[1]),
        "ready": await client.is_server_ready(sys.argv[1]),
        "model ready": await client.is_model_ready(sys.argv[1], "classifier"),
        "in JSON": await ask(False),
        "in bytes": await ask(True),
    }


print(json.dumps(asyncio.run(main())))
