"""A changed configuration against the one that runs: what is new, and what cannot be while the process lives."""

from __future__ import annotations

from itertools import product
from typing import Any

from agent.config import Budget, Config, Endpoint, Pool, Reach
from agent.config.options import SECTIONS, options, snake
from agent.config.values import split_address


class NeedsRestart(Exception):
    """A change that a running agent cannot make; the text says which, and what to do."""


def differences(old: Config, new: Config) -> list[str]:
    """What changed, in words, one entry for each option. Raises `NeedsRestart` for what cannot change in place."""
    found: list[str] = []
    refused: list[str] = []
    for key, section in SECTIONS.items():
        _compare(section, key, getattr(old, snake(key)), getattr(new, snake(key)), found, refused)
    _compare(Budget, "scrape.budget", old.scrape.budget, new.scrape.budget, found, refused)
    before, after = {pool.name: pool for pool in old.pools}, {pool.name: pool for pool in new.pools}
    gone, came = before.keys() - after.keys(), after.keys() - before.keys()
    found += [f"pool {name} is gone" for name in sorted(gone)] + [f"pool {name} is new" for name in sorted(came)]
    for name, heir in product(sorted(gone), sorted(came)):
        if before[name].ext_proc_address == after[heir].ext_proc_address and not any_port(after[heir].ext_proc_address):
            refused.append(f"pool {heir} takes the picker address of pool {name}, which is gone")
    for name in sorted(before.keys() & after.keys()):
        _compare(Pool, f"pool {name}: ", before[name], after[name], found, refused)
        found += _endpoints(name, before[name], after[name])
        _compare(Reach, f"pool {name}: scrape", before[name].reach, after[name].reach, found, refused)
        if before[name].accelerators != after[name].accelerators:
            found.append(f"pool {name}: accelerators")
    found += [f"profile {name}" for name, spec in new.profiles.items() if old.profiles.get(name) != spec]
    found += [f"profile {name} is gone" for name in old.profiles.keys() - new.profiles.keys()]
    if refused:
        raise NeedsRestart(
            f"needs a restart: {', '.join(sorted(refused))}; "
            "nothing was changed: restart the agent, or put back what it was"
        )
    return found


def any_port(address: str) -> bool:
    """True when the system chooses the port."""
    return split_address(address)[1] == 0


def _compare(section: type, key: str, old: Any, new: Any, found: list[str], refused: list[str]) -> None:
    for row in options(section):
        before, after = getattr(old, row.field), getattr(new, row.field)
        if before != after:
            shown = [("the usual" if value is None else row.kind.show(value)) for value in (before, after)]
            place = f"{key}{row.key}" if key.endswith(" ") else f"{key}.{row.key}"
            (found if row.live else refused).append(f"{place} {shown[0]} -> {shown[1]}")


def _endpoints(name: str, old: Pool, new: Pool) -> list[str]:
    before, after = set(old.endpoints), set(new.endpoints)
    if before == after:
        return []
    known = {endpoint.address: endpoint for endpoint in old.endpoints}
    here = {endpoint.address for endpoint in new.endpoints}
    words = [
        _differs(known[endpoint.address], endpoint) if endpoint.address in known else f"+{endpoint.address}"
        for endpoint in new.endpoints
        if endpoint not in before
    ]
    words += [f"-{endpoint.address}" for endpoint in old.endpoints if endpoint.address not in here]
    return [f"pool {name}: endpoints {' '.join(words)}"]


def _differs(old: Endpoint, new: Endpoint) -> str:
    """What is told anew of an address."""
    rows = [row for row in options(Endpoint) if getattr(old, row.field) != getattr(new, row.field)]
    return f"{new.address} ({', '.join(f'{row.key} {row.kind.show(getattr(new, row.field))}' for row in rows)})"
