"""What is logged of KEDA's calls."""

from __future__ import annotations

import logging

import pytest

from agent.events.keda import PoolActivated, ScalerCalled
from agent.instruments.hook import Instruments
from tests.fakes.clock import ManualClock


def test_a_call_without_an_answer_is_logged_once_with_its_scaled_object_and_answers_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    instruments = Instruments(ManualClock())
    instruments(ScalerCalled("IsActive", "chat", "llm/chat", "ok", ""))
    for _ in range(3):
        instruments(ScalerCalled("GetMetrics", "", "llm/chat", "unknown_pool", "unknown pool 'chatt'"))
    instruments(ScalerCalled("", "", "", "broken", "HTTP/2: no preface"))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "KEDA: GetMetrics of ScaledObject llm/chat has no answer: unknown pool 'chatt'" in messages[0]
    assert "KEDA: a connection has no answer: HTTP/2: no preface" in messages[1]


def test_an_activation_is_logged_with_the_requests_that_wait(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Instruments(ManualClock())(PoolActivated("chat", 2, 3))
    assert "KEDA is sent that the pool is active; 3 requests are held" in caplog.text
