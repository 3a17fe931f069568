"""Every problem of a file is reported at once, with its line, its key, and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.document import MAX_BYTES, MAX_DEPTH
from agent.config.file import load
from agent.config.nodes import BadConfig

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
POOL = "pools:\n- endpoints: [127.0.0.1:8001]\n"
NOT_LOOPBACK = " is not loopback, so other machines could read the port, or the tokens of its readers; write "
AUTH = "admin.auth with mode: kubernetes, or mode: tokenFile and a tokenFile"
TLS = "admin.tls with certFile and keyFile, or selfSigned: true"
INSECURE = "; or admin.insecure: true where only trusted clients reach it"
QUEUE = "plugins: [{type: queue-scorer}]\n"


def complaints(text: str) -> list[str]:
    with pytest.raises(BadConfig) as refused:
        parse(text, "file.yaml", VOCABULARY)
    return [line.removeprefix("file.yaml") for line in refused.value.lines()]


EXAMPLE = "write a name, or name{label=value}, such as nv_trt_llm_request_metrics{request_type=waiting}"
SCRAPE_KEYS = "valid values: budget, healthInterval, histograms, interval, maxPageBytes, modelsInterval, path, timeout"
BAD = {
    # the document itself
    "": ": the file is empty; write an EndpointPickerConfig document",
    "# nothing\n": ": the file is empty; write an EndpointPickerConfig document",
    "- a\n- b\n": ":1: the file is a list; write a mapping of keys",
    "pools: [": ":1: not YAML: while parsing a flow node expected the node content, but found '<stream end>'",
    "a:\n\tb: 1\n": ":2: not YAML: a tab; indent with spaces",
    f"{HEAD}---\n{HEAD}": ":3: a second document begins here; write one document per file",
    f"{HEAD}scrape: &s {{interval: 1s}}\nstate: *s\n": ":4: aliases are not supported; write out the value of *s",
    f"{HEAD}pools: !!python/object:os.system []\n": (
        ":3: tags are not supported; remove tag:yaml.org,2002:python/object:os.system"
    ),
    f"{HEAD}scrape:\n  interval: 1s\n  interval: 2s\n": (
        ":5: interval: duplicate key; the first is on line 4; keep one"
    ),
    f"{HEAD}? [a]\n: b\n": ":3: a list is used as a key; write a name",
    f"{HEAD}log: {'[' * 40}{']' * 40}\n": f":3: more than {MAX_DEPTH} levels deep; no option is that deep",
    "a\x00b: 1": ": not YAML: unacceptable character #x0000: special characters are not allowed",
    "kind: EndpointPickerConfig\n": ":1: apiVersion: missing; write apiVersion: llm-d.ai/v1alpha1",
    "apiVersion: v1\nkind: EndpointPickerConfig\n": (
        ":1: apiVersion: 'v1' is not valid; valid values: llm-d.ai/v1alpha1, llm-d.ai/v1, "
        "inference.networking.x-k8s.io/v1alpha1"
    ),
    "apiVersion: llm-d.ai/v1alpha1\nkind: InferencePool\n": (
        ":2: kind: 'InferencePool' is not valid; valid values: EndpointPickerConfig"
    ),
    # keys and types of nodes
    f"{HEAD}scrap:\n  interval: 1s\n": ":3: scrap: unknown key; did you mean 'scrape'?",
    f"{HEAD}scrape:\n  stale_after: 1s\n  intervall: 1s\n": [
        f":4: scrape.stale_after: unknown key; {SCRAPE_KEYS}",
        ":5: scrape.intervall: unknown key; did you mean 'interval'?",
    ],
    f"{HEAD}prefixIndex:\n  block_tokens: 64\n": (
        ":4: prefixIndex.block_tokens: unknown key; did you mean 'blockTokens'?"
    ),
    f"{HEAD}scrape: 1s\n": ":3: scrape: text where a mapping is expected; write its options below it, indented",
    f"{HEAD}pools: 127.0.0.1:8001\n": ":3: pools: text where a list is expected; begin each entry with '- '",
    # times
    f"{HEAD}scrape: {{interval: 1}}\n": (
        ":3: scrape.interval: 1 has no unit; write 1s for seconds or 1ms for milliseconds"
    ),
    f"{HEAD}scrape: {{interval: fast}}\n": (
        ":3: scrape.interval: 'fast' is not a duration; write a number with its unit, such as 500ms or 2m"
    ),
    f"{HEAD}scrape:\n  interval:\n": (
        ":4: scrape.interval: empty is not a duration; write a number with its unit, such as 500ms or 2m"
    ),
    f"{HEAD}scrape: {{interval: 49ms}}\n": ":3: scrape.interval: 49ms is too short; write 50ms or more",
    f"{HEAD}scrape: {{interval: 2h}}\n": ":3: scrape.interval: 2h is too long; write 1h or less",
    f"{HEAD}scrape: {{interval: -1s}}\n": (
        ":3: scrape.interval: '-1s' is not a duration; write a number with its unit, such as 500ms or 2m"
    ),
    f"{HEAD}scrape:\n  interval: 5s\nstate:\n  staleAfter: 5s\n": (
        ":6: state.staleAfter: 5s is not above scrape.interval (5s), so every reading would be stale; "
        "write staleAfter: 15s or more, or a shorter scrape.interval"
    ),
    f"{HEAD}state: {{staleAfter: 500ms}}\nscrape: {{interval: 100ms}}\n": (
        ":3: scrape.timeout: 1s is above state.staleAfter (500ms), so a slow response would be stale on arrival; "
        "write timeout: 100ms or less"
    ),
    f"{HEAD}scrape:\n  budget: {{scrapesPerSecond: 0}}\n": (
        ":4: scrape.budget.scrapesPerSecond: 0 is out of range; write a number from 0.1 to 1000000"
    ),
    f"{HEAD}scrape:\n  budget: {{perSecond: 5, cpu: half}}\n": [
        ":4: scrape.budget.perSecond: unknown key; did you mean 'scrapesPerSecond'?",
        ":4: scrape.budget.cpu: 'half' is not a number; write a number from 0.001 to 64",
    ],
    f"{HEAD}scrape:\n  budget: {{scrapesPerSecond: 1}}\npools:\n- endpoints: ['a:1', 'b:1', 'c:1']\n": (
        ":4: scrape.budget.scrapesPerSecond: 1 is too small to scrape 3 endpoints every 1.8s, as state.staleAfter and "
        "scrape.timeout require; write 1.7 or more, or a longer state.staleAfter"
    ),
    f"{HEAD}scrape:\n  timeout: 3s\n  budget: {{scrapesPerSecond: 0.5}}\npools:\n- endpoints: ['a:1']\n": (
        ":5: scrape.budget.scrapesPerSecond: 0.5 is too small to scrape 1 endpoint every scrape.interval (1s), which "
        "state.staleAfter does not let grow; write 1 or more, or a longer state.staleAfter"
    ),
    f"{HEAD}scrape: {{timeout: 4s}}\n": (
        ":3: scrape.timeout: 4s is above state.staleAfter (3s), so a slow response would be stale on arrival; "
        "write timeout: 1s or less"
    ),
    # sizes and numbers
    f"{HEAD}extProc: {{maxBody: 1GiB}}\n": ":3: extProc.maxBody: 1GiB is too large; write 256MiB or less",
    f"{HEAD}extProc: {{maxBody: 100}}\n": ":3: extProc.maxBody: 100 is too small; write 1KiB or more",
    f"{HEAD}extProc: {{maxBody: lots}}\n": (
        ":3: extProc.maxBody: 'lots' is not a size; write a number with its unit, such as 512KiB or 16MiB"
    ),
    f"{HEAD}prefillRate: {{fixed: .nan}}\n": (
        ":3: prefillRate.fixed: '.nan' is not a number; write a number from 1 to 1000000000"
    ),
    f"{HEAD}prefillRate: {{fixed: 0}}\n": (
        ":3: prefillRate.fixed: 0 is out of range; write a number from 1 to 1000000000"
    ),
    f"{HEAD}prefillRate: {{low: 5000, high: 1000}}\n": (
        ":3: prefillRate.low: 5000 is above prefillRate.high (1000); write a smaller low or a larger high"
    ),
    f"{HEAD}prefillRate:\n  high: 1000\n": (
        ":4: prefillRate.default: 15928 is not from low to high; write a rate from 100 to 1000"
    ),
    f"{HEAD}prefixIndex: {{blockTokens: 64.5}}\n": (
        ":3: prefixIndex.blockTokens: 64.5 is out of range; write a whole number from 16 to 4096"
    ),
    f"{HEAD}prefixIndex: {{blockTokens: 128, maxTokens: 100}}\n": (
        ":3: prefixIndex.maxTokens: 100 is less than one block (128), so no prefix would match; write 128 or more"
    ),
    f"{HEAD}extProc: {{maxBufferedBytes: 1MiB}}\n": (
        ":3: extProc.maxBufferedBytes: 1MiB is less than extProc.maxBody (16MiB); write 16MiB or more"
    ),
    f"{HEAD}prefixIndex: {{autoSize: yes}}\n": (
        ":3: prefixIndex.autoSize: 'yes' is neither true nor false; write true or false"
    ),
    f"{HEAD}scrape: {{path: metrics}}\n": (
        ":3: scrape.path: 'metrics' is not a path; write it with its first slash, such as /metrics"
    ),
    f"{HEAD}log: {{level: verbose}}\n": (
        ":3: log.level: 'verbose' is not valid; valid values: debug, info, warning, error"
    ),
    # pools and addresses
    f"{HEAD}pools:\n- name: a\n": (
        ":4: pools[0].endpoints: missing; list the model servers, each as HOST:PORT; or, in a cluster, write "
        "inferencePool, or selector and targetPorts"
    ),
    f"{HEAD}pools:\n- endpoints: [a:1]\n  inferencePool: chat\n": (
        ":5: pools[0].inferencePool: endpoints already says which servers the pool has; remove one of the two"
    ),
    f"{HEAD}pools:\n- inferencePool: chat\n  selector: {{app: chat}}\n": (
        ":5: pools[0].selector: inferencePool already says which servers the pool has; remove one of the two"
    ),
    f"{HEAD}pools:\n- inferencePool: chat\n  targetPorts: [8000]\n": (
        ":5: pools[0].targetPorts: not valid with inferencePool: the InferencePool has its own; remove it"
    ),
    f"{HEAD}pools:\n- endpoints: [a:1]\n  targetPorts: [8000]\n": (
        ":5: pools[0].targetPorts: not valid with endpoints: each endpoint has its own; remove it"
    ),
    f"{HEAD}pools:\n- endpoints: [a:1]\n  namespace: llm\n": (
        ":5: pools[0].namespace: has no effect with endpoints; remove it"
    ),
    f"{HEAD}pools:\n- selector: {{app: chat}}\n": (
        ":4: pools[0].targetPorts: missing; write the ports on which the selected pods serve, such as [8000]"
    ),
    f"{HEAD}pools:\n- selector: {{}}\n  targetPorts: [8000]\n": (
        ":4: pools[0].selector: no label, which would select every pod; write one or more, such as {app: chat}"
    ),
    f"{HEAD}pools:\n- selector: {{app: chat}}\n  targetPorts: []\n": (
        ":5: pools[0].targetPorts: 0 ports; write 1 to 8 of them"
    ),
    f"{HEAD}pools:\n- selector: {{app: chat}}\n  targetPorts: [1, 2, 3, 4, 5, 6, 7, 8, 9]\n": (
        ":5: pools[0].targetPorts: 9 ports; write 1 to 8 of them"
    ),
    f"{HEAD}pools:\n- selector: {{app: chat}}\n  targetPorts: [8000, 8000]\n": (
        ":5: pools[0].targetPorts: port 8000 is listed twice; write each port once"
    ),
    f"{HEAD}pools:\n- selector: {{app: chat}}\n  targetPorts: [http]\n": (
        ":5: pools[0].targetPorts: 'http' is not a port; write whole numbers from 1 to 65535"
    ),
    f"{HEAD}pools:\n- selector: {{app: chat}}\n  targetPorts: 8000\n": (
        ":5: pools[0].targetPorts: a number where a list is expected; write it as [8000]"
    ),
    f"{HEAD}pools:\n- inferencePool: Chat\n": (
        ":4: pools[0].inferencePool: 'Chat' is not the name of an object; write the name of the InferencePool: small "
        "letters, digits, '-' and '.'"
    ),
    f"{HEAD}kubernetes: {{namespace: a_b}}\n": (
        ":3: kubernetes.namespace: 'a_b' is not the name of an object; write the name of the namespace: small letters, "
        "digits, '-' and '.'"
    ),
    f"{HEAD}pools:\n- endpoints:\n  - 127.0.0.1\n": (
        ":5: pools[0].endpoints[0].address: '127.0.0.1' has no port; write HOST:PORT, such as 127.0.0.1:8000"
    ),
    f"{HEAD}pools:\n- endpoints:\n  - ::1:8000\n": (
        ":5: pools[0].endpoints[0].address: '::1:8000' is IPv6 without brackets; "
        "write [ADDRESS]:PORT, such as [::1]:8000"
    ),
    f"{HEAD}pools:\n- endpoints:\n  - '[::1]'\n": (
        ":5: pools[0].endpoints[0].address: '[::1]' has no port; write [ADDRESS]:PORT, such as [::1]:8000"
    ),
    f"{HEAD}pools:\n- endpoints: ['[fd::g]:1']\n": (
        ":4: pools[0].endpoints[0].address: '[fd::g]' is not an IPv6 address; write it like [fd00::1]:1"
    ),
    f"{HEAD}pools:\n- endpoints: [http://10.0.0.1:80]\n": (
        ":4: pools[0].endpoints[0].address: 'http://10.0.0.1:80' is a URL; write HOST:PORT without the scheme"
    ),
    f"{HEAD}pools:\n- endpoints: [10.0.0.1:80/metrics]\n": (
        ":4: pools[0].endpoints[0].address: '10.0.0.1:80/metrics' has a path; write HOST:PORT only"
    ),
    f"{HEAD}pools:\n- endpoints: [10.0.0.256:80]\n": (
        ":4: pools[0].endpoints[0].address: '10.0.0.256' is not an IPv4 address; "
        "write four numbers from 0 to 255, such as 10.0.0.1:80"
    ),
    f"{HEAD}pools:\n- endpoints: [a_b.c-:80]\n": (
        ":4: pools[0].endpoints[0].address: 'a_b.c-' is not a host; write an IP address or a name, such as 127.0.0.1:80"
    ),
    f"{HEAD}pools:\n- endpoints: [a:70000]\n": (
        ":4: pools[0].endpoints[0].address: the port of 'a:70000' is not valid; write a whole number from 1 to 65535"
    ),
    f"{HEAD}pools:\n- endpoints: [a:0]\n": (
        ":4: pools[0].endpoints[0].address: port 0 of 'a:0' is not valid; write a port from 1 to 65535"
    ),
    f"{HEAD}pools:\n- endpoints:\n  - '[::1]:80'\n  - '[0:0::1]:80'\n": (
        ":6: pools[0].endpoints[1]: [::1]:80 is listed twice in this pool, first at pools[0].endpoints[0]; keep one"
    ),
    f"{HEAD}{POOL}admin:\n  address: 10.0.0.5:9090\n": (
        f":6: admin.address: 10.0.0.5:9090{NOT_LOOPBACK}{AUTH}, and {TLS}{INSECURE}"
    ),
    f"{HEAD}{POOL}admin: {{address: '0.0.0.0:9090', auth: {{mode: kubernetes}}}}\n": (
        f":5: admin.address: 0.0.0.0:9090{NOT_LOOPBACK}{TLS}{INSECURE}"
    ),
    f"{HEAD}{POOL}admin: {{address: 'agent.example:9090', tls: {{selfSigned: true}}}}\n": (
        f":5: admin.address: agent.example:9090{NOT_LOOPBACK}{AUTH}{INSECURE}"
    ),
    (
        f"{HEAD}{POOL}admin:\n  address: '[::]:9090'\n"
        "  tls: {selfSigned: true, clientCaFile: ca, clientCertificate: optional}\n"
    ): f":6: admin.address: [::]:9090{NOT_LOOPBACK}{AUTH}{INSECURE}",
    f"{HEAD}{POOL}admin:\n  auth: {{mode: tokenFile}}\n": (
        ":6: admin.auth.tokenFile: missing; write the file of tokens for mode: tokenFile"
    ),
    f"{HEAD}{POOL}admin:\n  auth:\n    tokenFile: tokens.csv\n    audiences: [igw]\n": [
        ":7: admin.auth.tokenFile: has no effect with mode none; write mode: tokenFile, or remove it",
        ":8: admin.auth.audiences: has no effect with mode none; write mode: kubernetes, or remove it",
    ],
    f"{HEAD}{POOL}admin: {{auth: {{mode: webhook}}}}\n": (
        ":5: admin.auth.mode: 'webhook' is not valid; valid values: none, kubernetes, tokenFile"
    ),
    f"{HEAD}pools:\n- endpoints: [a:1]\n  engine: vlm\n": (
        ":5: pools[0].engine: 'vlm' is not an engine; did you mean 'vllm'?"
    ),
    f"{HEAD}pools:\n- endpoints:\n  - {{address: 'a:1', engine: x}}\n": (
        f":5: pools[0].endpoints[0].engine: 'x' is not an engine; valid values: {', '.join(VOCABULARY.engines)}"
    ),
    f"{HEAD}pools:\n- endpoints:\n  - {{address: 'a:1', pod: vllm-0, node: -a-, labels: [x]}}\n": [
        ":5: pools[0].endpoints[0].labels: a list where labels are expected; write a mapping, such as {app: chat}",
        ":5: pools[0].endpoints[0].node: '-a-' is not a node; write the name or the address of a machine",
        ":5: pools[0].endpoints[0].pod: 'vllm-0' is not a pod; write NAMESPACE/POD, such as default/vllm-0",
    ],
    f"{HEAD}pools:\n- endpoints:\n  - address: a:1\n    labels:\n      -x: y\n": (
        ":7: pools[0].endpoints[0].labels: '-x' is not a label key; write NAME, or PREFIX/NAME with a DNS prefix"
    ),
    f"{HEAD}pools:\n- endpoints:\n  - address: a:1\n    labels: {{x: y z}}\n": (
        ":6: pools[0].endpoints[0].labels: 'y z', the value of 'x', is not a label value; "
        "write letters, digits, '-', '_' and '.', at most 63 of them"
    ),
    f"{HEAD}pools:\n- endpoints: [a:1]\n  accelerators:\n  - {{source: dcm, address: 'a:1'}}\n  - {{interval: 1s}}\n": [
        ":6: pools[0].accelerators[0].source: 'dcm' is not a source; did you mean 'dcgm'?",
        ":7: pools[0].accelerators[1].source: missing; write the source of the readings, such as dcgm",
    ],
    f"{HEAD}pools:\n- endpoints: [a:1]\n  accelerators:\n  - {{source: dcgm, staleAfter: 2s, cluster: c}}\n": [
        ":6: pools[0].accelerators[0].address: missing; write the address of its exporter, such as '{node}:9400'",
        ":6: pools[0].accelerators[0].cluster: not valid for dcgm; remove it",
        (
            ":6: pools[0].accelerators[0].join: no endpoint of the pool has a pod, "
            "so no device would match; set pod of the endpoints, or write join: node"
        ),
        (
            ":6: pools[0].accelerators[0].staleAfter: 2s is not above interval (5s), so every reading would be stale; "
            "write staleAfter: 15s or more"
        ),
    ],
    f"{HEAD}pools:\n- endpoints: [a:1]\n  accelerators:\n  - {{source: dcgm, join: node, selector: {{a: b}}}}\n": [
        ":6: pools[0].accelerators[0].port: missing; write the port of the exporter's pods"
    ],
    f"{HEAD}pools:\n- endpoints: [a:1]\n  accelerators:\n"
    "  - {source: dcgm, join: node, selector: {a: b}, port: 0, address: 'a:1'}\n": [
        ":6: pools[0].accelerators[0].address: selector already says where the exporters are; remove one of the two",
        ":6: pools[0].accelerators[0].port: 0 is not a port; write the port of the exporter's pods",
    ],
    f"{HEAD}pools:\n- endpoints: [a:1]\n  accelerators:\n"
    "  - {source: dcgm, join: node, address: 'a:1', namespace: gpu}\n"
    "  - {source: nvml, join: node, selector: {a: b}}\n": [
        ":6: pools[0].accelerators[0].namespace: has no effect without selector; remove it",
        ":7: pools[0].accelerators[1].selector: not valid for nvml; remove it",
    ],
    f"{HEAD}pools:\n- endpoints: [a:1]\n  accelerators:\n  - {{source: nvml, join: pod, fatalXids: [x]}}\n": [
        ":6: pools[0].accelerators[0].fatalXids: 'x' is not valid; write whole numbers from 1 to 9999",
        ":6: pools[0].accelerators[0].join: NVML reports no pods; write join: node",
    ],
    f"{HEAD}pools:\n- endpoints: [a:1]\n  accelerators:\n  - {{source: dcgm, address: '{{node}}', join: node}}\n": (
        ":6: pools[0].accelerators[0].address: 'node' has no port; write HOST:PORT, such as 127.0.0.1:8000"
    ),
    f"{HEAD}pools:\n- endpoints: [a:1]\n  profile: least-cots\n": (
        ":5: pools[0].profile: there is no profile 'least-cots'; did you mean 'least-cost'?"
    ),
    f"{HEAD}pools:\n- {{name: x, endpoints: [a:1]}}\n- {{name: x, endpoints: [a:1], extProcAddress: 'b:1'}}\n": (
        ":5: pools[1].name: a second pool named 'x'; give each pool a name of its own"
    ),
    f"{HEAD}pools:\n- {{name: x, endpoints: [a:1]}}\n- {{name: y, endpoints: [a:1]}}\n": (
        ":5: pools[1].extProcAddress: 127.0.0.1:9002 is also pools[0].extProcAddress, and each pool needs an ext_proc "
        "port of its own; write another port, or port 0 for any free port"
    ),
    f"{HEAD}{POOL}  extProcAddress: 0.0.0.0:9090\n": (
        ":5: pools[0].extProcAddress: 0.0.0.0:9090 is also admin.address, and the ext_proc port "
        "and the admin port must differ; write another port, or port 0 for any free port"
    ),
    f"{HEAD}{POOL}admin: {{address: 127.0.0.1:9002}}\n": (
        ":5: admin.address: 127.0.0.1:9002 is also pools[0].extProcAddress, and the ext_proc port "
        "and the admin port must differ; write another port, or port 0 for any free port"
    ),
    f"{HEAD}pools:\n- endpoints: [127.0.0.1:9090]\n": (
        ":4: pools[0].endpoints[0]: 127.0.0.1:9090 is the agent's admin.address; write the address of a model server"
    ),
    f"{HEAD}admin: {{address: '0.0.0.0:9090', insecure: true}}\npools:\n- endpoints: [127.0.0.1:9090]\n": (
        ":5: pools[0].endpoints[0]: 127.0.0.1:9090 is the agent's admin.address; write the address of a model server"
    ),
    # empty entries
    f"{HEAD}pools:\n-\n": ":4: pools[0]: an empty entry; write its value, or remove its '-'",
    f"{HEAD}pools:\n- endpoints:\n  - a:1\n  -\n": (
        ":6: pools[0].endpoints[1]: an empty entry; write its value, or remove its '-'"
    ),
    f"{HEAD}plugins: [~]\n": ":3: plugins[0]: an empty entry; write its value, or remove its '-'",
    # digits outside ASCII are not digits, and control characters are escaped
    f"{HEAD}prefillRate: {{fixed: ٣٣}}\nreload: {{interval: ٣s}}\n": [
        ":3: prefillRate.fixed: '٣٣' is not a number; write a number from 1 to 1000000000",
        ":4: reload.interval: '٣s' is not a duration; write a number with its unit, such as 500ms or 2m",
    ],
    f'{HEAD}scrape: {{"a\\n\\x1b[31m": 1}}\n': (
        r":3: scrape.a\n\x1b[31m: unknown key; "
        "valid values: budget, healthInterval, histograms, interval, maxPageBytes, modelsInterval, path, timeout"
    ),
    # the EPP part
    f"{HEAD}featureGates: [flowControl=no]\n": (
        ":3: featureGates[0]: 'flowControl=no' is not valid; write flowControl or flowControl=false"
    ),
    f'{HEAD}plugins:\n- type: metrics-data-source\n  parameters: {{path: "/m HTTP/1.1\\r\\nX: y"}}\n': (
        r":5: plugins[0].parameters.path: '/m HTTP/1.1\r\nX: y' is not a path; "
        "write it with its first slash, such as /metrics"
    ),
    f"{HEAD}plugins:\n- type: core-metrics-extractor\n  parameters: {{defaultEngine: vlm}}\n": (
        ":5: plugins[0].parameters.defaultEngine: 'vlm' is not an engine; did you mean 'vllm'?"
    ),
    f"{HEAD}plugins: [{{type: metrics-data-source}}, {{type: metrics-data-source, name: b}}]\n"
    "dataLayer:\n  sources:\n  - {pluginRef: metrics-data-source, interval: 1s}\n  - {pluginRef: b, interval: 2s}\n": (
        ":7: dataLayer.sources[1].interval: differs from dataLayer.sources[0].interval on line 6, which sets the same; "
        "keep one of them"
    ),
    f"{HEAD}{QUEUE}dataLayer:\n  sources:\n  - {{pluginRef: queue-scorer, interval: 1s}}\n": (
        ":6: dataLayer.sources[0].pluginRef: queue-scorer is not a source; write the name of one"
    ),
    f"{HEAD}featureGates: [HAPopulateNonLeaderDatastore]\n": (
        ":3: featureGates[0]: HAPopulateNonLeaderDatastore is not supported yet; remove it"
    ),
    f"{HEAD}featureGates: [flowcontrol]\n": (
        ":3: featureGates[0]: 'flowcontrol' is not a feature gate; did you mean 'flowControl'?"
    ),
    f"{HEAD}dataLayer: {{discovery: {{pluginRef: x}}}}\n": (":3: dataLayer.discovery: is not supported yet; remove it"),
    f"{HEAD}plugins: [{{type: queue-scorr}}]\n": (
        ":3: plugins[0].type: 'queue-scorr' is not a plugin type; did you mean 'queue-scorer'?"
    ),
    f"{HEAD}plugins: [{{name: x}}]\n": ":3: plugins[0].type: missing; write the plugin's type, such as queue-scorer",
    f"{HEAD}plugins:\n- type: session-affinity-scorer\n": (
        ":4: plugins[0].type: session-affinity-scorer is not supported yet; remove it"
    ),
    f"{HEAD}plugins:\n- type: queue-scorer\n- type: queue-scorer\n": (
        ":5: plugins[1]: a second plugin named 'queue-scorer'; the first is on line 4; set the name of one of them"
    ),
    f"{HEAD}plugins:\n- type: queue-scorer\n  parameters:\n    depth: 3\n": (
        ":6: plugins[0].parameters.depth: is not a parameter here: it takes no parameters"
    ),
    f"{HEAD}plugins:\n- type: prefix-cache-affinity-filter\n  parameters: {{affinityThreshold: 2}}\n": (
        ":5: plugins[0].parameters.affinityThreshold: is 2.0: write a number from 0 to 1"
    ),
    f"{HEAD}plugins:\n- type: max-score-picker\n  parameters: {{maxNumOfEndpoints: 3}}\n": (
        ":5: plugins[0].parameters.maxNumOfEndpoints: one endpoint is picked; write 1 or leave it out"
    ),
    f"{HEAD}plugins:\n- type: single-profile-handler\n  parameters: {{x: 3}}\n": (
        ":5: plugins[0].parameters.x: single-profile-handler has no parameters; remove it"
    ),
    **{
        f"{HEAD}plugins:\n- type: core-metrics-extractor\n  parameters:\n    engineConfigs:\n    - {entry}\n": (
            f":7: plugins[0].parameters.engineConfigs[0]{key}: {what}"
        )
        for entry, key, what in [
            ("{name: mine}", "", "an engine without metrics; write at least queuedRequestsSpec"),
            ("{queuedRequestsSpec: q}", ".name", "missing; write the engine's name, such as my-server"),
            ("{name: auto, queuedRequestsSpec: q}", ".name", "'auto' is reserved; write another name"),
            ("{name: m, queuedRequestsSpec: q, kvSpec: x}", ".kvSpec", "unknown key; did you mean 'kvUsageSpec'?"),
            (
                "{name: m, queuedRequestsSpec: [q]}",
                ".queuedRequestsSpec",
                "a list is not text; write a metric, such as my_queue_length",
            ),
            (
                "{name: m, queuedRequestsSpec: 'my queue'}",
                ".queuedRequestsSpec",
                f"'my queue' is not a metric name; {EXAMPLE}",
            ),
            (
                "{name: m, kvUsageSpec: 'kv{a=b'}",
                ".kvUsageSpec",
                "the labels of kv have no closing brace; write kv{label=value}",
            ),
            ("{name: m, kvUsageSpec: 'kv{}'}", ".kvUsageSpec", "kv{} has no label; write kv"),
            (
                "{name: m, kvUsageSpec: 'kv{a}'}",
                ".kvUsageSpec",
                "'a' is not a label of kv; write label=value, separated by commas",
            ),
            ("{name: m, kvUsageSpec: 'kv{a=b,a=c}'}", ".kvUsageSpec", "duplicate label a of kv; keep one"),
            (
                "{name: m, kvUsageSpec: 'kv{a-b=c}'}",
                ".kvUsageSpec",
                "'a-b' is not a label name; write letters, digits and _",
            ),
            (
                "{name: m, kvUsageSpec: kv, cacheBlockSizeLabelName: page_size}",
                ".cacheBlockSizeLabelName",
                "needs cacheInfoSpec; add it, or remove this key",
            ),
            (
                "{name: m, cacheInfoSpec: info, cacheNumBlocksLabelName: num-blocks}",
                ".cacheNumBlocksLabelName",
                "'num-blocks' is not a label name; write letters, digits and _",
            ),
            (
                "{name: m, customMetrics: [{attributeKey: prompt_token, metricSpec: x}]}",
                ".customMetrics[0].attributeKey",
                "'prompt_token' is not a numeric signal; did you mean 'prompt_tokens'?",
            ),
        ]
    },
    f"{HEAD}plugins:\n- type: core-metrics-extractor\n  parameters:\n    engineConfigs:\n"
    "    - {name: m, queuedRequestsSpec: q}\n    - {name: m, queuedRequestsSpec: q}\n": (
        ":8: plugins[0].parameters.engineConfigs[1].name: a second engine named 'm'; give it another name"
    ),
    f"{HEAD}plugins:\n- type: core-metrics-extractor\n  parameters:\n    engineConfigs: 5\n": (
        ":6: plugins[0].parameters.engineConfigs: a number where a list is expected; begin each entry with '- '"
    ),
    f"{HEAD}plugins:\n- type: core-metrics-extractor\n  parameters: {{engineLabelKey: 'a b'}}\n": (
        ":5: plugins[0].parameters.engineLabelKey: 'a b' is not a label key; "
        "write NAME, or PREFIX/NAME with a DNS prefix"
    ),
    f"{HEAD}pools:\n- endpoints:\n  - address: 10.0.0.1:8000\n    labels: {{llm-d.ai/engine-type: sglan}}\n": (
        ":6: pools[0].endpoints[0].labels: 'sglan', the value of llm-d.ai/engine-type, is not an engine; "
        "did you mean 'sglang'?"
    ),
    f"{HEAD}{QUEUE}schedulingProfiles:\n- name: x\n  plugins: [{{pluginRef: queue-scorrer}}]\n": (
        ":6: schedulingProfiles[0].plugins[0].pluginRef: 'queue-scorrer' is not an entry of plugins; "
        "did you mean 'queue-scorer'?"
    ),
    f"{HEAD}{QUEUE}schedulingProfiles:\n- name: x\n  plugins: [{{pluginRef: queue-scorer, weight: -1}}]\n": (
        ":6: schedulingProfiles[0].plugins[0].weight: -1 is out of range; write a number from 0 to 1000000"
    ),
    f"{HEAD}{QUEUE}schedulingProfiles:\n- name: x\n  plugins: [{{pluginRef: queue-scorer, wait: 1}}]\n": (
        ":6: schedulingProfiles[0].plugins[0].wait: unknown key; did you mean 'weight'?"
    ),
    f"{HEAD}{QUEUE}schedulingProfiles:\n- plugins: [{{pluginRef: queue-scorer}}]\n": (
        ":5: schedulingProfiles[0].name: missing; write the profile's name, such as default"
    ),
    f"{HEAD}{QUEUE}schedulingProfiles:\n- name: x\n  plugins: []\n": (
        ":5: schedulingProfiles[0]: a profile without scorers; add the pluginRef of at least one"
    ),
    f"{HEAD}{QUEUE}schedulingProfiles:\n"
    "- {name: x, plugins: [{pluginRef: queue-scorer}]}\n- {name: x, plugins: [{pluginRef: queue-scorer}]}\n": (
        ":6: schedulingProfiles[1].name: a second profile named 'x'; give it another name"
    ),
    f"{HEAD}{QUEUE}schedulingProfiles:\n- name: x\n  plugins:\n"
    "  - {pluginRef: queue-scorer}\n  - {pluginRef: queue-scorer}\n": (
        ":8: schedulingProfiles[0].plugins[1]: 'queue-scorer' is listed twice in this profile; keep one"
    ),
    f"{HEAD}{QUEUE}{POOL}schedulingProfiles:\n"
    "- {name: x, plugins: [{pluginRef: queue-scorer}]}\n- {name: y, plugins: [{pluginRef: queue-scorer}]}\n": (
        ":5: pools[0].profile: missing; the file has several profiles: write one of x, y"
    ),
    f"{HEAD}plugins:\n- type: approx-prefix-cache-producer\n  parameters: {{blockSizeTokens: 128}}\n"
    "prefixIndex:\n  blockTokens: 64\n": (
        ":7: prefixIndex.blockTokens: also set by plugins[0].parameters.blockSizeTokens on line 5; keep one of them"
    ),
    f"{HEAD}{QUEUE}requestHandler: {{parsers: [{{pluginRef: queue-scorer}}]}}\n": (
        ":4: requestHandler.parsers[0].pluginRef: queue-scorer is not a parser; write the name of one"
    ),
}


@pytest.mark.parametrize(("text", "expected"), BAD.items(), ids=[str(number) for number in range(len(BAD))])
def test_a_bad_file_is_refused_with_the_line_and_what_to_write(text: str, expected: str | list[str]) -> None:
    assert complaints(text) == ([expected] if isinstance(expected, str) else expected)


def test_all_problems_are_reported_in_the_order_of_the_file() -> None:
    text = f"{HEAD}scrape:\n  interval: 1\npools:\n- endpoints: [x]\n  profil: a\nadmin: {{adress: 'a:1'}}\n"
    assert [line.split(": ")[0:2] for line in complaints(text)] == [
        [":4", "scrape.interval"],
        [":6", "pools[0].endpoints[0].address"],
        [":7", "pools[0].profil"],
        [":8", "admin.adress"],
    ]


def test_a_problem_of_a_list_names_the_entry_of_the_file_also_behind_an_invalid_one() -> None:
    text = (
        f"{HEAD}{POOL}objectives:\n- {{name: a, priority: x}}\n- {{name: b, priority: 1, pool: c}}\n"
        "flowControl:\n  priorityBands:\n  - {priority: x}\n  - {priority: 1}\n"
        "  - {priority: 1, fairnessPolicyRef: x}\n"
    )
    bands = "flowControl.priorityBands"
    assert [line.split(";")[0] for line in complaints(text)] == [
        ":6: objectives[0].priority: 'x' is not a number",
        ":7: objectives[1].pool: there is no pool 'c'",
        f":10: {bands}[0].priority: 'x' is not a number",
        f":12: {bands}[2].priority: a second band of priority 1, the first is {bands}[1]",
        f":12: {bands}[2].fairnessPolicyRef: 'x' is not a fairness policy",
    ]


def test_a_file_that_is_too_large_is_not_read() -> None:
    assert complaints("#" * (MAX_BYTES + 1)) == [": the file is larger than 256 KiB; split the pools between agents"]


def test_nested_aliases_are_not_expanded() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    assert complaints(bomb) == [":2: aliases are not supported; write out the value of *a"]


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "none.yaml", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
    ):
        with pytest.raises(BadConfig) as refused:
            load(path, VOCABULARY)
        assert refused.value.lines() == [f"{path}: {reason}"]


def test_a_file_that_is_not_utf_8_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(f"{HEAD}# caf".encode() + b"\xe9\n")
    with pytest.raises(BadConfig) as refused:
        load(path, VOCABULARY)
    assert refused.value.lines() == [f"{path}:3: not UTF-8; save the file as UTF-8"]


def test_a_huge_file_is_refused_without_reading_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(BadConfig, match="larger than 256 KiB"):
        load(path, VOCABULARY)


LISTENERS = [
    "{address: 'localhost:9090'}",
    "{address: '127.8.9.1:9090'}",
    "{address: '[::1]:9090', auth: {mode: kubernetes}}",
    "{address: '0.0.0.0:9090', insecure: true}",
    "{address: '0.0.0.0:9090', tls: {selfSigned: true}, auth: {mode: kubernetes}}",
    "{address: '0.0.0.0:9090', tls: {certFile: a, keyFile: b}, auth: {mode: tokenFile, tokenFile: t}}",
    "{address: '0.0.0.0:9090', tls: {selfSigned: true, clientCaFile: ca}}",
]


@pytest.mark.parametrize("admin", LISTENERS)
def test_an_admin_address_is_accepted_on_loopback_or_with_tls_and_authentication(admin: str) -> None:
    assert parse(f"{HEAD}{POOL}admin: {admin}\n", "x", VOCABULARY).admin.address.endswith(":9090")
