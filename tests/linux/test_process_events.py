"""The proc connector's datagrams, as Linux 6.18 on x86-64 sent them."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.linux.process_events import Kind, ProcessEvent, parse_answer, parse_event

if sys.byteorder != "little":
    pytest.skip("recorded on a little-endian machine", allow_module_level=True)

HEADER = "4c0000000300000000000000000000000100000001000000000000000000000028000000"
TIME = "00000000" + "1489c223c1010000"


def datagram(what: str, *words: int) -> bytes:
    body = b"".join(word.to_bytes(4, "little") for word in words)
    return bytes.fromhex(HEADER + what + TIME) + body.ljust(24, b"\0")


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (datagram("02000000", 7858, 7858), ProcessEvent(Kind.STARTED, 7858)),
        (datagram("02000000", 7859, 7858), ProcessEvent(Kind.STARTED, 7858)),
        (datagram("04000000", 7859, 7858, 1337, 1337), ProcessEvent(Kind.CHANGED, 7858)),
        (datagram("00000080", 7858, 7858, 0, 17), ProcessEvent(Kind.ENDED, 7858)),
        (datagram("00000080", 7859, 7858, 0, 17), None),  # one thread of several
        (datagram("01000000", 7857, 7857, 7858, 7858), None),  # fork
        (datagram("00000000", 0), None),  # an answer
    ],
)
def test_events(message: bytes, event: ProcessEvent | None) -> None:
    assert parse_event(message) == event


def test_an_answer_is_known_by_our_tag() -> None:
    answer = bytearray(datagram("00000000", 1))
    answer[28:32] = (4712).to_bytes(4, "little")

    assert parse_answer(bytes(answer), 4711) == 1
    assert parse_answer(bytes(answer), 4712) is None
    assert parse_answer(datagram("02000000", 1, 1), 2**32 - 1) is None


@given(st.binary(max_size=80))
def test_garbage_is_nothing(message: bytes) -> None:
    assert parse_event(message) is None or len(message) >= 60
    parse_answer(message, 1)
