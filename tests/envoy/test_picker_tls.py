"""A real Envoy connects to the picker with TLS, as `igw render` configures it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.__main__ import main
from agent.config.tls import TlsConfig
from agent.envoy.process import validate
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickerTls, PickMode, bootstrap
from agent.events import Event
from agent.events.tls import CertificateLoaded, HandshakeFailed
from agent.serve.tls.server import PICKER, ServerTls
from tests.envoy.gateway import MODES, Gateway, chat, run_gateway
from tests.fakes.clock import ManualClock
from tests.fakes.secret_mount import SecretMount
from tests.scrape.authority import Authority
from tests.waiting import eventually, found

HANDSHAKES = "cluster.pool-picker.ssl.handshake"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class PickerPort:
    """The TLS of a picker port, and what it has reported."""

    def __init__(self, **options: Any) -> None:
        self.events: list[Event] = []
        self.tls = ServerTls(TlsConfig(**options), PICKER, hook=self.events.append, clock=ManualClock())
        self.tls.load()

    def failures(self) -> set[str]:
        return {event.reason for event in self.events if isinstance(event, HandshakeFailed)}


def signed(authority: Authority, hosts: str = "IP:127.0.0.1", **options: Any) -> PickerPort:
    certificate, key = authority.sign("igw", hosts)
    return PickerPort(cert_file=str(certificate), key_file=str(key), **options)


async def post(gateway: Gateway, mode: PickMode = PickMode.BUFFERED) -> int:
    async with gateway.client.post(gateway.url(mode), json=chat()) as response:
        await response.read()
        return response.status


async def test_a_self_signed_picker_is_accepted_and_gets_the_access_log_over_tls(tmp_path: Path) -> None:
    port = PickerPort(self_signed=True)
    async with run_gateway(tmp_path, tls=port.tls, settings={"picker_tls": PickerTls()}) as gateway:
        for mode in MODES:
            assert await post(gateway, mode) == 200
        assert await gateway.counter(HANDSHAKES) >= 1
        await eventually(lambda: len(gateway.pool.log) == len(MODES))
        assert gateway.pool.picks == len(MODES)
        assert port.failures() == set()


@pytest.mark.parametrize(("hosts", "name"), [("IP:127.0.0.1", ""), ("DNS:igw.inference.svc", "igw.inference.svc")])
async def test_a_picker_of_a_ca_is_verified_by_its_address_or_its_name(
    tmp_path: Path, authority: Authority, hosts: str, name: str
) -> None:
    port = signed(authority, hosts, min_version="TLSv1.3")
    tls = PickerTls(ca_file=str(authority.file), server_name=name)
    async with run_gateway(tmp_path, tls=port.tls, settings={"picker_tls": tls}) as gateway:
        assert await post(gateway) == 200
        assert port.failures() == set()


async def test_a_picker_of_another_ca_or_with_another_name_gets_no_request(
    tmp_path: Path, authority: Authority
) -> None:
    for number, (hosts, ca, wrong) in enumerate(
        [("IP:127.0.0.1", Authority(tmp_path, "other").file, "error"), ("DNS:other.example", authority.file, "san")]
    ):
        port = signed(authority, hosts)
        tls = PickerTls(ca_file=str(ca))
        settings = {"picker_tls": tls, "picker_retries": 0}
        async with run_gateway(tmp_path / str(number), tls=port.tls, settings=settings) as gateway:
            assert await post(gateway) == 503
            assert gateway.pool.picks == 0
            assert await gateway.counter(f"cluster.pool-picker.ssl.fail_verify_{wrong}") >= 1
            assert await eventually(port.failures) == {"not_trusted"}


async def test_envoy_presents_the_client_certificate_that_the_picker_requires(
    tmp_path: Path, authority: Authority
) -> None:
    port = signed(authority, client_ca_file=str(authority.file))
    certificate, key = map(str, authority.sign("envoy"))
    tls = PickerTls(ca_file=str(authority.file), cert_file=certificate, key_file=key)
    async with run_gateway(tmp_path / "with", tls=port.tls, settings={"picker_tls": tls}) as gateway:
        assert await post(gateway) == 200
        assert port.failures() == set()
    settings = {"picker_tls": tls._replace(cert_file="", key_file=""), "picker_retries": 0}
    async with run_gateway(tmp_path / "without", tls=port.tls, settings=settings) as gateway:
        assert await post(gateway) == 503
        assert await eventually(port.failures) == {"no_client_certificate"}


async def test_no_request_fails_while_the_certificate_is_replaced(tmp_path: Path, authority: Authority) -> None:
    mount = SecretMount(tmp_path / "secret")
    mount.write_pair(authority.sign("zero"))
    port = PickerPort(cert_file=mount.path("tls.crt"), key_file=mount.path("tls.key"))
    settings = {"picker_tls": PickerTls(ca_file=str(authority.file))}
    async with run_gateway(tmp_path / "gateway", tls=port.tls, settings=settings) as gateway:
        statuses: list[int] = []
        replaced = asyncio.Event()

        async def traffic() -> None:
            while not replaced.is_set():
                statuses.append(await post(gateway))

        clients = [asyncio.create_task(traffic()) for _ in range(4)]
        await found(lambda: gateway.counter(HANDSHAKES))
        for number in range(3):
            before, handshakes = len(statuses), await gateway.counter(HANDSHAKES)
            mount.write_pair(authority.sign(f"number-{number}"))
            await port.tls.check()
            # Envoy keeps its connection for as long as it can; with these it opens new ones.
            for protocol in tuple(gateway.picker._listener.protocols):
                protocol.connection.goaway()
            await found(lambda: gateway.counter(HANDSHAKES), handshakes.__lt__)
            await eventually(lambda before=before: len(statuses) >= before + 20)  # type: ignore[misc]
        replaced.set()
        await asyncio.gather(*clients)
        assert set(statuses) == {200}
        assert await gateway.counter(HANDSHAKES) >= 4
        assert len([event for event in port.events if isinstance(event, CertificateLoaded)]) == 4
        assert port.failures() == set()


# -- the rendered configuration ----------------------------------------------------------------------------------------


def picker_cluster(host: str, tls: PickerTls | None) -> Any:
    pool = EnvoyPool("llama", ("10.0.0.1:8000",), f"{host}:9002")
    config = EnvoyConfig((pool,), (EnvoyListener("in", "127.0.0.1:0", "llama"),), picker_tls=tls)
    data = bootstrap(config)
    return data, data["static_resources"]["clusters"][1]


@pytest.mark.parametrize(
    ("host", "tls", "sni", "verified"),
    [
        ("igw.inference.svc", PickerTls(), "igw.inference.svc", None),
        ("igw.inference.svc", PickerTls("CA"), "igw.inference.svc", ("DNS", "igw.inference.svc")),
        ("igw.inference.svc", PickerTls("CA", "other.example"), "other.example", ("DNS", "other.example")),
        ("10.0.0.9", PickerTls("CA"), None, ("IP_ADDRESS", "10.0.0.9")),
        ("[fd00::9]", PickerTls("CA"), None, ("IP_ADDRESS", "fd00::9")),
    ],
)
def test_the_name_that_is_sent_and_verified_is_the_picker_s(
    authority: Authority, host: str, tls: PickerTls, sni: str | None, verified: tuple[str, str] | None
) -> None:
    data, cluster = picker_cluster(host, tls._replace(ca_file=tls.ca_file and str(authority.file)))
    context = cluster["transport_socket"]["typed_config"]
    assert context.get("sni") == sni
    common = context["common_tls_context"]
    assert common["alpn_protocols"] == ["h2"]
    names = common.get("validation_context", {}).get("match_typed_subject_alt_names", [])
    assert [(name["san_type"], name["matcher"]["exact"]) for name in names] == ([verified] if verified else [])
    assert validate(data) == ""


def test_without_tls_the_picker_s_cluster_is_plaintext() -> None:
    assert "transport_socket" not in picker_cluster("10.0.0.9", None)[1]


# -- `igw render` ------------------------------------------------------------------------------------------------------

FILES = "certFile: /c.pem, keyFile: /c.key"


def rendered(tmp_path: Path, tls: str, envoy: str = "") -> int:
    path = tmp_path / "igw.yaml"
    path.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\npools: [{endpoints: ['10.0.0.1:8000']}]\n"
        f"extProc: {{tls: {{{tls}}}}}\nenvoy: {{{envoy}}}\n"
    )
    return main(["render", "--config", str(path)])


def test_the_command_renders_the_options_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = "pickerCaFile: /ca.pem, pickerServerName: igw.example, pickerCertFile: /e.pem, pickerKeyFile: /e.key"
    assert rendered(tmp_path, f"{FILES}, clientCaFile: /ca.pem", names) == 0
    out, errors = capsys.readouterr()
    _, picker = yaml.safe_load(out)["static_resources"]["clusters"]
    context = picker["transport_socket"]["typed_config"]
    assert context["sni"] == "igw.example"
    common = context["common_tls_context"]
    assert common["validation_context"]["trusted_ca"] == {"filename": "/ca.pem"}
    assert common["tls_certificates"][0]["private_key"] == {"filename": "/e.key"}
    assert errors == ""


def test_the_command_reports_what_envoy_would_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rendered(tmp_path, f"{FILES}, clientCaFile: /ca.pem") == 2
    assert "the picker requires a certificate of Envoy: set envoy.pickerCertFile" in capsys.readouterr().err
    assert rendered(tmp_path, FILES) == 0
    assert "this Envoy accepts every certificate of a picker; set envoy.pickerCaFile" in capsys.readouterr().err
    assert rendered(tmp_path, "selfSigned: true") == 0
    assert capsys.readouterr().err == ""
