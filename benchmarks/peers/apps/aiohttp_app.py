"""aiohttp: predict in the handler."""

import os

import mlflow.pyfunc
import pandas as pd
import uvloop
from aiohttp import web

model = mlflow.pyfunc.load_model(os.environ["PEER_MODEL"])


async def predict(request: web.Request) -> web.Response:
    """Return the probabilities of one row."""
    row = await request.json()
    return web.json_response({"predictions": model.predict(pd.DataFrame([row])).tolist()})


async def health(request: web.Request) -> web.Response:
    """Return 200 while the server runs."""
    return web.Response(text="ok")


if __name__ == "__main__":
    app = web.Application()
    app.add_routes([web.post("/predict", predict), web.get("/health", health)])
    port = int(os.environ["PEER_PORT"])
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, loop=uvloop.new_event_loop())
