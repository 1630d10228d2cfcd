"""Models whose type hints are their signature: MLflow validates their input by these."""

# Without `from __future__ import annotations`: a pickled class has no module to look names up in.
import datetime
from pathlib import Path
from typing import Any, Union

import mlflow
from mlflow.pyfunc import PythonModel
from pydantic import BaseModel

from tests.support.model_zoo.entries import Entry, Save, values


class Item(BaseModel):
    """An item of an order, with defaults."""

    name: str
    qty: int = 1
    note: str | None = None
    tags: list[str] = []


class Order(BaseModel):
    """An order of items."""

    items: list[Item]
    kind: str = "now"
    due: datetime.datetime | None = None
    extra: dict[str, float] = {}


class Texts(PythonModel):
    """Returns texts in capitals."""

    def predict(self, model_input: list[str]) -> list[str]:
        """Return a text for each text."""
        return [text.upper() for text in model_input]


class Numbers(PythonModel):
    """Returns the square of each number."""

    def predict(self, model_input: list[float]) -> list[float]:
        """Return a number for each number."""
        return [number**2 for number in model_input]


class Items(PythonModel):
    """Describes each item, defaults and all."""

    def predict(self, model_input: list[Item]) -> list[str]:
        """Return a text for each item."""
        return [
            f"{type(item).__name__} {item.qty} × {item.name} {item.note} {item.tags}" for item in model_input
        ]


class Orders(PythonModel):
    """Returns each order with one more item."""

    def predict(self, model_input: list[Order]) -> list[dict[str, Any]]:
        """Return an order for each order, as an object."""
        return [
            order.model_copy(update={"items": [*order.items, Item(name=order.kind)]}).model_dump(mode="json")
            for order in model_input
        ]


class Unions(PythonModel):
    """Describes numbers and texts."""

    def predict(self, model_input: list[Union[int, str]]) -> list[str]:  # noqa: UP007  # as most write it
        """Return the type and the value of each."""
        return [f"{type(each).__name__} {each}" for each in model_input]


class Dicts(PythonModel):
    """Counts the entries of objects."""

    def predict(self, model_input: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return an object for each object."""
        return [{"keys": sorted(each), "first": each.get("a")} for each in model_input]


class Lists(PythonModel):
    """Adds up lists of numbers."""

    def predict(self, model_input: list[list[int]]) -> list[int]:
        """Return the sum of each."""
        return [sum(each) for each in model_input]


class Together(PythonModel):
    """Returns one text for all."""

    def predict(self, model_input: list[str]) -> str:
        """Return the texts joined."""
        return " ".join(model_input)


class Streaming(PythonModel):
    """Returns a text word by word."""

    def predict(self, model_input: list[str]) -> list[str]:
        """Return each text with its number of words."""
        return [f"{text} ({len(text.split())})" for text in model_input]

    def predict_stream(self, context: Any, model_input: Any, params: Any = None) -> Any:
        """Return the words of the text."""
        text = model_input if isinstance(model_input, str) else model_input[0]
        yield from text.split()


def _saved(model: type[PythonModel], example: Any = None) -> Save:
    def save(folder: Path) -> None:
        mlflow.pyfunc.save_model(folder, python_model=model(), input_example=example, pip_requirements=[])

    return save


PLAIN = {"name": "tea"}
RICH = {"name": "pot", "qty": 3, "note": "blue", "tags": ["a", "b"]}
LATER = {"items": [RICH, PLAIN], "kind": "later", "extra": {"tip": 1.5}}

ENTRIES = {
    "hint_texts": Entry(_saved(Texts, ["a"]), (values("a"), values("b", "cd"), values(""))),
    "hint_texts_without_example": Entry(_saved(Texts), (values("a"), values("b", "cd"))),
    "hint_numbers": Entry(_saved(Numbers, [1.5]), (values(2.0), values(0.5, 3.0))),
    "hint_items": Entry(
        _saved(Items, [PLAIN]),
        (values(PLAIN), values(RICH), values(PLAIN, RICH), values(RICH | {"note": None})),
    ),
    "hint_orders": Entry(
        _saved(Orders, [LATER]),
        (values({"items": [PLAIN]}), values(LATER), values({"items": []}, LATER)),
        lenient=True,
    ),
    "hint_unions": Entry(
        _saved(Unions, [1, "a"]),
        tuple(values(*each, datatype="JSON") for each in ([5], ["b"], ["c", 6], ["7"])),
    ),
    "hint_lists": Entry(_saved(Lists, [[1, 2]]), (values([1, 2]), values([3], [4, 5]))),
    "hint_together": Entry(_saved(Together, ["a"]), (values("a"), values("b", "c")), whole=True),
    "hint_streaming": Entry(
        _saved(Streaming, ["a b"]), (values("one two"), values("three", "four five")), streams=True
    ),
}
