"""Interface of a generated client, whose package is regenerated from each document."""

import json
import sys

from model_serving_client import Client
from model_serving_client.api.iris import batch_predict, predict
from model_serving_client.api.operations import ready_ready_get
from model_serving_client.api.pipeline import predict_pipeline
from model_serving_client.api.texts import predict_texts
from model_serving_client.models import IrisBatch, IrisRow, PipelineRow, TextsRow

told = json.loads(sys.argv[1])
row = IrisRow.from_dict(told["row"])
with Client(base_url=told["url"]) as client:
    one = predict.sync_detailed(client=client, body=row)
    wrong = IrisRow.from_dict(told["row"] | {"sepal_length": -1})
    refused = predict.sync(client=client, body=wrong)
    house = PipelineRow.from_dict(told["house"])
    print(
        json.dumps(
            {
                "one": one.parsed.to_dict(),
                "version": one.headers["X-Model-Version"],
                "many": batch_predict.sync(client=client, body=IrisBatch([row, row])).to_dict(),
                "house": predict_pipeline.sync(client=client, body=house).to_dict(),
                "times": predict_texts.sync(client=client, body=TextsRow("ab"), times=2).prediction,
                "ready": ready_ready_get.sync(client=client).model_uri,
                "fault": [refused.status, refused.errors[0].loc[0]],
            }
        )
    )
