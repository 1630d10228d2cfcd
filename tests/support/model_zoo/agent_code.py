"""MLflow's chat and agent classes, logged as code: the model config's `part` chooses one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlflow
from mlflow.models import ModelConfig
from mlflow.pyfunc import ChatAgent, ChatModel, ResponsesAgent
from mlflow.types.agent import ChatAgentChunk, ChatAgentMessage, ChatAgentResponse
from mlflow.types.llm import (
    ChatChoice,
    ChatChoiceDelta,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatMessage,
    TokenUsageStats,
)
from mlflow.types.responses import ResponsesAgentRequest, ResponsesAgentResponse, ResponsesAgentStreamEvent


def reply(messages: list[Any]) -> str:
    """Return the reply to a conversation: its last message in capitals, and the number of messages."""
    last = messages[-1].content
    return f"{last.upper()} ({len(messages)})"


class Chat(ChatModel):
    """A chat model with fixed times and ids."""

    def predict(self, context: Any, messages: list[ChatMessage], params: Any) -> ChatCompletionResponse:
        """Return one choice."""
        content = f"{reply(messages)} t={params.temperature} n={params.max_tokens}"
        message = ChatMessage(role="assistant", content=content)
        usage = TokenUsageStats(
            prompt_tokens=len(messages), completion_tokens=2, total_tokens=2 + len(messages)
        )
        choice = ChatChoice(index=0, message=message)
        return ChatCompletionResponse(
            id="chat-1", created=1_700_000_000, model="zoo", choices=[choice], usage=usage
        )

    def predict_stream(
        self, context: Any, messages: list[ChatMessage], params: Any
    ) -> Iterator[ChatCompletionChunk]:
        """Return the words of the reply."""
        for index, word in enumerate(reply(messages).split()):
            choice = ChatChunkChoice(index=index, delta=ChatChoiceDelta(role="assistant", content=word))
            yield ChatCompletionChunk(id="chat-1", created=1_700_000_000, model="zoo", choices=[choice])


class Agent(ChatAgent):
    """An agent that returns two messages."""

    def predict(
        self, messages: list[ChatAgentMessage], context: Any = None, custom_inputs: Any = None
    ) -> ChatAgentResponse:
        """Return the reply, and the user id of the request."""
        replies = [
            ChatAgentMessage(id="a-1", role="assistant", content=reply(messages)),
            ChatAgentMessage(id="a-2", role="assistant", content=str(context and context.user_id)),
        ]
        return ChatAgentResponse(messages=replies, custom_outputs=custom_inputs)

    def predict_stream(
        self, messages: list[ChatAgentMessage], context: Any = None, custom_inputs: Any = None
    ) -> Iterator[ChatAgentChunk]:
        """Return the words of the reply."""
        for word in reply(messages).split():
            yield ChatAgentChunk(delta=ChatAgentMessage(id="a-1", role="assistant", content=word))


class Responses(ResponsesAgent):
    """An agent with OpenAI's Responses interface."""

    def predict(self, request: ResponsesAgentRequest) -> ResponsesAgentResponse:
        """Return one output item."""
        item = self.create_text_output_item(text=self._text(request), id="msg-1")
        return ResponsesAgentResponse(id="resp-1", output=[item], custom_outputs=request.custom_inputs)

    def predict_stream(self, request: ResponsesAgentRequest) -> Iterator[ResponsesAgentStreamEvent]:
        """Return a delta for each word, and the whole item."""
        text = self._text(request)
        for word in text.split():
            yield ResponsesAgentStreamEvent(**self.create_text_delta(delta=word, item_id="msg-1"))
        item = self.create_text_output_item(text=text, id="msg-1")
        yield ResponsesAgentStreamEvent(type="response.output_item.done", item=item)

    def _text(self, request: ResponsesAgentRequest) -> str:
        message: Any = request.input[-1]
        content = message.content
        text = content if isinstance(content, str) else content[0]["text"]
        return f"{text.upper()} ({len(request.input)})"


PARTS: dict[str, Callable[[], Any]] = {"chat": Chat, "agent": Agent, "responses": Responses}

mlflow.models.set_model(PARTS[ModelConfig(development_config={"part": "chat"}).get("part")]())
