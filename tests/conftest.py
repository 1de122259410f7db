"""Options and environment of the whole suite: no network, one thread, and where the golden numbers lie."""

from __future__ import annotations

import atexit
import ipaddress
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "NEUROFLAMINGO_HOME" not in os.environ:  # caches of a run of the tests are its own
    os.environ["NEUROFLAMINGO_HOME"] = tempfile.mkdtemp(prefix="neuroflamingo-home-")
    atexit.register(shutil.rmtree, os.environ["NEUROFLAMINGO_HOME"], ignore_errors=True)
elif "PYTEST_XDIST_WORKER" in os.environ:  # and each worker's are its own, below the run's
    os.environ["NEUROFLAMINGO_HOME"] = os.path.join(os.environ["NEUROFLAMINGO_HOME"], os.environ["PYTEST_XDIST_WORKER"])

hypothesis.settings.register_profile("any machine", deadline=None)  # how long an example takes says how busy it is
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here, not beside the parity tests: pytest reads options only from the conftest files nearest to its root."""
    parser.addoption(
        "--openflamingo-fixtures",
        metavar="DIR",
        default=None,
        help="folder of OpenFlamingo golden numbers (index.json and .safetensors); default: tests/parity/openflamingo",
    )
    parser.addoption(
        "--encoder-fixtures",
        metavar="DIR",
        default=None,
        help="folder of encoders' golden numbers (NAME.json and .safetensors); default: tests/parity/encoders",
    )


def _stays_here(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # a path: sockets of the Unix family
    host = str(address[0])
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any connection that leaves this machine fails the test that makes it."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guard(original: Any) -> Any:
        def call(self: socket.socket, address: Any) -> Any:
            if not _stays_here(address):
                raise AssertionError(f"a test reached for the network: {address}")
            return original(self, address)

        return call

    monkeypatch.setattr(socket.socket, "connect", guard(connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guard(connect_ex))
    yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bitwise comparisons need one order of summation; tests that need no torch do not import it for this."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
