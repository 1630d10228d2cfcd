"""Save models of the zoo and record what MLflow returns: `python -m model_zoo.reference FOLDER MODULE…`.

It runs in a process of its own, so that neither models nor libraries are loaded where the tests run, and
so that another interpreter can run it for models that need packages of their own.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import scoring_server
from starlette.testclient import TestClient

from tests.support.model_zoo.entries import Entry, Request, entries, row_request, scoring_bodies

DATATYPES = {"FP32": "float32", "FP64": "float64", "INT64": "int64", "UINT8": "uint8", "BYTES": "str"}


def main(home: Path, *modules: str) -> None:
    """Save the models of these modules below `home`, each with the reference beside its files."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for module in modules:
        # Like classes of a notebook, the service cannot import these.
        cloudpickle.register_pickle_by_value(import_module(f"tests.support.model_zoo.{module}"))
        for name, entry in entries(module).items():
            folder = home / name
            try:
                entry.save(folder)
                reference = record(folder, entry)
            except Exception as error:
                raise RuntimeError(f"{module}: {name}") from error
            (home / f"{name}.json").write_text(json.dumps(reference))


def record(folder: Path, entry: Entry) -> list[dict[str, Any]]:
    """Return what MLflow's server and pyfunc return for each request, one at a time."""
    model = mlflow.pyfunc.load_model(str(folder))
    with TestClient(scoring_server.init(model)) as client:
        return [
            {
                "scored": {form: _scored(client, body) for form, body in scoring_bodies(request).items()},
                "rows": [_usual(client, row_request(request, row)) for row in request.rows],
                "pyfunc": _predicted(model, request),
                "streamed": _streamed(model, request) if entry.streams else None,
            }
            for request in entry.requests
        ]


def _scored(client: TestClient, body: Any) -> dict[str, Any]:
    response = client.post(
        "/invocations", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    found = json.loads(response.text)
    return {"status": response.status_code, "answer": found if response.is_success else response.text[:500]}


def _usual(client: TestClient, request: Request) -> dict[str, Any]:
    return _scored(client, next(iter(scoring_bodies(request).values())))


def _predicted(model: Any, request: Request) -> dict[str, Any]:
    """Return what pyfunc returns in Python, in the form of the server's response."""
    try:
        if request.body is not None:
            predictions = model.predict(dict(request.body))
            return {"status": 200, "answer": json.loads(_as_json(predictions, wrapped=False))}
        given = _in_python(request)
        predictions = model.predict(given, params=None if request.params is None else dict(request.params))
        return {"status": 200, "answer": json.loads(_as_json(predictions, wrapped=True))}
    except Exception as error:
        return {"status": 500, "answer": str(error)[:500]}


def _in_python(request: Request) -> Any:
    """Return the rows as a caller in Python would pass them."""
    if request.frame is not None:
        return request.frame
    rows = [*request.rows]
    if request.datatype in DATATYPES:
        dtype = np.dtype(DATATYPES[request.datatype])
        if request.named:
            return {name: np.array([row[name] for row in rows], dtype) for name in rows[0]}
        return np.array(rows, dtype)
    return pd.DataFrame(rows) if request.named else rows


def _as_json(predictions: Any, *, wrapped: bool) -> str:
    text = StringIO()
    write = scoring_server.predictions_to_json if wrapped else scoring_server.unwrapped_predictions_to_json
    write(predictions, text)
    return text.getvalue()


def _streamed(model: Any, request: Request) -> list[list[Any]]:
    """Return the parts of the response for each row."""
    given = [dict(request.body)] if request.body is not None else request.rows
    params = None if request.params is None else dict(request.params)
    return [
        [json.loads(_as_json(part, wrapped=False)) for part in model.predict_stream(row, params=params)]
        for row in given
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
