"""KServe's client with protocol v1."""

import asyncio
import json
import sys

from kserve import InferenceRESTClient, RESTConfig

url, given = sys.argv[1], json.loads(sys.argv[2])


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v1"))
    response = await client.infer(url, {"instances": given["flowers"]}, model_name="classifier")
    return {
        "model ready": await client.is_model_ready(url, "classifier"),
        "predictions": response["predictions"],
    }


print(json.dumps(asyncio.run(main())))
