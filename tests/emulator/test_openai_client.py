"""The emulator works with the openai package."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from tests.emulator.running_emulator import run_emulator


@pytest_asyncio.fixture
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        run_emulator() as emulator,
        openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


async def test_a_completion(client):
    answer = await client.completions.create(model="tiny", prompt="def main(", max_tokens=8)
    assert answer.choices[0].finish_reason == "length"
    assert len(answer.choices[0].text) == 32
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 8, 11)


async def test_a_chat_with_an_adapter(client):
    answer = await client.chat.completions.create(model="lora-a", messages=[{"role": "user", "content": "Hello"}])
    assert answer.model == "lora-a"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_a_streamed_chat_is_the_whole_answer_in_pieces(client):
    request = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12}
    whole = await client.chat.completions.create(**request)
    text, reasons, usage = "", [], None
    async for chunk in await client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons.append(choice.finish_reason)
    assert text == whole.choices[0].message.content
    assert [reason for reason in reasons if reason] == ["length"]
    assert usage is not None
    assert usage.completion_tokens == 12


async def test_a_streamed_completion_with_several_answers(client):
    texts = ["", "", "", ""]
    async for chunk in await client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=9, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert [len(text) for text in texts] == [36] * 4
    assert len(set(texts)) == 4


async def test_errors_raise_the_exceptions_of_the_client(client):
    with pytest.raises(openai.NotFoundError, match="The model `nope` does not exist"):
        await client.completions.create(model="nope", prompt="x")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens"):
        await client.completions.create(model="tiny", prompt="hello " * 2000)


async def test_the_models_are_listed(client):
    assert [model.id async for model in client.models.list()] == ["tiny", "lora-a", "lora-b"]
