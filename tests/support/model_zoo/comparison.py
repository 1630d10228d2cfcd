"""Compare responses of the service with what MLflow returns for the same request alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.model_zoo.entries import Entry, Request
from tests.support.model_zoo.protocols import FORMATS, SCORING, TENSORS, TYPED, V1, Reply


def difference(
    entry: Entry,
    request: Request,
    reference: Mapping[str, Any],
    protocol: str,
    index: int,
    reply: Reply,
    exact: bool,
) -> str | None:
    """Return how a reply differs from the reference, or None if it is right.

    Args:
        entry: the model.
        request: what was sent.
        reference: the result of `reference.record` for this request.
        protocol: how it was sent.
        index: the row that was sent, for protocols that send one row.
        reply: what the service returned.
        exact: False to compare numbers up to the differences that the shape of a batch causes.
    """
    answers = _answers(reference, protocol, index, request)
    expected = [form for answer in answers for form in _forms(entry, request, protocol, answer)]
    if reply.status == 200 and not expected and entry.lenient:
        return None
    if reply.status != 200:
        if _may_fail(entry, reference, protocol, request, answers):
            return None
        return f"{reply.status} {reply.content}"[:300] + f" instead of {_short(expected[:1])}"
    content = _without_model(reply.content, protocol)
    compare = _same_tensors if protocol in TENSORS else same
    if (
        any(compare(content, each, 0 if exact else entry.tolerance) for each in expected)
        and not request.is_refused
    ):
        return None
    return f"{_short(content)} instead of " + (_short(expected[0]) if expected else "an error")


def _answers(reference: Mapping[str, Any], protocol: str, index: int, request: Request) -> list[Any]:
    """Return what MLflow returns: its server for this form and for the usual one, and pyfunc."""
    if protocol == "stream":
        return [reference["streamed"][index]]
    scored, pyfunc = reference["scored"], reference["pyfunc"]
    usual = next(iter(scored.values()))
    if protocol == "predict" and request.body is None:
        candidates = [reference["rows"][index], *([pyfunc] if len(request.rows) == 1 else [])]
    elif protocol in SCORING or protocol in V1:
        candidates = [scored[V1.get(protocol, protocol)], usual, pyfunc]
    elif protocol in FORMATS:
        candidates = [pyfunc, usual]
    else:
        candidates = [usual, pyfunc]
    return _distinct([result["answer"] for result in candidates if result["status"] == 200])


def _distinct(answers: list[Any]) -> list[Any]:
    return [*{json.dumps(answer): answer for answer in answers}.values()]


def _may_fail(
    entry: Entry, reference: Mapping[str, Any], protocol: str, request: Request, answers: list[Any]
) -> bool:
    """Return whether an error is right: MLflow fails too, or JSON cannot express the result."""
    if request.is_refused or not answers or any("NaN" in json.dumps(each) for each in answers):
        return True
    form = V1.get(protocol, protocol)
    if form in SCORING and reference["scored"][form]["status"] != 200:
        return True
    if (
        entry.whole is None
        and protocol in TYPED
        and not any(_has_rows(each, request, protocol) for each in answers)
    ):
        return True  # no result belongs to a row
    has_gaps = request.named and any(None in row.values() for row in request.rows)
    return protocol in TENSORS and (has_gaps or "null" in json.dumps(answers))


def _has_rows(answer: Any, request: Request, protocol: str) -> bool:
    rows = 1 if protocol == "predict" else len(request.rows)
    predictions = answer.get("predictions") if isinstance(answer, dict) else answer
    return isinstance(predictions, list) and len(predictions) == rows


def _forms(entry: Entry, request: Request, protocol: str, answer: Any) -> Iterator[Any]:
    """Return the right contents of a protocol for a response of MLflow's server."""
    if protocol in SCORING or protocol in FORMATS or protocol == "stream":
        yield answer
        return
    predictions = answer if request.body is not None else answer["predictions"]
    if protocol in V1:
        yield from _v1_forms(predictions, is_columnar=protocol == "v1-inputs")
        return
    if protocol in TENSORS:
        yield predictions
        if entry.outputs:
            yield [dict(zip(entry.outputs, row, strict=True)) for row in predictions]
        return
    if entry.whole in (True, None):
        yield {"predictions": predictions}
        if request.body is not None:
            yield {"prediction": predictions}
    if entry.whole in (False, None):
        rows = [*_rows(predictions)]
        if entry.outputs:
            rows = [dict(zip(entry.outputs, row, strict=True)) for row in rows]
        if protocol == "predict":
            yield from (
                {"prediction": row} if not entry.classes else _classified(row, entry) for row in rows[:1]
            )
        else:
            yield {
                "predictions": [
                    {"prediction": row} if not entry.classes else _classified(row, entry) for row in rows
                ]
            }


def _v1_forms(predictions: Any, *, is_columnar: bool) -> Iterator[Any]:
    """Return predictions as KServe v1 and TensorFlow Serving write them: the only output has no name."""
    yield predictions
    if isinstance(predictions, dict) and not all(isinstance(each, list) for each in predictions.values()):
        return  # one result for all rows
    rows = [*_rows(predictions)]
    if not rows or not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        return
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    yield columns if is_columnar else rows
    if len(columns) == 1:
        yield from columns.values()


def _rows(predictions: Any) -> Iterator[Any]:
    """Return one prediction for each row."""
    if isinstance(predictions, dict):
        for row in zip(*predictions.values(), strict=True):
            yield dict(zip(predictions, row, strict=True))
    elif isinstance(predictions, list):
        yield from predictions


def _classified(row: Any, entry: Entry) -> dict[str, Any]:
    if not isinstance(row, list):
        return {"prediction": row, "label": entry.classes[row]}
    best = row.index(max(row))
    probabilities = dict(zip(entry.classes, row, strict=True))
    return {
        "prediction": best,
        "label": entry.classes[best],
        "confidence": row[best],
        "probabilities": probabilities,
    }


def _without_model(content: Any, protocol: str) -> Any:
    if protocol not in ("predict", "batch"):
        return content
    return {name: value for name, value in content.items() if name != "model"}


def same(found: Any, expected: Any, tolerance: float, in_texts: bool = False) -> bool:
    """Return whether a value is the expected one; with `in_texts` it may stand in JSON."""
    if in_texts and expected is None and found == "":
        return True  # bytes cannot be null
    if in_texts and isinstance(found, str) and found != expected:
        try:
            return same(json.loads(found), expected, tolerance)
        except ValueError:
            return False
    if isinstance(expected, dict):
        if (
            set(expected) == {"prediction"}
            and isinstance(expected["prediction"], dict)
            and isinstance(found, dict)
        ):
            only = [*expected["prediction"].values()]  # a single output column needs no name
            if len(only) == 1 and same(found, {"prediction": only[0]}, tolerance):
                return True
        if set(expected) == {"prediction"} and isinstance(found, dict):
            row = found.get("prediction")
            if isinstance(row, dict) and isinstance(expected["prediction"], list):  # declared with names
                return same([*row.values()], expected["prediction"], tolerance)
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(same(found[name], value, tolerance, in_texts) for name, value in expected.items())
        )
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(same(one, other, tolerance, in_texts) for one, other in zip(found, expected, strict=True))
        )
    if isinstance(expected, float) and math.isnan(expected):
        return found is None or (isinstance(found, float) and math.isnan(found))
    if isinstance(expected, bool) or isinstance(found, bool) or not isinstance(expected, float | int):
        return type(found) is type(expected) and bool(found == expected)
    if not isinstance(found, float | int):
        return False
    return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance / 10)


def _same_tensors(found: Mapping[str, Any], expected: Any, tolerance: float) -> bool:
    """Return whether output tensors express the `predictions` of MLflow's server."""

    def agrees(value: Any, other: Any) -> bool:
        return same(value, other, tolerance, in_texts=True)

    if isinstance(expected, list) and expected and all(isinstance(row, dict) for row in expected):
        if all(row.keys() == found.keys() for row in expected):
            return all(agrees(values, [row[name] for row in expected]) for name, values in found.items())
        if len(found) == 1 and all(len(row) == 1 for row in expected):
            (only,) = found.values()
            return agrees(only, [value for row in expected for value in row.values()])
    if isinstance(expected, dict) and expected.keys() == found.keys():
        return all(
            agrees(values, expected[name]) or agrees(values, [expected[name]])
            for name, values in found.items()
        )
    if len(found) != 1:  # an array whose columns the signature names
        columns = [*found.values()]
        return (
            isinstance(expected, list)
            and {*map(len, columns)} == {len(expected)}
            and agrees([*map(list, zip(*columns, strict=True))], expected)
        )
    (only,) = found.values()
    return agrees(only, expected) or agrees(only, [expected])


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 300 else text[:300] + "…"
