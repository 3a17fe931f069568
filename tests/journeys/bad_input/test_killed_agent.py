"""While an agent is killed, Envoy answers with errors that name the cause; a restarted agent serves at once."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from tests.journeys.bad_input.fleet import IGW, MODES, a_fleet
from tests.processes import Processes
from tests.waiting import found


async def test_requests_are_answered_503_while_the_agent_is_dead_and_served_when_it_is_back(
    tmp_path: Path, processes: Processes
) -> None:
    async with a_fleet(tmp_path, 1, lambda healthy: {"pool": healthy}) as fleet:
        for way in MODES:
            await found(partial(fleet.send, "pool", way), lambda answer: answer[0] == 200)
        (picker,) = re.findall(r"ext_proc on (\S+),", fleet.agent.output())
        fleet.agent.kill()
        for way in MODES:
            status, answer = await fleet.send("pool", way)
            error = answer["error"]
            assert (status, error["type"], error["code"]) == (503, "server_error", "picker_unavailable")
        at_its_place = fleet.file.read_text().replace("extProcAddress: '127.0.0.1:0'", f"extProcAddress: '{picker}'")
        fleet.file.write_text(at_its_place)
        again = processes.start([*IGW, "run", "--config", fleet.file])
        again.wait_for("is listening")
        for way in MODES:
            await found(partial(fleet.send, "pool", way), lambda answer: answer[0] == 200)
