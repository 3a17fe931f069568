"""Readings of each engine from recorded pages, and from damaged ones."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.engines import engine
from agent.engines.mapping import Extraction, Extractor, LayoutCache
from agent.engines.table import REFUSALS
from agent.exposition.page import FULL_SCAN_PAGES, MAX_SERIES, PageRefused
from agent.scrape.reasons import REASONS
from agent.signals import (
    BLOCK_SIZE,
    BLOCKS,
    FIRST_TOKEN_SECONDS,
    KV_USAGE,
    LORA_MAX,
    LORA_RUNNING,
    PREFIX_HITS,
    PREFIX_QUERIES,
    PROMPT_TOKENS,
    RUNNING,
    START_TIME,
    WAITING,
    WAITING_CAPACITY,
)

PAGES = Path(__file__).resolve().parents[1] / "recordings" / "pages" / "vllm"
BASE = (PAGES / "load_base_seqs4_blocks100.prom").read_bytes()
LORAS = (PAGES / "load_three_loras_max2.prom").read_bytes()


def read(page: bytes) -> Extraction:
    return Extractor(engine("vllm")).extract(page, whole=True)


def read_or_refusal(page: bytes) -> Extraction | PageRefused:
    try:
        return read(page)
    except PageRefused as refused:
        return refused


def line(name: str) -> bytes:
    found = re.search(rb"^" + name.encode() + rb"[{ ].*$", BASE, re.MULTILINE)
    assert found
    return found[0]


def changed(name: str, value: str, page: bytes = BASE) -> bytes:
    return re.sub(rb"^(" + name.encode() + rb"\{.*\}) .*$", rb"\1 " + value.encode(), page, flags=re.MULTILINE)


def samples_by_the_oracle(page: bytes, name: str) -> list[float]:
    """The values of this name; ValueError for a page that cannot be parsed, or has a series twice."""
    samples = [
        sample
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name == name
    ]
    if len({frozenset(pair for pair in sample.labels.items() if pair[1]) for sample in samples}) < len(samples):
        raise ValueError("a label without text makes no other series")
    return [sample.value for sample in samples]


@pytest.mark.parametrize("name", [path.stem for path in sorted(PAGES.glob("[!r]*.prom"))])
def test_a_recorded_page_is_read_as_prometheus_client_reads_it(name: str) -> None:
    page = (PAGES / f"{name}.prom").read_bytes()
    readings = read(page).readings
    for signal, sample in {RUNNING: "vllm:num_requests_running", WAITING: "vllm:num_requests_waiting"}.items():
        assert readings[signal] == sum(samples_by_the_oracle(page, sample))
    assert [readings[START_TIME]] == samples_by_the_oracle(page, "process_start_time_seconds")


def test_two_engines_behind_one_port_are_summed_and_their_cache_usages_weighted_by_blocks() -> None:
    readings = read((PAGES / "derived_two_engines.prom").read_bytes()).readings
    assert readings[RUNNING] == 4 + 2
    assert readings[WAITING] == 20 + 5
    assert readings[BLOCKS] == 100 + 300
    assert readings[BLOCK_SIZE] == 32
    assert readings[KV_USAGE] == pytest.approx((0.797979797979798 * 100 + 0.2 * 300) / 400)


def test_two_caches_of_unknown_size_have_equal_weights() -> None:
    page = re.sub(rb"vllm:cache_config_info\{.*\n", b"", (PAGES / "derived_two_engines.prom").read_bytes())
    assert read(page).readings[KV_USAGE] == pytest.approx((0.797979797979798 + 0.2) / 2)


def test_a_block_size_that_differs_between_engines_is_refused() -> None:
    page = (PAGES / "derived_two_engines.prom").read_bytes()
    first, _, second = page.rpartition(b',block_size="32"')
    extraction = read(first + b',block_size="16"' + second)
    assert BLOCK_SIZE not in extraction.readings
    assert (BLOCK_SIZE, "disagreement") in [(refusal.signal, refusal.reason) for refusal in extraction.refused]


def test_the_old_names_are_read_where_the_new_ones_are_missing() -> None:
    assert read((PAGES / "derived_v0_names.prom").read_bytes()) == read(BASE)


def test_the_new_name_is_used_where_a_page_has_both() -> None:
    old = line("vllm:kv_cache_usage_perc").replace(b"kv_cache", b"gpu_cache").rpartition(b" ")[0] + b" 0.1\n"
    assert read(BASE + old).readings[KV_USAGE] == pytest.approx(0.797979797979798)


def test_the_newest_row_of_adapters_is_used() -> None:
    extraction = read(LORAS)
    assert extraction.readings[LORA_RUNNING] == frozenset({"lora-a", "lora-b"})
    assert extraction.readings[LORA_MAX] == 2
    older = re.sub(rb'(running_lora_adapters="",waiting_lora_adapters=""\}) .*', rb"\1 1.9e+09", LORAS)
    assert read(older).readings[LORA_RUNNING] == frozenset()


def test_adapters_that_are_not_on_the_page_are_missing_and_not_an_empty_set() -> None:
    extraction = read((PAGES / "plain_idle.prom").read_bytes())
    assert LORA_RUNNING not in extraction.readings
    assert LORA_RUNNING in extraction.missing


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("NaN", "not_finite"),
        ("+Inf", "not_finite"),
        ("-Inf", "not_finite"),
        ("-1", "out_of_range"),
        ("1.5", "out_of_range"),
    ],
)
def test_a_value_out_of_range_is_refused_and_the_rest_of_the_page_is_read(value: str, reason: str) -> None:
    extraction = read(changed("vllm:kv_cache_usage_perc", value))
    assert KV_USAGE not in extraction.readings
    assert [(refusal.signal, refusal.reason) for refusal in extraction.refused] == [(KV_USAGE, reason)]
    assert extraction.readings[WAITING] == 20


@pytest.mark.parametrize("value", ["", "four", "4_0", "0x4", "4 5 6", "4.0.0", "--4", "1e", "."])
def test_a_wanted_line_that_cannot_be_parsed_only_affects_its_signal(value: str) -> None:
    extraction = read(changed("vllm:num_requests_running", value))
    assert RUNNING not in extraction.readings
    assert [(refusal.signal, refusal.reason) for refusal in extraction.refused] == [(RUNNING, "bad_line")]
    assert extraction.readings[WAITING] == 20


@pytest.mark.parametrize(
    "value", ["4", "4.0", "+4", "4e0", ".4e1", "4.", "4 1795344417330", "4.0\t1795344417330", "  4  "]
)
def test_a_value_is_read_as_prometheus_reads_it(value: str) -> None:
    assert read(changed("vllm:num_requests_running", value)).readings[RUNNING] == 4


def test_one_bad_series_of_two_makes_the_sum_refused() -> None:
    page = (PAGES / "derived_two_engines.prom").read_bytes()
    spoilt = page.replace(
        b'vllm:num_requests_waiting{engine="1",model_name="tiny"} 5.0',
        b'vllm:num_requests_waiting{engine="1",model_name="tiny"} x',
    )
    assert spoilt != page
    assert WAITING not in read(spoilt).readings


def test_a_duplicate_series_is_refused_and_not_summed() -> None:
    extraction = read(BASE + line("vllm:num_requests_waiting") + b"\n")
    assert WAITING not in extraction.readings
    assert [(refusal.signal, refusal.reason) for refusal in extraction.refused] == [(WAITING, "duplicate_series")]


def test_an_empty_label_does_not_make_another_series() -> None:
    extraction = read(BASE + line("vllm:num_requests_waiting").replace(b"}", b',a=""}') + b"\n")
    assert [(refusal.signal, refusal.reason) for refusal in extraction.refused] == [(WAITING, "duplicate_series")]


@pytest.mark.parametrize("behind", [b'"} 1', b'" , } 1', b'",b="c"} 1', b'" b="c"} 1'])
def test_a_line_inside_a_label_value_is_not_a_sample(behind: bytes) -> None:
    extraction = read(BASE + b'other{text="a \\" b\nvllm:num_requests_waiting 7\n' + behind + b"\n")
    assert [(refusal.signal, refusal.reason) for refusal in extraction.refused] == [(WAITING, "bad_line")]
    assert extraction.readings[RUNNING] == 4


def test_a_label_value_without_an_end_only_affects_its_own_line() -> None:
    assert read(b'other{text="} 1\n' + BASE) == read(BASE)
    assert read(b'# HELP other{text="\n' + BASE) == read(BASE)


def test_series_of_one_sample_are_found_anywhere_on_the_page() -> None:
    page = BASE + b'vllm:num_requests_waiting{engine="7",model_name="tiny"} 2\n'
    assert read(page).readings[WAITING] == 22


@pytest.mark.parametrize(
    "text",
    [
        b'vllm:num_requests_waiting{engine="0",model_name="a} 7 \\" , { b"} 9',
        b'vllm:num_requests_waiting{engine="0",model_name="\\\\"} 9',
        b'vllm:num_requests_waiting { engine = "0" , model_name = "\\n" , } 9',
        b"vllm:num_requests_waiting 9",
        b"vllm:num_requests_waiting{} 9",
        b"  vllm:num_requests_waiting\t9\t17",
        'vllm:num_requests_waiting{model_name="h\u00e4\u00df\u4e2d"} 9'.encode(),
    ],
)
def test_labels_and_white_space_are_read_by_the_format(text: bytes) -> None:
    page = BASE.replace(line("vllm:num_requests_waiting"), text)
    assert read(page).readings[WAITING] == 9


def test_names_with_a_common_prefix_are_not_confused() -> None:
    page = BASE.replace(line("vllm:num_requests_waiting") + b"\n", b"")
    extraction = read(page)
    assert extraction.readings[WAITING_CAPACITY] == 20
    assert read(re.sub(rb"(?m)^vllm:num_requests_waiting_by.*\n", b"", page)).readings.get(WAITING) is None


def test_a_name_in_a_label_or_a_comment_is_not_a_sample() -> None:
    page = BASE + b'# vllm:num_requests_running 9\nother{text="\\nvllm:num_requests_running 9"} 1\n'
    assert read(page).readings[RUNNING] == 4


@pytest.mark.parametrize(
    ("page", "reason", "part"),
    [
        (b"<!doctype html><html><body>login</body></html>\n", "not_metrics", "is this the path of the metrics?"),
        (b'{"object":"list"}\n', "not_metrics", "is this the path of the metrics?"),
        (b'{"object":"list"}', "not_metrics", "is this the path of the metrics?"),
        (BASE.replace(b"tiny", b"\0", 1), "not_metrics", "zero bytes"),
        (BASE[:-1], "truncated", "the last line has no end"),
        (BASE[: len(BASE) // 2], "truncated", "the last line has no end"),
        (BASE.replace(b"vllm:", b"sglang:"), "wrong_engine", "this is a page of sglang, not of vllm"),
        (b"llamacpp:requests_processing 1\n", "wrong_engine", "this is a page of llamacpp, not of vllm"),
        (re.sub(rb"(?m)^.*vllm:.*\n", b"", BASE), "wrong_engine", "--disable-log-stats"),
        (b"# 404 not found\n", "not_metrics", "is this the path of the metrics?"),
        (b"# TYPE python_info gauge\npython_info 1\n", "wrong_engine", "no metrics of vllm"),
    ],
)
def test_a_page_that_cannot_be_valid_is_refused_with_a_detail_of_what_to_check(
    page: bytes, reason: str, part: str
) -> None:
    with pytest.raises(PageRefused) as refused:
        read(page)
    assert refused.value.reason == reason
    assert reason in REASONS
    assert part in refused.value.detail


NOT_A_SAMPLE = [
    b"",
    b"\n",
    b" \r\n\n",
    b"# HELP vllm:x x\n# TYPE vllm:x gauge\n",
    b"# TYPE sglang:x gauge\n",
    b"# EOF\n",
]


@pytest.mark.parametrize("page", NOT_A_SAMPLE)
@pytest.mark.parametrize("whole", [True, False])
def test_a_page_without_a_sample_is_read_and_reports_nothing(page: bytes, whole: bool) -> None:
    extractor = Extractor(engine("vllm"), histograms=[FIRST_TOKEN_SECONDS])
    assert extractor.extract(page, whole=whole) == Extraction({}, (), (), {FIRST_TOKEN_SECONDS: None})
    before = extractor.extract(BASE, whole=True)
    assert before.readings == read(BASE).readings
    assert extractor.extract(page, whole=whole).readings == {}
    assert extractor.extract(BASE, whole=True) == before


@pytest.mark.parametrize("other", [BASE.replace(b"vllm:", b"sglang:"), re.sub(rb"(?m)^.*vllm:.*\n", b"", BASE)])
def test_the_first_good_page_after_one_of_another_engine_is_read(other: bytes) -> None:
    extractor = Extractor(engine("vllm"))
    with pytest.raises(PageRefused):
        extractor.extract(other, whole=True)
    assert extractor.extract(BASE, whole=True).readings == read(BASE).readings


@pytest.mark.parametrize("name", ["vllm:num_requests_running", "vllm:prompt_tokens_total"])
def test_a_first_line_far_from_all_known_lines_is_seen_at_once(name: str) -> None:
    remembering = Extractor(engine("vllm"))
    remembering.extract(b"vllm:num_requests_waiting 1\n# end\n", whole=True)
    later = b"vllm:num_requests_waiting 1\n# end\n# HELP\n" + line(name) + b"\n"
    assert remembering.extract(later, whole=True) == read(later)


def cuts() -> list[int]:
    wanted = [
        found.start()
        for found in re.finditer(rb"\n(vllm:(num_requests|kv_cache|lora|cache_config|prompt)|process_start)", BASE)
    ]
    near = {at + offset for at in wanted for offset in range(-2, 160)}
    return sorted({cut for cut in near | set(range(0, len(BASE), 997)) if 0 <= cut < len(BASE)})


def test_a_page_cut_at_any_byte_never_gives_a_wrong_reading() -> None:
    whole = read(BASE).readings
    checked = 0
    for cut in cuts():
        try:
            readings = read(BASE[:cut]).readings
        except PageRefused:
            continue
        checked += 1
        # A cut after a line end leaves whole lines and cannot be detected: some of several series may be missing
        # (here those of finished requests). In a response such a cut violates its framing, and is refused.
        for signal, value in readings.items():
            if signal != "finished_requests":
                assert value == whole[signal], (cut, signal)
    assert checked > 10


def test_a_known_layout_gives_the_same_readings_as_a_full_scan() -> None:
    remembering = Extractor(engine("vllm"))
    pages = [
        BASE,
        LORAS,
        BASE,
        (PAGES / "plain_idle.prom").read_bytes(),
        (PAGES / "derived_two_engines.prom").read_bytes(),
    ]
    pages += [changed("vllm:num_requests_waiting", "1" * digits) for digits in range(1, 8)]
    pages += [changed("vllm:generation_tokens_total", "1" + "0" * digits) for digits in range(0, 12, 3)]
    pages += [changed("vllm:num_requests_waiting", value) for value in ("7", "NaN", "x", "7_0", "7 ", "7 17", "8")]
    pages += [BASE.replace(b'engine="0"', b'engine="10"'), BASE + b'vllm:num_requests_running{engine="9"} 1\n', BASE]
    for page in pages:
        assert remembering.extract(page, whole=True) == read(page)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:prompt_tokens_total"]),
            st.floats(0, 1) | st.integers(0, 1).map(float),
        ),
        max_size=8,
    )
)
def test_any_numbers_are_read_by_a_known_layout(changes: list[tuple[str, float]]) -> None:
    remembering = Extractor(engine("vllm"))
    page = BASE
    remembering.extract(page, whole=True)
    for name, value in changes:
        page = changed(name, repr(value), page)
        assert remembering.extract(page, whole=True) == read(page)


def test_a_series_that_replaces_another_line_is_seen_after_some_pages() -> None:
    remembering = Extractor(engine("vllm"))
    remembering.extract(BASE, whole=True)
    swapped = BASE.replace(line("process_cpu_seconds_total") + b"\n", b'vllm:num_requests_running{engine="1"} 3\n')
    assert swapped.count(b"\n") == BASE.count(b"\n")
    readings = [remembering.extract(swapped, whole=True).readings[RUNNING] for _ in range(FULL_SCAN_PAGES + 1)]
    assert readings[-1] == 7


def test_a_series_that_replaces_the_line_after_its_group_is_seen_at_once() -> None:
    remembering = Extractor(engine("vllm"))
    assert remembering.extract(BASE, whole=True).readings[RUNNING] == 4
    behind = line("# HELP vllm:num_requests_waiting")
    assert BASE.index(behind) == BASE.index(b"\n", BASE.index(b"\nvllm:num_requests_running") + 1) + 1
    begins, ends = b'vllm:num_requests_running{engine="1",pad="', b'"} 3'
    series = begins + b"x" * (len(behind) - len(begins) - len(ends)) + ends
    assert remembering.extract(BASE.replace(behind, series), whole=True).readings[RUNNING] == 7


def test_full_scans_of_a_fleet_that_started_at_once_are_spread() -> None:
    memory = LayoutCache(engine("vllm"))
    fleet = [Extractor(engine("vllm"), memory) for _ in range(FULL_SCAN_PAGES)]
    for each in fleet:
        each.extract(BASE)
    swapped = BASE.replace(line("process_cpu_seconds_total") + b"\n", b'vllm:num_requests_running{engine="1"} 3\n')
    seen = [sum(each.extract(swapped, whole=True).readings[RUNNING] == 7 for each in fleet) for _ in fleet]
    assert seen == list(range(FULL_SCAN_PAGES))  # one more full scan with each page


def test_a_label_value_with_line_ends_far_from_every_wanted_line_is_seen_after_some_pages() -> None:
    """Prometheus accepts a label value with line ends, and reads no sample in it."""
    page = (
        b'up{who="me"} 1\n# HELP llamacpp:requests_processing Running.\n# TYPE llamacpp:requests_processing gauge\n'
        b'llamacpp:requests_processing 2\n# TYPE last gauge\nlast{who="me"} 1\n'
    )
    open_text = page.replace(b'up{who="me"} 1', b'up{a="1",b="me').replace(b'last{who="me"} 1', b'last",to="us"} 1')
    assert len(open_text) == len(page)
    remembering = Extractor(engine("llamacpp"))
    assert remembering.extract(page, whole=True).readings[RUNNING] == 2
    for _ in range(FULL_SCAN_PAGES + 1):
        last = remembering.extract(open_text, whole=True)
    assert RUNNING not in last.readings


LABELS = st.dictionaries(
    st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True).filter(lambda name: name != "__name__"),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12),
    max_size=3,
)
NUMBERS = (
    st.floats(allow_nan=False).map(repr)
    | st.integers(-10, 10).map(str)
    | st.sampled_from(["NaN", "+Inf", "-Inf", "inf", "1e9"])
)


@st.composite
def pages(draw: st.DrawFn) -> bytes:
    """A page in the format, with wanted and other names in any order, and any valid spacing and escaping."""
    rows: dict[tuple[str, frozenset[tuple[str, str]]], str] = {}
    names = ["vllm:num_requests_running", "vllm:num_requests_running_x", "vllm:num_requests_waiting", "other", "vllm:x"]
    for _ in range(draw(st.integers(1, 8))):
        rows[draw(st.sampled_from(names)), frozenset(draw(LABELS).items())] = draw(NUMBERS)
    text = []
    for (name, labels), value in rows.items():
        if draw(st.integers(0, 4)) == 0:
            text.append(f"# HELP {name} {draw(st.sampled_from(['help', 'vllm:num_requests_running 5', '']))}")
        escaped = [
            (label, content.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for label, content in labels
        ]
        inside = ",".join(f'{label}="{content}"' for label, content in escaped)
        text.append(f"{name}{'{' + inside + '}' if inside else ''} {value}")
    return "\n".join(text).encode() + b"\n"


@given(pages())
def test_a_page_that_the_oracle_accepts_is_never_misread(page: bytes) -> None:
    try:
        values = samples_by_the_oracle(page, "vllm:num_requests_running")
    except ValueError:
        return
    extraction = read_or_refusal(page)
    if isinstance(extraction, PageRefused):
        assert extraction.reason == "wrong_engine"
        assert not values
        return
    if not values:
        assert RUNNING in extraction.missing
    elif (RUNNING, "ambiguous") in [(refusal.signal, refusal.reason) for refusal in extraction.refused]:
        assert sum(value != 0 for value in values) > 1  # the series differ in labels of an unknown meaning
    elif all(math.isfinite(value) and 0 <= value <= 1e7 for value in values) and sum(values) <= 1e7:
        assert extraction.readings[RUNNING] == pytest.approx(sum(values))
    else:
        assert RUNNING not in extraction.readings


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_with_a_known_reason(page: bytes) -> None:
    found = read_or_refusal(page)
    assert isinstance(found, Extraction) or found.reason in REASONS


@given(st.data())
def test_a_damaged_page_is_read_or_refused_and_no_reading_is_out_of_range(data: st.DataObject) -> None:
    small = b"\n".join(BASE.split(b"\n")[20:120]) + b"\n"
    at = data.draw(st.integers(0, len(small) - 1))
    damage = data.draw(st.binary(max_size=4))
    damaged = small[:at] + damage + small[at + data.draw(st.integers(0, 4)) :]
    found = read_or_refusal(damaged)
    if isinstance(found, PageRefused):
        assert found.reason in REASONS
        return
    usage = found.readings.get(KV_USAGE)
    assert usage is None or (isinstance(usage, float) and 0 <= usage <= 1)


def test_every_recorded_page_has_the_readings_in_the_json_beside_it() -> None:
    for path in sorted(PAGES.glob("*.prom")):
        extraction = read(path.read_bytes())
        expected = json.loads(path.with_suffix(".json").read_text())
        readings = {
            signal: sorted(value) if isinstance(value, frozenset) else value
            for signal, value in extraction.readings.items()
        }
        assert readings == expected["readings"], path.name
        assert list(extraction.missing) == expected["missing"], path.name
        assert [list(refusal) for refusal in extraction.refused] == expected["refused"], path.name


# -- the format, further -------------------------------------------------------------------------------------------


def test_lines_may_end_with_crlf() -> None:
    assert read(BASE.replace(b"\n", b"\r\n")) == read(BASE)


def test_an_openmetrics_page_with_exemplars_and_its_end_mark_is_read() -> None:
    total = line("vllm:prompt_tokens_total")
    page = BASE.replace(total, total + b' # {trace_id="a} 5"} 0.67 1795344417.3')
    for end in (b"# EOF\n", b"# EOF"):
        assert read(page + end) == read(BASE)


@pytest.mark.parametrize("rest", [b" # 0.67", b" #", b" 1 2", b" x", b" # {", b"# {", b' {a="b"}'])
def test_an_invalid_text_after_a_value_makes_a_bad_line_but_an_exemplar_does_not(rest: bytes) -> None:
    total = line("vllm:prompt_tokens_total")
    extraction = read(BASE.replace(total, total + rest))
    assert (PROMPT_TOKENS in extraction.readings) == rest.startswith(b" # {")


@pytest.mark.parametrize("text", [b"hello world\n", b"error: no such path\n", b"Service Unavailable\n\n", b"a b c\n"])
def test_a_text_that_is_not_a_page_and_a_page_of_another_program_have_different_reasons(text: bytes) -> None:
    with pytest.raises(PageRefused) as refused:
        read(text)
    assert refused.value.reason == "not_metrics"


def test_a_page_with_more_series_than_any_server_has_is_refused() -> None:
    row = 'vllm:lora_requests_info{{max_lora="2",running_lora_adapters="{}",waiting_lora_adapters=""}} {}\n'
    rows = "".join(row.format(number, 1_700_000_000 + number) for number in range(MAX_SERIES))
    assert read(rows.encode()).readings[LORA_RUNNING] == frozenset({str(MAX_SERIES - 1)})
    with pytest.raises(PageRefused) as refused:
        read((rows + row.format("one more", 0)).encode())
    assert refused.value.reason == "too_large"


def test_the_newest_adapters_of_two_engines_are_joined() -> None:
    row = (
        'vllm:lora_requests_info{{engine="{}",max_lora="{}",running_lora_adapters="{}",waiting_lora_adapters=""}} {}\n'
    )
    rows = [(0, 2, "a,b", 1.7e9 + 5), (0, 2, "", 1.7e9 + 4), (1, 4, "c", 1.7e9 + 1), (1, 4, "d", 1.7e9)]
    page = "".join(row.format(*each) for each in rows)
    readings = read(page.encode()).readings
    assert readings[LORA_RUNNING] == frozenset("abc")
    assert readings[LORA_MAX] == 4


def old_counters(counted: bytes) -> bytes:
    page = (PAGES / "derived_v0_names.prom").read_bytes()
    return re.sub(rb"(# HELP vllm:gpu_prefix_cache_\w+_total ).*", rb"\1GPU prefix cache queries, in " + counted, page)


def test_a_counter_of_blocks_in_older_releases_is_converted_to_tokens() -> None:
    tokens, blocks = (
        read(old_counters(b"terms of number of queried " + unit + b".")).readings for unit in (b"tokens", b"blocks")
    )
    assert blocks[PREFIX_QUERIES] == 32 * float(str(tokens[PREFIX_QUERIES]))
    assert blocks[PREFIX_HITS] == 32 * float(str(tokens[PREFIX_HITS]))


def test_a_change_of_the_unit_is_seen_on_the_first_page() -> None:
    tokens, blocks = (old_counters(b"terms of number of queried " + unit + b".") for unit in (b"tokens", b"blocks"))
    assert len(tokens) == len(blocks)
    remembering = Extractor(engine("vllm"))
    for page in (tokens, blocks, tokens):
        assert remembering.extract(page, whole=True) == read(page)


def test_a_counter_of_unknown_unit_is_refused() -> None:
    without_size = re.sub(rb"vllm:cache_config_info\{.*\n", b"", old_counters(b"blocks"))
    for page in (old_counters(b"some unit"), without_size):
        extraction = read(page)
        assert not {PREFIX_QUERIES, PREFIX_HITS} & extraction.readings.keys()
        assert {(refusal.signal, refusal.reason) for refusal in extraction.refused} == {
            (PREFIX_QUERIES, "unknown_unit"),
            (PREFIX_HITS, "unknown_unit"),
        }


def test_every_reason_of_a_refused_value_is_documented() -> None:
    pages = [
        changed("vllm:num_requests_running", "NaN"),
        changed("vllm:num_requests_running", "-1"),
        changed("vllm:num_requests_running", "x"),
        BASE + line("vllm:num_requests_running") + b"\n",
        old_counters(b"some unit"),
        (PAGES / "derived_two_engines.prom").read_bytes().replace(b',block_size="32"', b',block_size="16"', 1),
        BASE.replace(b',num_gpu_blocks="100"', b',num_gpu_blocks="many"'),
        BASE + line("vllm:num_requests_running").replace(b"{", b'{shard="1",') + b"\n",
        re.sub(rb"(?m)^(vllm:lora_requests_info\{.*\}) .*$", rb"\1 3.5e9", LORAS),
    ]
    found = {refusal.reason for page in pages for refusal in read(page).refused}
    cut = BASE[: BASE.index(b"\n", BASE.index(b"\nvllm:num_requests_running{") + 1) + 1]
    found |= {refusal.reason for refusal in Extractor(engine("vllm")).extract(cut).refused}
    assert found == REFUSALS.keys() - {"not_a_histogram"}  # tests/engines/test_histograms.py


# -- known layouts -------------------------------------------------------------------------------------------------

EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("remove"), st.integers(0, 10_000), st.just("")),
        st.tuples(st.just("repeat"), st.integers(0, 10_000), st.just("")),
        st.tuples(st.just("swap"), st.integers(0, 10_000), st.just("")),
        st.tuples(st.just("another engine"), st.integers(0, 10_000), st.sampled_from(["1", "00", "10"])),
        st.tuples(
            st.just("value"), st.integers(0, 10_000), st.sampled_from(["0", "1.0", "0.123456789012345", "1e-05"])
        ),
    ),
    max_size=4,
)


def edited(lines: list[bytes], kind: str, at: int, text: str) -> list[bytes]:
    at %= len(lines) - 1
    one = lines[at]
    if kind == "remove":
        return [*lines[:at], *lines[at + 1 :]]
    if kind == "repeat":
        return [*lines[:at], one, *lines[at:]]
    if kind == "swap":
        return [*lines[:at], lines[at + 1], one, *lines[at + 2 :]]
    if kind == "another engine":
        return [*lines[: at + 1], one.replace(b'engine="0"', b'engine="' + text.encode() + b'"'), *lines[at + 1 :]]
    return [*lines[:at], one.rpartition(b" ")[0] + b" " + text.encode(), *lines[at + 1 :]]


def around_what_is_read() -> list[int]:
    """The numbers of the lines in and next to the groups of wanted lines."""
    names = tuple(name.encode() for name in engine("vllm").names())
    rows = BASE.splitlines()
    wanted = [number for number, row in enumerate(rows) if row.startswith(names)]
    return sorted({number + beside for number in wanted for beside in (-2, -1, 0, 1, 2)})


@given(st.lists(EDITS, min_size=1, max_size=4), st.booleans())
def test_a_page_edited_in_and_around_its_groups_is_read_as_by_a_full_scan(
    steps: list[list[tuple[str, int, str]]], whole: bool
) -> None:
    places = around_what_is_read()
    remembering = Extractor(engine("vllm"))
    remembering.extract(BASE, whole=whole)
    rows = BASE.splitlines()
    for edits in steps:
        for kind, at, text in edits:
            rows = edited(rows, kind, places[at % len(places)], text)
        page = b"\n".join(rows) + b"\n"
        assert remembering.extract(page, whole=whole) == Extractor(engine("vllm")).extract(page, whole=whole)
