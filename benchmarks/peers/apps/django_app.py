"""Django without a database, sessions or middleware, behind gunicorn with four threads."""

import json
import os

import django
import mlflow.pyfunc
import pandas as pd
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__, DEBUG=False, USE_TZ=True)
django.setup()
model = mlflow.pyfunc.load_model(os.environ["PEER_MODEL"])


def predict(request: HttpRequest) -> JsonResponse:
    """Return the probabilities of one row."""
    row = json.loads(request.body)
    return JsonResponse({"predictions": model.predict(pd.DataFrame([row])).tolist()})


def health(request: HttpRequest) -> HttpResponse:
    """Return 200 while the server runs."""
    return HttpResponse("ok")


urlpatterns = [path("predict", predict), path("health", health)]
application = get_wsgi_application()
