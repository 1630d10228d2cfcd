"""MLflow's chat and agent classes, with their default example, and other models from code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow

from tests.support.model_zoo.entries import Entry, Save, unwrapped

HERE = Path(__file__).parent


def _from_code(part: str, file: str = "agent_code.py", **options: Any) -> Save:
    def save(folder: Path) -> None:
        mlflow.pyfunc.save_model(
            folder, python_model=HERE / file, model_config={"part": part}, pip_requirements=[], **options
        )

    return save


def _user(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


ENTRIES = {
    "agent_chat_model": Entry(
        _from_code("chat"),
        (
            unwrapped(messages=_user("hello there")),
            unwrapped(messages=_user("hi", "hello", "what now")),
            unwrapped(messages=_user("short"), temperature=0.25, max_tokens=5),
        ),
        whole=True,
        streams=True,
    ),
    "agent_chat_agent": Entry(
        _from_code("agent"),
        (
            unwrapped(messages=_user("hello there")),
            unwrapped(messages=_user("hi", "hello", "what now")),
            unwrapped(
                messages=_user("who"),
                context={"conversation_id": "c", "user_id": "u-7"},
                custom_inputs={"k": [1, {"a": None}]},
            ),
        ),
        whole=True,
        streams=True,
    ),
    "agent_responses": Entry(
        _from_code("responses"),
        (
            unwrapped(input=_user("hello there")),
            unwrapped(input=_user("hi", "hello", "what now")),
            unwrapped(input=_user("who"), custom_inputs={"k": 1}, temperature=0.5),
        ),
        whole=True,
        streams=True,
    ),
}
