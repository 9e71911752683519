"""Which addresses and origins are a server's own, and how its port is opened."""

import socket

import pytest

from davit.addresses import OwnAddresses, is_loopback, open_port


def test_own_addresses() -> None:
    own = OwnAddresses("192.0.2.7", 7860, ["Lab.example.org", "proxy:8080"])
    for right in (
        "127.0.0.1:7860",
        "localhost:7860",
        "[::1]:7860",
        "127.9.9.9:7860",
        "192.0.2.7:7860",
        "LOCALHOST.:7860",
    ):
        assert own.has(right), right
    assert own.has("lab.example.org") and own.has("lab.example.org:443") and own.has("proxy:8080")
    others = (
        "",
        "127.0.0.1",
        "127.0.0.1:80",
        "192.0.2.8:7860",
        "0.0.0.0:7860",
        "evil:7860",
        "localhost.evil:7860",
        "proxy:1",
    )
    for wrong in (
        *others,
        "127.0.0.1:7860@evil",
        "127.0.0.1:7860,evil",
        "localhost:7860/",
        "[::1",
        "localhost:999999",
    ):
        assert not own.has(wrong), wrong
    assert own.has_origin("http://localhost:7860") and own.has_origin("https://lab.example.org")
    for wrong in (
        "null",
        "",
        "http://localhost",
        "http://localhost:1",
        "file://",
        "localhost:7860",
        "ftp://localhost:7860",
    ):
        assert not own.has_origin(wrong), wrong
    with pytest.raises(ValueError, match="also_at"):
        OwnAddresses("localhost", 1, ["http://lab.example.org"])


def test_a_page_for_the_network_is_asked_for_by_numbers_but_no_foreign_name() -> None:
    for host in ("0.0.0.0", "::"):
        own = OwnAddresses(host, 80)
        assert own.has("192.0.2.7") and own.has("[2001:db8::1]") and own.has("localhost")
        assert not own.has("evil.example.com") and not own.has("192.0.2.7:81")
    assert OwnAddresses("box.lan", 80).has("BOX.lan") and not OwnAddresses("box.lan", 80).has("192.0.2.7")
    assert is_loopback("localhost") and not is_loopback("localhost.example.org")


@pytest.mark.parametrize(
    ("hosts", "origins", "status"),
    [
        (["localhost:80"], [], None),
        (["localhost"], ["http://localhost"], None),
        ([], [], 400),
        (["localhost", "localhost"], [], 400),
        (["evil:80"], [], 400),
        (["localhost"], ["http://evil"], 403),
        (["localhost"], ["http://localhost", "null"], 403),
    ],
)
def test_what_is_refused(hosts: list[str], origins: list[str], status: int | None) -> None:
    refusal = OwnAddresses("127.0.0.1", 80).refusal(hosts, origins)
    assert (refusal and refusal[0]) == status


def test_a_refusal_names_the_address_and_the_flag() -> None:
    own = OwnAddresses("127.0.0.1", 80)
    assert (refusal := own.refusal(["lab:9000"], [])) and "--also-at lab:9000" in refusal[1]
    assert (refusal := own.refusal(["a b\x1b" + "x" * 1000], []))  # none that could be added
    assert "--also-at" not in refusal[1] and "\x1b" not in refusal[1] and len(refusal[1]) < 300


def test_a_port_is_opened_once() -> None:
    with open_port("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert socket.create_connection(("127.0.0.1", port), timeout=5).close() is None
        with pytest.raises(ValueError, match=r"--port 0"):
            open_port("127.0.0.1", port)
    with pytest.raises(ValueError, match="nowhere"):
        open_port("nowhere.invalid", 0)
    if socket.has_ipv6:
        try:
            with open_port("::1", 0) as sixth:
                assert sixth.family is socket.AF_INET6
        except ValueError:
            pytest.skip("no IPv6 here")
