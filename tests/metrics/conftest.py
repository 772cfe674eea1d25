"""What every test of measures has: no way out."""

import socket

import pytest


@pytest.fixture(autouse=True)
def _unconnected(monkeypatch):
    """A connection, or the look-up of a name for one, fails the test and cannot be caught."""

    def refused(*given):
        pytest.fail(f"a measure asked for a connection: {given[-1]}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
