"""`/v1/realtime`: a WebSocket with the messages of vLLM's realtime API, as its documentation describes them.

https://docs.vllm.ai/en/latest/serving/openai_compatible_server/#realtime-api. Audio is not decoded: the transcription
is a sentence about its length.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import orjson
from aiohttp import WSMsgType, web

from agent.clock import Clock

_MAX_MESSAGE_BYTES: Final = 4 << 20


class RealtimeSession:
    """What one connection has sent so far."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._bytes = 0

    def answers(self, text: str) -> list[dict[str, Any]]:
        """The events that answer one message of the client."""
        try:
            message = orjson.loads(text)
        except orjson.JSONDecodeError:
            return [_error("the message is not JSON")]
        match message.get("type") if isinstance(message, dict) else None:
            case "session.update":
                if message.get("model") != self._model:
                    return [_error(f"The model `{message.get('model')}` does not exist.")]
                return []
            case "input_audio_buffer.append":
                try:
                    self._bytes += len(base64.b64decode(message.get("audio", ""), validate=True))
                except (binascii.Error, TypeError, ValueError):
                    return [_error("audio is not base64")]
                return []
            case "input_audio_buffer.commit":
                words = f"{self._bytes} bytes of audio"
                self._bytes = 0
                return [{"type": "transcription.delta", "delta": words}, {"type": "transcription.done", "text": words}]
        return [_error("unknown type of message")]


async def serve(request: web.BaseRequest, model: str, clock: Clock, session_id: str) -> web.StreamResponse:
    """Answer the messages of one WebSocket until the client closes it."""
    socket = web.WebSocketResponse(max_msg_size=_MAX_MESSAGE_BYTES)
    if not socket.can_prepare(request):
        return web.Response(status=400, body=b'{"detail":"No WebSocket upgrade"}', content_type="application/json")
    await socket.prepare(request)
    await _send(socket, {"type": "session.created", "id": session_id, "created": int(clock.wall())})
    session = RealtimeSession(model)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            for event in session.answers(message.data):
                await _send(socket, event)
    return socket


async def _send(socket: web.WebSocketResponse, event: dict[str, Any]) -> None:
    await socket.send_str(orjson.dumps(event).decode())


def _error(text: str) -> dict[str, Any]:
    return {"type": "error", "error": text, "code": "invalid_request"}
