"""The ports of a running agent with TLS: `igw run` as a process, and the replacement of its certificates."""

from __future__ import annotations

import signal
import ssl
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest

from tests.fakes.secret_mount import SecretMount
from tests.processes import Processes
from tests.scrape.authority import Authority
from tests.waiting import until

RUN = [sys.executable, "-m", "agent", "run", "--config"]


def write(path: Path, tls: str, admin_tls: str = "", interval: str = "1h") -> Path:
    path.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        f"admin: {{address: '127.0.0.1:0'{admin_tls and f', tls: {admin_tls}'}}}\nreload: {{interval: {interval}}}\n"
        f"pools:\n- extProcAddress: 127.0.0.1:0\n  endpoints: ['127.0.0.1:1']\n"
        f"extProc: {{startTimeout: 0s, tls: {tls}}}\n"
    )
    return path


def page(url: str, authority: Authority, path: str = "/metrics") -> str:
    context = ssl.create_default_context(cafile=str(authority.file))
    with urllib.request.urlopen(url + path, timeout=20, context=context) as answer:
        return answer.read().decode()


def test_both_ports_serve_their_certificates_and_replace_them_on_a_signal(processes: Processes, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mount = SecretMount(tmp_path / "secret")
    mount.write_pair(authority.sign("one"))
    tls = f"{{certFile: {mount.path('tls.crt')}, keyFile: {mount.path('tls.key')}}}"
    agent = processes.start([*RUN, write(tmp_path / "file.yaml", tls, tls)])
    admin = agent.wait_for(r"admin: (https://127\.0\.0\.1:\d+)")[1]
    picker = agent.wait_for(r"ext_proc on (127\.0\.0\.1:\d+)")[1]
    assert 'igw_tls_certificate_loads_total{port="admin",result="ok"} 1.0' in page(admin, authority)
    host, port = picker.rsplit(":", 1)
    first = ssl.get_server_certificate((host, int(port)), ca_certs=str(authority.file))
    with grpc.secure_channel(picker, grpc.ssl_channel_credentials(authority.file.read_bytes())) as channel:
        grpc.channel_ready_future(channel).result(20)
        mount.write_pair(authority.sign("two"))
        agent.signal(signal.SIGHUP)
        loaded = 'igw_tls_certificate_loads_total{port="%s",result="ok"} 2.0'
        for name in ("admin", "ext_proc"):
            until(lambda name=name: loaded % name in page(admin, authority))  # type: ignore[misc]
        health = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)
        assert health.startswith(b"\x08")
    assert ssl.get_server_certificate((host, int(port)), ca_certs=str(authority.file)) != first
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 0
    assert "Traceback" not in agent.output()


def test_files_that_are_wrong_are_reported_once_and_the_old_certificate_is_served(
    processes: Processes, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    mount = SecretMount(tmp_path / "secret")
    one, two = authority.sign("one"), authority.sign("two")
    mount.write_pair(one)
    tls = f"{{certFile: {mount.path('tls.crt')}, keyFile: {mount.path('tls.key')}}}"
    agent = processes.start([*RUN, write(tmp_path / "file.yaml", "{selfSigned: true}", tls, interval="100ms")])
    admin = agent.wait_for(r"admin: (https://127\.0\.0\.1:\d+)")[1]
    mount.write_pair((one[0], two[1]))
    agent.wait_for(
        "certificate not replaced, the old one stays: admin.tls: .*the key is not that of the first certificate"
    )
    assert 'igw_tls_certificate_loads_total{port="admin",result="failed"} 1.0' in page(admin, authority)
    mount.write_pair(two)
    agent.wait_for(r"(?s)serves TLS with [^\n]*tls.crt.*serves TLS with [^\n]*tls.crt")
    assert agent.output().count("certificate not replaced") == 1


@pytest.mark.parametrize(
    ("tls", "problem"),
    [
        ("{certFile: /absent.crt, keyFile: /absent.key}", "igw: extProc.tls: /absent.crt cannot be read: No such file"),
        ("{certFile: c.crt}", "extProc.tls.certFile: needs keyFile; add it"),
    ],
)
def test_an_agent_without_its_certificate_does_not_start(
    processes: Processes, tmp_path: Path, tls: str, problem: str
) -> None:
    agent = processes.start([*RUN, write(tmp_path / "file.yaml", tls)])
    assert agent.wait() == 1
    assert problem in agent.output()
    assert "Traceback" not in agent.output()
