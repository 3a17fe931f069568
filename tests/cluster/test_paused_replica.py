"""Two agents as processes: one is paused, and does not write when it goes on."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from tests.cluster.access import create_service_account, grant, kubeconfig_of
from tests.cluster.control_plane import ControlPlane
from tests.cluster.leases import RULES, create_released, lease_path
from tests.processes import Process, Processes
from tests.waiting import until

SECONDS = 5
HOLDS = r"this replica holds the Lease"
READ = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}


def start(processes: Processes, folder: Path, kubeconfig: Path, namespace: str) -> Process:
    folder.mkdir()
    pool = {"selector": {"app": "none"}, "targetPorts": [8000], "extProcAddress": "127.0.0.1:0"}
    lease = {"duration": f"{SECONDS}s"}
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "pools": [pool],
        "kubernetes": {"kubeconfig": str(kubeconfig), "namespace": namespace, "lease": lease},
        "admin": {"address": "127.0.0.1:0"},
    }
    path = folder / "igw.yaml"
    path.write_text(json.dumps(document))
    return processes.start([".venv/bin/igw", "run", "--config", path])


def times(process: Process, pattern: str) -> int:
    return len(re.findall(pattern, process.output()))


def test_a_paused_replica_loses_the_lease_and_the_other_releases_it_at_its_end(
    control_plane: ControlPlane, namespace: str, processes: Processes, tmp_path: Path
) -> None:
    api = control_plane.api
    account = create_service_account(api, namespace, "agent")
    grant(api, account, [*RULES, READ], namespace)
    kubeconfig = kubeconfig_of(control_plane, account)
    create_released(api, namespace)
    first = start(processes, tmp_path / "first", kubeconfig, namespace)
    first.wait_for(HOLDS)
    second = start(processes, tmp_path / "second", kubeconfig, namespace)
    second.wait_for(r"holds the Lease \S+: this replica writes no Kubernetes Events")
    first.signal(signal.SIGSTOP)
    second.wait_for(HOLDS)
    mark = control_plane.audit.mark()
    first.signal(signal.SIGCONT)
    first.wait_for(r"this replica writes no Kubernetes Events")
    assert times(first, HOLDS) == 1
    holder = api.get(lease_path(namespace))["spec"]["holderIdentity"]
    assert second.stop() == 0
    until(lambda: times(first, HOLDS) == 2, what="the first replica as the holder again")
    spec = api.get(lease_path(namespace))["spec"]
    assert spec["holderIdentity"] != holder
    refused = [record for record in control_plane.audit.records(account.user, since=mark) if record.status == 409]
    assert len(refused) <= 1  # what the paused replica sent with the version that it knew
