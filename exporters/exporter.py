"""What every exporter is: it is given gauge sets and brings the latest one to its readers or its backend."""

from __future__ import annotations

from typing import Protocol

from exporters.gauge import GaugeSet


class Exporter(Protocol):
    """One way out of the process. `name` is its name in `exporters.EXPORTERS`.

    An exporter exports only what a set publishes: no withheld gauge, and no metric that the catalogue lacks.
    """

    name: str

    def publish(self, gauges: GaugeSet) -> None:
        """Replace the latest set. It neither blocks nor raises; a set that was not exported yet is superseded."""
        ...

    async def run(self) -> None:
        """Export until cancelled. An exporter that is read and sends nothing only waits.

        A backend that cannot be reached is no error here: an exporter that raises is restarted, and the agent is not
        ready meanwhile.
        """
        ...
