"""What no single option can know: combinations that cannot be, each with what to write instead."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Final, NamedTuple

from agent.config.accelerators import NODE
from agent.config.names import Vocabulary
from agent.config.options import Accelerators, Config, Reach
from agent.config.reading import Reader
from agent.config.values import meant, quote, show_duration, show_size, split_address
from agent.engine_specs import engine_by_label

_EVERYWHERE = frozenset({"0.0.0.0", "::"})
_LOOPBACK = frozenset({"localhost", "::1"})


class _Listener(NamedTuple):
    key: str
    address: str


def check(config: Config, reader: Reader, words: Vocabulary | None) -> None:
    """Add a problem for each combination that cannot be."""
    _times(config, reader)
    _budget(config, reader)
    _rates(config, reader)
    _bodies(config, reader)
    _listeners(config, reader)
    names: dict[str, int] = {}
    for place, pool in enumerate(config.pools):
        key = f"pools[{place}]"
        if pool.name in names:
            reader.wrong_at(f"{key}.name", f"a second pool named {quote(pool.name)}; give each pool its own name:")
        names.setdefault(pool.name, place)
        if pool.profile not in config.profiles:
            reader.wrong_at(
                f"{key}.profile",
                f"there is no profile {quote(pool.profile)}; {meant(pool.profile, sorted(config.profiles))}",
            )
        if words is not None:
            _engines(config, place, reader, words)
        _accelerators(config, place, reader, words)
        _reach(pool.reach, f"{key}.scrape", reader)
        seen: dict[str, str] = {}
        for number, endpoint in enumerate(pool.endpoints):
            path = f"{key}.endpoints[{number}]"
            if endpoint.address in seen:
                reader.wrong_at(
                    path, f"{endpoint.address} stands twice in this pool, first at {seen[endpoint.address]}; keep one"
                )
            seen.setdefault(endpoint.address, path)


def _times(config: Config, reader: Reader) -> None:
    interval, timeout, stale = config.scrape.interval, config.scrape.timeout, config.state.stale_after
    if stale <= interval:
        advice = f"write staleAfter: {show_duration(3 * interval)} or more, or a shorter scrape.interval"
        what = f"{show_duration(stale)} is not above scrape.interval ({show_duration(interval)})"
        reader.wrong_at(
            "state.staleAfter",
            f"{what}, so no value would ever be fresh; {advice}",
            stands="" if "state.staleAfter" in reader.marks else "scrape.interval",
        )
    if timeout > stale:
        what = f"{show_duration(timeout)} is above state.staleAfter ({show_duration(stale)})"
        reader.wrong_at(
            "scrape.timeout",
            f"{what}, so a slow page would be stale on arrival; "
            f"write timeout: {show_duration(min(interval, stale))} or less",
            stands="" if "scrape.timeout" in reader.marks else "state.staleAfter",
        )


def _budget(config: Config, reader: Reader) -> None:
    """A budget that is too little even for the longest interval; names that stand for more are found out later."""
    endpoints = sum(len(pool.endpoints) for pool in config.pools)
    per_second, longest = config.scrape.budget.scrapes_per_second, config.longest_interval
    if per_second is None or endpoints <= per_second * longest:
        return
    least = math.ceil(endpoints / longest * 10) / 10
    if longest > config.scrape.interval:
        why = f"once in {longest:.3g}s, as state.staleAfter and scrape.timeout ask for"
    else:
        why = f"once in scrape.interval ({show_duration(longest)}), and state.staleAfter leaves no room for less"
    reader.wrong_at(
        "scrape.budget.scrapesPerSecond",
        f"{per_second:.12g} is too little to ask {endpoints} endpoint{'' if endpoints == 1 else 's'} {why}; "
        f"write {least:.12g} or more, or a longer state.staleAfter",
    )


def _rates(config: Config, reader: Reader) -> None:
    rate = config.prefill_rate
    if rate.low > rate.high:
        reader.wrong_at(
            "prefillRate.low",
            f"{rate.low:.12g} is above prefillRate.high ({rate.high:.12g}); write a smaller low or a larger high",
        )
    elif not rate.low <= rate.default <= rate.high:
        written = [key for key in ("prefillRate.default", "prefillRate.high", "prefillRate.low") if key in reader.marks]
        reader.wrong_at(
            "prefillRate.default",
            f"{rate.default:.12g} is outside low to high; write a rate from {rate.low:.12g} to {rate.high:.12g}",
            stands=written[0],
        )
    index = config.prefix_index
    if index.max_tokens < index.block_tokens:
        reader.wrong_at(
            "prefixIndex.maxTokens",
            f"{index.max_tokens} is less than one block ({index.block_tokens}), so nothing would match; "
            f"write {index.block_tokens} or more",
        )


def _bodies(config: Config, reader: Reader) -> None:
    body, held = config.ext_proc.max_body, config.ext_proc.max_held
    if held < body:
        reader.wrong_at(
            "extProc.maxHeld",
            f"{show_size(held)} is less than one body of extProc.maxBody ({show_size(body)}); "
            f"write {show_size(body)} or more",
            stands="" if "extProc.maxHeld" in reader.marks else "extProc.maxBody",
        )


def _listeners(config: Config, reader: Reader) -> None:
    pickers = [
        _Listener(f"pools[{place}].extProcAddress", pool.ext_proc_address) for place, pool in enumerate(config.pools)
    ]
    for one, other in combinations([*pickers, _Listener("admin.address", config.admin.address)], 2):
        if not _clash(one.address, other.address):
            continue
        later = one if other.key == "admin.address" and "admin.address" not in reader.marks else other
        first = other if later is one else one
        if other.key == "admin.address":
            why = "one port cannot be both a picker port and the admin port"
        else:
            why = "each pool needs a picker port of its own"
        reader.wrong_at(
            later.key,
            f"{later.address} is also {reader.spelt(first.key)}, and {why}; "
            "write another port, or port 0 for any free one",
        )
    for place, pool in enumerate(config.pools):
        for number, endpoint in enumerate(pool.endpoints):
            for listener in (*pickers, _Listener("admin.address", config.admin.address)):
                if _is_ours(endpoint.address, listener.address):
                    reader.wrong_at(
                        f"pools[{place}].endpoints[{number}]",
                        f"{endpoint.address} is our own {reader.spelt(listener.key)}; "
                        "write the address of a model server",
                    )


def _clash(one: str, other: str) -> bool:
    """True when both addresses cannot be listened on at once."""
    (host, port), (other_host, other_port) = split_address(one), split_address(other)
    if port != other_port or port == 0:
        return False
    return host == other_host or host in _EVERYWHERE or other_host in _EVERYWHERE


def _is_ours(address: str, listener: str) -> bool:
    """True when the address leads to what listens there: the same one, or loopback where it listens everywhere."""
    (host, port), (our_host, our_port) = split_address(address), split_address(listener)
    if port != our_port:
        return False
    return host == our_host or (our_host in _EVERYWHERE and (host in _LOOPBACK or host.startswith("127.")))


def _reach(reach: Reach, key: str, reader: Reader) -> None:
    tls = {
        "caFile": reach.ca_file,
        "certFile": reach.cert_file,
        "keyFile": reach.key_file,
        "serverName": reach.server_name,
        "insecureSkipVerify": reach.insecure_skip_verify,
    }
    if reach.scheme == "http":
        for name in (name for name, value in tls.items() if value):
            reader.wrong_at(f"{key}.{name}", "has no meaning over http; write scheme: https, or remove it")
        return
    if bool(reach.cert_file) != bool(reach.key_file):
        there, missing = ("certFile", "keyFile") if reach.cert_file else ("keyFile", "certFile")
        reader.wrong_at(f"{key}.{there}", f"stands alone; write {missing} beside it")
    if reach.insecure_skip_verify:
        for name in ("caFile", "serverName"):
            if tls[name]:
                reader.wrong_at(f"{key}.{name}", "nothing is verified with insecureSkipVerify; remove one of the two")


def _accelerators(config: Config, place: int, reader: Reader, words: Vocabulary | None) -> None:
    pool = config.pools[place]
    seen: set[tuple[str, ...]] = set()
    for number, entry in enumerate(pool.accelerators):
        path = f"pools[{place}].accelerators[{number}]"
        if words is not None and entry.source not in words.accelerators:
            reader.wrong_at(
                f"{path}.source", f"{quote(entry.source)} is no source; {meant(entry.source, words.accelerators)}"
            )
            continue
        _accelerator_source(entry, path, reader)
        blind = pool.endpoints and not any(endpoint.pod for endpoint in pool.endpoints)
        if entry.join == "pod" and entry.source != "nvml" and blind:
            reader.wrong_at(
                f"{path}.join",
                "no endpoint of the pool names its pod, so no device would be anybody's; "
                "write pod: beside the addresses, or join: node",
            )
        _accelerator_times(entry, path, reader)
        key = (entry.source, entry.address, entry.path, entry.project, entry.location, entry.cluster)
        if key in seen:
            at = f" at {entry.address}{entry.path}" if entry.address else ""
            reader.wrong_at(path, f"{entry.source}{at} stands twice in this pool; keep one")
        seen.add(key)


# What an entry of each source needs, and what has no meaning there; the others have a page.
_NEEDS: Final = {"gke": ("project", "location", "cluster"), "nvml": ()}
_JOINS: Final = {"gke": ("pod", "Cloud Monitoring names pods"), "nvml": ("node", "NVML knows no pods")}


def _accelerator_source(entry: Accelerators, path: str, reader: Reader) -> None:
    needs = _NEEDS.get(entry.source, ("address",))
    for option in ("address", "project", "location", "cluster"):
        if option in needs and not getattr(entry, option) and f"{path}.{option}" in reader.marks:
            continue  # written and wrong, which is told already
        if option in needs and not getattr(entry, option):
            such = f"where its exporter listens, such as '{NODE}:9400'" if option == "address" else f"the {option}"
            reader.wrong_at(f"{path}.{option}", f"missing; write {such}")
        elif option not in needs and getattr(entry, option):
            reader.wrong_at(f"{path}.{option}", f"{entry.source} has none; remove it")
    join, why = _JOINS.get(entry.source, (entry.join, ""))
    if entry.join != join:
        reader.wrong_at(f"{path}.join", f"{why}; write join: {join}", stands=path)


def _accelerator_times(entry: Accelerators, path: str, reader: Reader) -> None:
    if entry.stale_after <= entry.interval:
        what = f"{show_duration(entry.stale_after)} is not above interval ({show_duration(entry.interval)})"
        reader.wrong_at(
            f"{path}.staleAfter",
            f"{what}, so no value would ever be fresh; write staleAfter: {show_duration(3 * entry.interval)} or more",
        )
    if entry.timeout > entry.stale_after:
        what = f"{show_duration(entry.timeout)} is above staleAfter ({show_duration(entry.stale_after)})"
        reader.wrong_at(
            f"{path}.timeout",
            f"{what}, so a slow page would be stale on arrival; "
            f"write timeout: {show_duration(min(entry.interval, entry.stale_after))} or less",
        )


def _engines(config: Config, place: int, reader: Reader, words: Vocabulary) -> None:
    pool = config.pools[place]
    engines = (*words.engines, *(spec.name for spec in config.engines))
    if pool.engine not in engines:
        reader.wrong_at(f"pools[{place}].engine", f"{quote(pool.engine)} is no engine; {meant(pool.engine, engines)}")
        return
    for number, endpoint in enumerate(pool.endpoints):
        if endpoint.engine in engines:
            continue
        path = f"pools[{place}].endpoints[{number}]"
        told = engine_by_label(dict(endpoint.labels), config.engine_labels)
        if f"{path}.engine" in reader.marks or told is None:
            reader.wrong_at(
                f"{path}.engine", f"{quote(endpoint.engine)} is no engine; {meant(endpoint.engine, engines)}"
            )
        else:
            what = f"{quote(told[1])}, which {told[0]} says, is no engine; {meant(told[1], engines)}"
            reader.wrong_at(f"{path}.labels", what)
