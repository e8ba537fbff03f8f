"""Which process is whose proxy."""

import pytest

from accel.sources.profiles import KNOWN, Profile, find_profile


@pytest.mark.parametrize(
    ("exe", "uid", "name"),
    [
        ("envoy", 1337, "istio"),
        ("envoy", 5678, "kuma"),
        ("envoy", 5995, "consul"),
        ("envoy", 1500, "osm"),
        ("linkerd2-proxy", 2102, "linkerd"),
        ("envoy", 0, None),
        ("linkerd2-proxy", 1337, None),
        ("pilot-agent", 1337, None),
        ("", 1337, None),
    ],
)
def test_known_proxies(exe: str, uid: int, name: str | None) -> None:
    found = find_profile(KNOWN, exe, uid)

    assert (found and found.name) == name


def test_proxies_that_are_not_known_to_read_all_stop_short() -> None:
    assert {p.name for p in KNOWN if p.stops_short} == {"linkerd"}
    assert Profile("ours", frozenset({"proxy"})).stops_short


def test_a_profile_without_uids_takes_any() -> None:
    assert Profile("ours", frozenset({"proxy"})).matches("proxy", 12345)


@pytest.mark.parametrize(
    ("name", "exes", "uids"),
    [
        ("", {"envoy"}, set()),
        ("ours", set(), set()),
        ("ours", {""}, set()),
        ("ours", {"/bin/envoy"}, set()),
        ("ours", {"envoy"}, {-1}),
        ("ours", {"envoy"}, {2**32 - 1}),
    ],
)
def test_a_senseless_profile_is_refused(name: str, exes: set[str], uids: set[int]) -> None:
    with pytest.raises(ValueError, match=r"profile|exes|uids"):
        Profile(name, frozenset(exes), frozenset(uids))
