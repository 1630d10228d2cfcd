"""List manifest fields unknown to KServe's models: `python kserve_runtime.py [[CLASS, MANIFEST], …]`."""

import json
import sys

import kserve
import kubernetes.client


def unknown(kind, value, path):
    """Yield the paths of fields that the models do not define."""
    if kind.startswith("list["):
        for number, item in enumerate(value):
            yield from unknown(kind[5:-1], item, f"{path}[{number}]")
        return
    model = getattr(kserve, kind, None) or getattr(kubernetes.client, kind, None)
    if model is None:
        return
    names = {theirs: own for own, theirs in model.attribute_map.items()}
    for field, item in value.items():
        if field in names:
            yield from unknown(model.openapi_types[names[field]], item, f"{path}.{field}")
        else:
            yield f"{path}.{field}"


print(json.dumps([[*unknown(kind, manifest, "")] for kind, manifest in json.loads(sys.argv[1])]))
