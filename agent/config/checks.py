"""Checks of combinations of options; each problem says what to write instead."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Final, NamedTuple

from agent.config.addresses import NODE_PLACEHOLDER, is_loopback, split_address
from agent.config.admin import KUBERNETES, NO_AUTH, TOKEN_FILE, AdminConfig
from agent.config.config import Config
from agent.config.flow_control import TRUST_NONE
from agent.config.metrics_api import NO_AUTH as METRICS_NO_AUTH
from agent.config.pools import AcceleratorConfig, PoolConfig, PoolScrapeConfig
from agent.config.reader import DocumentReader
from agent.config.scrape import STALE_AFTER_INTERVALS
from agent.config.tls import TlsConfig
from agent.config.values import quote, show_duration, show_size, suggestion
from agent.config.vocabulary import Vocabulary
from agent.engine_specs import engine_by_label

_ALL_INTERFACES = frozenset({"0.0.0.0", "::"})
_LOOPBACK = frozenset({"localhost", "::1"})


class _Listener(NamedTuple):
    key: str
    address: str


def check(config: Config, reader: DocumentReader, vocabulary: Vocabulary | None) -> None:
    """Add a problem for each combination that is not valid."""
    _times(config, reader)
    _budget(config, reader)
    _rates(config, reader)
    _ejections(config, reader)
    _bodies(config, reader)
    _listeners(config, reader)
    _replicas(config, reader)
    _tls(config.ext_proc.tls, "extProc.tls", reader)
    _tls(config.admin.tls, "admin.tls", reader)
    _keda(config, reader)
    _admin(config.admin, reader)
    _metrics_api(config, reader)
    _objectives(config, reader)
    _picker_tls(config, reader)
    names: dict[str, int] = {}
    for index, pool in enumerate(config.pools):
        key = f"pools[{index}]"
        if pool.name in names:
            reader.problem_at(
                f"{key}.name", f"a second pool named {quote(pool.name)}; give each pool a name of its own"
            )
        names.setdefault(pool.name, index)
        if pool.profile not in config.profiles:
            reader.problem_at(
                f"{key}.profile",
                f"there is no profile {quote(pool.profile)}; {suggestion(pool.profile, sorted(config.profiles))}",
            )
        _source(pool, key, reader)
        if vocabulary is not None:
            _engines(config, index, reader, vocabulary)
        _accelerators(config, index, reader, vocabulary)
        _pool_scrape(pool.scrape, f"{key}.scrape", reader)
        seen: dict[str, str] = {}
        for number, endpoint in enumerate(pool.endpoints):
            path = f"{key}.endpoints[{number}]"
            if endpoint.address in seen:
                reader.problem_at(
                    path,
                    f"{endpoint.address} is listed twice in this pool, first at {seen[endpoint.address]}; keep one",
                )
            seen.setdefault(endpoint.address, path)


def _objectives(config: Config, reader: DocumentReader) -> None:
    """Objectives whose pool does not exist, and those that two entries define or bind to a model for one pool; and a
    header that is not believed."""
    if config.flow_control.caller_header and config.flow_control.trust_headers == TRUST_NONE:
        reader.problem_at(
            "flowControl.callerHeader", "it has no effect with trustHeaders: none; remove it, or write gateway or all"
        )
    pools = [pool.name for pool in config.pools]
    names: dict[tuple[str, str], str] = {}  # name and pool -> the entry that defines it
    models: dict[tuple[str, str], str] = {}
    for index, objective in enumerate(config.objectives):
        key = f"objectives[{index}]"
        if objective.pool and objective.pool not in pools:
            advice = suggestion(objective.pool, pools) if pools else "add it to pools:"
            reader.problem_at(f"{key}.pool", f"there is no pool {quote(objective.pool)}; {advice}")
            continue
        own = [objective.pool] if objective.pool else pools
        other = next((names[objective.name, pool] for pool in own if (objective.name, pool) in names), "")
        if other:
            reader.problem_at(
                f"{key}.name",
                f"{other} is an objective {quote(objective.name)} of the same pool; give each a name of its own, or "
                "a pool of its own",
            )
        for model in dict.fromkeys(objective.models):
            bound = next((models[model, pool] for pool in own if (model, pool) in models), "")
            if bound:
                reader.problem_at(
                    f"{key}.models", f"{quote(model)} has the objective of {bound} already; remove it from one of them"
                )
        for pool in own:
            names.setdefault((objective.name, pool), reader.as_written(key))
            for model in objective.models:
                models.setdefault((model, pool), reader.as_written(key))


# Where a pool's endpoints come from; exactly one of these is set.
SOURCE_KEYS: Final = ("endpoints", "inferencePool", "selector")


def _source(pool: PoolConfig, key: str, reader: DocumentReader) -> None:
    """The source of a pool's endpoints, and the options that belong to it. A key counts as written where its value is
    invalid, which is reported already."""

    def written(name: str) -> bool:
        return reader.is_written(f"{key}.{name}")

    sources = [name for name in SOURCE_KEYS if written(name)]
    if not sources:
        reader.problem_at(
            f"{key}.endpoints",
            "missing; list the model servers, each as HOST:PORT; or, in a cluster, write inferencePool, or selector "
            "and targetPorts",
        )
        return
    for other in sources[1:]:
        reader.problem_at(
            f"{key}.{other}", f"{sources[0]} already says which servers the pool has; remove one of the two"
        )
    if len(sources) > 1:
        return
    if written("targetPorts") and sources[0] != "selector":
        has = "the InferencePool has its own" if sources[0] == "inferencePool" else "each endpoint has its own"
        reader.problem_at(f"{key}.targetPorts", f"not valid with {sources[0]}: {has}; remove it")
    if sources[0] == "selector" and not written("targetPorts"):
        reader.problem_at(
            f"{key}.targetPorts",
            "missing; write the ports on which the selected pods serve, such as [8000]",
            place=f"{key}.selector",
        )
    if written("namespace") and sources[0] == "endpoints":
        reader.problem_at(f"{key}.namespace", "has no effect with endpoints; remove it")


def _times(config: Config, reader: DocumentReader) -> None:
    interval, timeout, stale = config.scrape.interval, config.scrape.timeout, config.state.stale_after
    if stale <= interval:
        advice = (
            f"write staleAfter: {show_duration(STALE_AFTER_INTERVALS * interval)} or more, or a shorter scrape.interval"
        )
        what = f"{show_duration(stale)} is not above scrape.interval ({show_duration(interval)})"
        reader.problem_at(
            "state.staleAfter",
            f"{what}, so every reading would be stale; {advice}",
            place="" if reader.is_written("state.staleAfter") else "scrape.interval",
        )
    if timeout > stale:
        what = f"{show_duration(timeout)} is above state.staleAfter ({show_duration(stale)})"
        reader.problem_at(
            "scrape.timeout",
            f"{what}, so a slow response would be stale on arrival; "
            f"write timeout: {show_duration(min(interval, stale))} or less",
            place="" if reader.is_written("scrape.timeout") else "state.staleAfter",
        )


def _budget(config: Config, reader: DocumentReader) -> None:
    """A budget that is too small even at the longest interval. A host name counts as one endpoint here."""
    endpoints = sum(len(pool.endpoints) for pool in config.pools)
    per_second, longest = config.scrape.budget.scrapes_per_second, config.longest_interval
    if per_second is None or endpoints <= per_second * longest:
        return
    least = math.ceil(endpoints / longest * 10) / 10
    if longest > config.scrape.interval:
        why = f"every {longest:.3g}s, as state.staleAfter and scrape.timeout require"
    else:
        why = f"every scrape.interval ({show_duration(longest)}), which state.staleAfter does not let grow"
    reader.problem_at(
        "scrape.budget.scrapesPerSecond",
        f"{per_second:.12g} is too small to scrape {endpoints} endpoint{'' if endpoints == 1 else 's'} {why}; "
        f"write {least:.12g} or more, or a longer state.staleAfter",
    )


def _rates(config: Config, reader: DocumentReader) -> None:
    rate = config.prefill_rate
    if rate.low > rate.high:
        reader.problem_at(
            "prefillRate.low",
            f"{rate.low:.12g} is above prefillRate.high ({rate.high:.12g}); write a smaller low or a larger high",
        )
    elif not rate.low <= rate.default <= rate.high:
        written = [
            key for key in ("prefillRate.default", "prefillRate.high", "prefillRate.low") if reader.is_written(key)
        ]
        reader.problem_at(
            "prefillRate.default",
            f"{rate.default:.12g} is not from low to high; write a rate from {rate.low:.12g} to {rate.high:.12g}",
            place=written[0],
        )
    prefixes = config.prefix_index
    if prefixes.max_tokens < prefixes.block_tokens:
        reader.problem_at(
            "prefixIndex.maxTokens",
            f"{prefixes.max_tokens} is less than one block ({prefixes.block_tokens}), so no prefix would match; "
            f"write {prefixes.block_tokens} or more",
        )


def _ejections(config: Config, reader: DocumentReader) -> None:
    limits = config.outlier_detection
    if limits.base_ejection_time > limits.max_ejection_time:
        reader.problem_at(
            "outlierDetection.baseEjectionTime",
            f"{show_duration(limits.base_ejection_time)} is above outlierDetection.maxEjectionTime "
            f"({show_duration(limits.max_ejection_time)}); write a shorter base or a longer maximum",
        )


def _bodies(config: Config, reader: DocumentReader) -> None:
    body, buffered = config.ext_proc.max_body, config.ext_proc.max_buffered_bytes
    if buffered < body:
        reader.problem_at(
            "extProc.maxBufferedBytes",
            f"{show_size(buffered)} is less than extProc.maxBody ({show_size(body)}); write {show_size(body)} or more",
            place="" if reader.is_written("extProc.maxBufferedBytes") else "extProc.maxBody",
        )


def _listeners(config: Config, reader: DocumentReader) -> None:
    pickers = [
        _Listener(f"pools[{index}].extProcAddress", pool.ext_proc_address) for index, pool in enumerate(config.pools)
    ]
    for one, other in combinations([*pickers, _Listener("admin.address", config.admin.address)], 2):
        if not _clash(one.address, other.address):
            continue
        later = one if other.key == "admin.address" and not reader.is_written("admin.address") else other
        first = other if later is one else one
        if other.key == "admin.address":
            why = "the ext_proc port and the admin port must differ"
        else:
            why = "each pool needs an ext_proc port of its own"
        reader.problem_at(
            later.key,
            f"{later.address} is also {reader.spelling(first.key)}, and {why}; "
            "write another port, or port 0 for any free port",
        )
    for index, pool in enumerate(config.pools):
        for number, endpoint in enumerate(pool.endpoints):
            for listener in (*pickers, _Listener("admin.address", config.admin.address)):
                if _leads_to(endpoint.address, listener.address):
                    reader.problem_at(
                        f"pools[{index}].endpoints[{number}]",
                        f"{endpoint.address} is the agent's {reader.spelling(listener.key)}; "
                        "write the address of a model server",
                    )


def _keda(config: Config, reader: DocumentReader) -> None:
    """The port for KEDA: an address of its own, and TLS only with it."""
    keda = config.keda
    if not keda.enabled:
        for key in sorted(reader.marks):
            if key.startswith("keda.tls."):
                reader.problem_at(key, "it has no effect without keda.address; write where KEDA finds the agent")
                return
        return
    _tls(keda.tls, "keda.tls", reader)
    others = [(f"pools[{index}].extProcAddress", pool.ext_proc_address) for index, pool in enumerate(config.pools)]
    others += [
        ("admin.address", config.admin.address),
        ("metricsApi.address", config.metrics_api.address),
        ("replicas.address", config.replicas.address),
    ]
    for key, address in others:
        if address and _clash(keda.address, address):
            reader.problem_at(
                "keda.address",
                f"{keda.address} is also {reader.spelling(key)}, and the port for KEDA is one of its own; "
                "write another port, or port 0 for any free port",
            )


def _replicas(config: Config, reader: DocumentReader) -> None:
    replicas = config.replicas
    written = [key for key in sorted(reader.marks) if key.startswith("replicas.") and key != "replicas.address"]
    if not replicas.enabled:
        if written:
            reader.problem_at(
                written[0], "it has no effect without replicas.address; write where this agent serves its peers"
            )
        return
    if replicas.peers and replicas.service:
        reader.problem_at("replicas.service", "replicas.peers lists the replicas already; keep one of the two")
    if not (replicas.peers or replicas.service):
        reader.problem_at(
            "replicas.address",
            "no replica is known; write replicas.peers: [HOST:PORT, ...], or replicas.service: HOST:PORT",
        )
    tls = {"caFile": replicas.ca_file, "certFile": replicas.cert_file, "keyFile": replicas.key_file}
    given = [name for name, file in tls.items() if file]
    if given and len(given) < len(tls):
        missing = ", ".join(f"replicas.{name}" for name in tls if name not in given)
        reader.problem_at(f"replicas.{given[0]}", f"TLS between replicas is mutual; write {missing} as well")
    if replicas.server_name and not given:
        reader.problem_at("replicas.serverName", "it has no effect without TLS; write replicas.caFile, or remove it")
    host, _ = split_address(replicas.address)
    if not (host in _LOOPBACK or host.startswith("127.")) and not replicas.token_file and not given:
        reader.problem_at(
            "replicas.address",
            f"{replicas.address} is not a loopback address, so others may report there; write replicas.tokenFile: "
            "a file with a secret, or replicas.caFile, certFile and keyFile",
        )
    others = [(f"pools[{index}].extProcAddress", pool.ext_proc_address) for index, pool in enumerate(config.pools)]
    for key, address in (*others, ("admin.address", config.admin.address)):
        if _clash(replicas.address, address):
            reader.problem_at(
                "replicas.address",
                f"{replicas.address} is also {reader.spelling(key)}; write another port, or port 0 for any free port",
            )


# They apply to what KEDA reads as well.
_LIMITS_OF_VALUES: Final = frozenset({"metricsApi.maxAge", "metricsApi.minCoverage"})


def _metrics_api(config: Config, reader: DocumentReader) -> None:
    """The metrics APIs: a port of their own, a whole pair of certificate and key, and readers that are checked."""
    metrics = config.metrics_api
    written = [key for key in sorted(reader.marks) if key.startswith("metricsApi.")]
    if not metrics.address:
        if config.keda.enabled:
            written = [key for key in written if key not in _LIMITS_OF_VALUES]
        if written:
            reader.problem_at(
                written[0], "it has no effect without metricsApi.address; write where the API server reaches the agent"
            )
        return
    if not (metrics.custom or metrics.external):
        reader.problem_at("metricsApi.address", "both APIs are switched off; write custom: true or external: true")
    if bool(metrics.cert_file) != bool(metrics.key_file):
        one, other = ("certFile", "keyFile") if metrics.cert_file else ("keyFile", "certFile")
        reader.problem_at(f"metricsApi.{one}", f"it needs metricsApi.{other}; write both, or none of them")
    if metrics.cert_file and metrics.service:
        reader.problem_at("metricsApi.service", "metricsApi.certFile has the certificate; keep one of the two")
    if metrics.auth == METRICS_NO_AUTH and not is_loopback(split_address(metrics.address)[0]):
        reader.problem_at(
            "metricsApi.auth",
            f"{metrics.address} is not loopback, so that others could read the metrics; write auth: {KUBERNETES}",
        )
    others = [(f"pools[{index}].extProcAddress", pool.ext_proc_address) for index, pool in enumerate(config.pools)]
    others += [("admin.address", config.admin.address), ("replicas.address", config.replicas.address)]
    for key, address in others:
        if address and _clash(metrics.address, address):
            reader.problem_at(
                "metricsApi.address",
                f"{metrics.address} is also {reader.spelling(key)}; write another port, or port 0 for any free port",
            )


def _clash(one: str, other: str) -> bool:
    """Whether two listeners cannot have both addresses."""
    (host, port), (other_host, other_port) = split_address(one), split_address(other)
    if port != other_port or port == 0:
        return False
    return host == other_host or host in _ALL_INTERFACES or other_host in _ALL_INTERFACES


def _leads_to(address: str, listener: str) -> bool:
    """Whether `address` leads to `listener`: the same address, or loopback where it listens on all interfaces."""
    (host, port), (own_host, own_port) = split_address(address), split_address(listener)
    if port != own_port:
        return False
    return host == own_host or (own_host in _ALL_INTERFACES and (host in _LOOPBACK or host.startswith("127.")))


def _tls(tls: TlsConfig, key: str, reader: DocumentReader) -> None:
    """A certificate without its key, two certificates, and options without a certificate."""
    if bool(tls.cert_file) != bool(tls.key_file):
        present, missing = ("certFile", "keyFile") if tls.cert_file else ("keyFile", "certFile")
        reader.problem_at(f"{key}.{present}", f"needs {missing}; add it")
    if tls.self_signed and (tls.cert_file or tls.key_file):
        reader.problem_at(
            f"{key}.selfSigned", "the certificate is that of certFile already; remove one of the two", place=key
        )
    if not tls.enabled and not tls.key_file:
        for name in ("clientCaFile", "clientCertificate", "minVersion"):
            if reader.is_written(f"{key}.{name}"):
                reader.problem_at(
                    f"{key}.{name}",
                    "has no effect without a certificate; write certFile and keyFile, or selfSigned: true",
                )


def _admin(admin: AdminConfig, reader: DocumentReader) -> None:
    """Who may read the admin port: beyond loopback, not everybody, and no token in plaintext."""
    auth = admin.auth
    if auth.mode == TOKEN_FILE and not auth.token_file and not reader.is_written("admin.auth.tokenFile"):
        reader.problem_at("admin.auth.tokenFile", f"missing; write the file of tokens for mode: {TOKEN_FILE}")
    for key, value, mode in (("tokenFile", auth.token_file, TOKEN_FILE), ("audiences", auth.audiences, KUBERNETES)):
        if value and auth.mode != mode:
            reader.problem_at(
                f"admin.auth.{key}", f"has no effect with mode {auth.mode}; write mode: {mode}, or remove it"
            )
    if admin.insecure or is_loopback(split_address(admin.address)[0]):
        return
    certificates = bool(admin.tls.client_ca_file) and admin.tls.client_certificate == "required"
    missing = []
    if auth.mode == NO_AUTH and not certificates:
        missing.append(f"admin.auth with mode: {KUBERNETES}, or mode: {TOKEN_FILE} and a tokenFile")
    if not admin.tls.enabled:
        missing.append("admin.tls with certFile and keyFile, or selfSigned: true")
    if missing:
        reader.problem_at(
            "admin.address",
            f"{admin.address} is not loopback, so other machines could read the port, or the tokens of its readers; "
            f"write {', and '.join(missing)}; or admin.insecure: true where only trusted clients reach it",
        )


def _picker_tls(config: Config, reader: DocumentReader) -> None:
    """How the rendered Envoy connects to a picker with TLS."""
    envoy = config.envoy
    given = {
        "pickerCaFile": envoy.picker_ca_file,
        "pickerServerName": envoy.picker_server_name,
        "pickerCertFile": envoy.picker_cert_file,
        "pickerKeyFile": envoy.picker_key_file,
    }
    if not config.ext_proc.tls.enabled:
        for name in (name for name, value in given.items() if value):
            reader.problem_at(f"envoy.{name}", "has no effect without extProc.tls; configure it, or remove this")
    elif bool(envoy.picker_cert_file) != bool(envoy.picker_key_file):
        names = ("pickerCertFile", "pickerKeyFile")
        present, missing = names if envoy.picker_cert_file else names[::-1]
        reader.problem_at(f"envoy.{present}", f"needs {missing}; add it")


def _pool_scrape(scrape: PoolScrapeConfig, key: str, reader: DocumentReader) -> None:
    tls = {
        "caFile": scrape.ca_file,
        "certFile": scrape.cert_file,
        "keyFile": scrape.key_file,
        "serverName": scrape.server_name,
        "insecureSkipVerify": scrape.insecure_skip_verify,
    }
    if scrape.scheme == "http":
        for name in (name for name, value in tls.items() if value):
            reader.problem_at(f"{key}.{name}", "has no effect with scheme http; write scheme: https, or remove it")
        return
    if bool(scrape.cert_file) != bool(scrape.key_file):
        present, missing = ("certFile", "keyFile") if scrape.cert_file else ("keyFile", "certFile")
        reader.problem_at(f"{key}.{present}", f"needs {missing}; add it")
    if scrape.insecure_skip_verify:
        for name in ("caFile", "serverName"):
            if tls[name]:
                reader.problem_at(f"{key}.{name}", "has no effect with insecureSkipVerify; remove one of the two")


def _accelerators(config: Config, index: int, reader: DocumentReader, vocabulary: Vocabulary | None) -> None:
    pool = config.pools[index]
    seen: set[tuple[object, ...]] = set()
    for number, entry in enumerate(pool.accelerators):
        path = f"pools[{index}].accelerators[{number}]"
        if vocabulary is not None and entry.source not in vocabulary.accelerators:
            reader.problem_at(
                f"{path}.source",
                f"{quote(entry.source)} is not a source; {suggestion(entry.source, vocabulary.accelerators)}",
            )
            continue
        _accelerator_source(entry, path, reader)
        without_pods = pool.endpoints and not any(endpoint.pod for endpoint in pool.endpoints)
        if entry.join == "pod" and entry.source != "nvml" and without_pods:
            reader.problem_at(
                f"{path}.join",
                "no endpoint of the pool has a pod, so no device would match; "
                "set pod of the endpoints, or write join: node",
            )
        _accelerator_times(entry, path, reader)
        pods = (entry.selector, entry.namespace, entry.port)
        key = (entry.source, entry.address, pods, entry.path, entry.project, entry.location, entry.cluster)
        if key in seen:
            at = f" at {entry.address}{entry.path}" if entry.address else ""
            reader.problem_at(path, f"{entry.source}{at} is listed twice in this pool; keep one")
        seen.add(key)


# The options that a source requires; `address` for an exporter. The others of these four are not valid.
_NEEDS: Final = {"gke": ("project", "location", "cluster"), "nvml": ()}
_JOINS: Final = {"gke": ("pod", "Cloud Monitoring reports pods"), "nvml": ("node", "NVML reports no pods")}


def _accelerator_source(entry: AcceleratorConfig, path: str, reader: DocumentReader) -> None:
    exporter = entry.source not in _NEEDS
    by_pod = reader.is_written(f"{path}.selector")
    needs = _NEEDS.get(entry.source, () if by_pod else ("address",))
    _exporter_pods(entry, path, reader, exporter=exporter, by_pod=by_pod)
    for option in ("address", "project", "location", "cluster"):
        if option in needs and not getattr(entry, option) and reader.is_written(f"{path}.{option}"):
            continue  # invalid, which is reported already
        if option in needs and not getattr(entry, option):
            what = (
                f"the address of its exporter, such as '{NODE_PLACEHOLDER}:9400'"
                if option == "address"
                else f"the {option}"
            )
            reader.problem_at(f"{path}.{option}", f"missing; write {what}")
        elif option == "address" and by_pod and exporter:
            continue
        elif option not in needs and getattr(entry, option):
            reader.problem_at(f"{path}.{option}", f"not valid for {entry.source}; remove it")
    join, why = _JOINS.get(entry.source, (entry.join, ""))
    if entry.join != join:
        reader.problem_at(f"{path}.join", f"{why}; write join: {join}", place=path)


def _exporter_pods(
    entry: AcceleratorConfig, path: str, reader: DocumentReader, *, exporter: bool, by_pod: bool
) -> None:
    """The options of an exporter that is found by the labels of its pods."""
    for option in ("selector", "namespace", "port"):
        if not reader.is_written(f"{path}.{option}"):
            continue
        if not exporter:
            reader.problem_at(f"{path}.{option}", f"not valid for {entry.source}; remove it")
        elif not by_pod:
            reader.problem_at(f"{path}.{option}", "has no effect without selector; remove it")
    if not exporter or not by_pod:
        return
    if reader.is_written(f"{path}.address"):
        reader.problem_at(f"{path}.address", "selector already says where the exporters are; remove one of the two")
    if not entry.port and not reader.is_written(f"{path}.port"):
        reader.problem_at(f"{path}.port", "missing; write the port of the exporter's pods", place=f"{path}.selector")
    elif not entry.port:
        reader.problem_at(f"{path}.port", "0 is not a port; write the port of the exporter's pods")


def _accelerator_times(entry: AcceleratorConfig, path: str, reader: DocumentReader) -> None:
    if entry.stale_after <= entry.interval:
        what = f"{show_duration(entry.stale_after)} is not above interval ({show_duration(entry.interval)})"
        reader.problem_at(
            f"{path}.staleAfter",
            f"{what}, so every reading would be stale; "
            f"write staleAfter: {show_duration(STALE_AFTER_INTERVALS * entry.interval)} or more",
        )
    if entry.timeout > entry.stale_after:
        what = f"{show_duration(entry.timeout)} is above staleAfter ({show_duration(entry.stale_after)})"
        reader.problem_at(
            f"{path}.timeout",
            f"{what}, so a slow response would be stale on arrival; "
            f"write timeout: {show_duration(min(entry.interval, entry.stale_after))} or less",
        )


def _engines(config: Config, index: int, reader: DocumentReader, vocabulary: Vocabulary) -> None:
    pool = config.pools[index]
    engines = (*vocabulary.engines, *(spec.name for spec in config.engines))
    if pool.engine not in engines:
        reader.problem_at(
            f"pools[{index}].engine", f"{quote(pool.engine)} is not an engine; {suggestion(pool.engine, engines)}"
        )
        return
    for number, endpoint in enumerate(pool.endpoints):
        if endpoint.engine in engines:
            continue
        path = f"pools[{index}].endpoints[{number}]"
        by_label = engine_by_label(dict(endpoint.labels), config.engine_labels)
        if reader.is_written(f"{path}.engine") or by_label is None:
            reader.problem_at(
                f"{path}.engine", f"{quote(endpoint.engine)} is not an engine; {suggestion(endpoint.engine, engines)}"
            )
        else:
            key, name = by_label
            what = f"{quote(name)}, the value of {key}, is not an engine; {suggestion(name, engines)}"
            reader.problem_at(f"{path}.labels", what)
