"""The fields of a form are read as they were written, and no bytes are an error."""

from __future__ import annotations

from urllib.parse import urlencode

from hypothesis import example, given
from hypothesis import strategies as st

from agent.requests.forms import fields_of, is_form

BOUNDARY = "----a-boundary-7MA4YWxk"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
names = st.text("abcdefg_", min_size=1, max_size=8)
values = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=40)


def multipart(fields: dict[str, str | bytes], boundary: str = BOUNDARY) -> bytes:
    out = b""
    for name, value in fields.items():
        disposition = f'Content-Disposition: form-data; name="{name}"'
        if isinstance(value, bytes):
            disposition += '; filename="a.wav"\r\nContent-Type: audio/wav'
        data = value if isinstance(value, bytes) else value.encode()
        out += f"--{boundary}\r\n{disposition}\r\n\r\n".encode() + data + b"\r\n"
    return out + f"--{boundary}--\r\n".encode()


@given(fields=st.dictionaries(names, values | values.map(str.encode), max_size=8))
def test_the_fields_of_a_multipart_form_are_text_and_its_files_are_bytes(fields: dict[str, str | bytes]) -> None:
    assert fields_of(multipart(fields), TYPE) == fields
    assert fields_of(multipart(fields), f'multipart/form-data; charset=utf-8; boundary="{BOUNDARY}"') == fields


@given(fields=st.dictionaries(names, values.filter(bool), max_size=8))
def test_the_fields_of_an_urlencoded_form_are_text(fields: dict[str, str]) -> None:
    assert fields_of(urlencode(fields).encode(), "application/x-www-form-urlencoded; charset=UTF-8") == fields


@given(body=st.binary(max_size=200), content_type=st.text(max_size=60) | st.just(TYPE))
@example(body=b"--" + BOUNDARY.encode(), content_type=TYPE)
@example(body=(b"--" + BOUNDARY.encode() + b"\r\n") * 1000, content_type=TYPE)
@example(body=b"a=1&" * 1000, content_type="application/x-www-form-urlencoded")
def test_no_bytes_are_an_error(body: bytes, content_type: str) -> None:
    assert isinstance(fields_of(body, content_type), dict)


def test_of_two_fields_with_one_name_the_first_counts() -> None:
    twice = multipart({"model": "a"})[: -len(f"--{BOUNDARY}--\r\n")] + multipart({"model": "b"})
    assert fields_of(twice, TYPE) == {"model": "a"}


def test_a_form_is_recognised_by_its_content_type() -> None:
    assert is_form("Multipart/Form-Data; boundary=x")
    assert is_form("application/x-www-form-urlencoded")
    assert not is_form("application/json")
    assert not is_form("")
