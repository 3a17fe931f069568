"""The emulated realtime API: the messages that its documentation names, over a real WebSocket."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.emulator.realtime import RealtimeSession
from tests.emulator.running_emulator import run_emulator


async def test_audio_is_answered_with_a_transcription_of_its_length() -> None:
    async with run_emulator() as running, running.session.ws_connect(f"{running.url}/v1/realtime") as socket:
        created = await socket.receive_json()
        assert created["type"] == "session.created"
        assert created["id"].startswith("sess-")
        await socket.send_json({"type": "session.update", "model": "tiny"})
        for piece in (b"abc", b"de"):
            await socket.send_json({"type": "input_audio_buffer.append", "audio": base64.b64encode(piece).decode()})
        await socket.send_json({"type": "input_audio_buffer.commit", "final": True})
        assert await socket.receive_json() == {"type": "transcription.delta", "delta": "5 bytes of audio"}
        assert await socket.receive_json() == {"type": "transcription.done", "text": "5 bytes of audio"}


@pytest.mark.parametrize(
    "message",
    [
        "{",
        "[]",
        "null",
        "{}",
        '{"type":"session.update","model":"other"}',
        '{"type":"input_audio_buffer.append","audio":"*"}',
    ],
)
async def test_a_message_that_cannot_be_used_is_an_error_event_and_the_socket_stays_open(message: str) -> None:
    async with run_emulator() as running, running.session.ws_connect(f"{running.url}/v1/realtime") as socket:
        await socket.receive_json()
        for _ in range(2):
            await socket.send_str(message)
            assert (await socket.receive_json())["type"] == "error"


async def test_a_request_without_an_upgrade_is_400() -> None:
    async with run_emulator() as running:
        assert (await running.get("/v1/realtime"))[0] == 400


@given(text=st.text())
def test_no_message_raises(text: str) -> None:
    assert all(event["type"] == "error" for event in RealtimeSession("tiny").answers(text))
