"""What tests of measures have: no way out, and a look at how exactly networks compute."""

import socket

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _unconnected(monkeypatch):
    """A connection, or the look-up of a name for one, fails the test and cannot be caught."""

    def refused(*given):
        pytest.fail(f"a measure asked for a connection: {given[-1]}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture
def precisions():
    """The precisions of products and convolutions in which a call's convolutions ran."""

    def found(network, call):
        seen, before = set(), torch.get_float32_matmul_precision()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda *_: seen.add(
                        (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
                    )
                )
        torch.set_float32_matmul_precision("high")  # as a run does
        try:
            call()
            assert torch.get_float32_matmul_precision() == "high"
        finally:
            torch.set_float32_matmul_precision(before)
        return seen

    return found
