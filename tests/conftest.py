"""What every test gets: one thread, no network, no waiting for the disk, and data that may lie beside a checkout."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

torch.set_num_threads(1)  # the tiny models gain nothing from more, and the numbers repeat


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Every way out except Unix sockets fails at once, as something that no library mistakes for being offline."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a test tried to reach the network")

    def only_unix(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: socket.socket, *arguments: Any) -> Any:
            return original(self, *arguments) if self.family == socket.AF_UNIX else refuse()

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, only_unix(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files are written as ever, but a power cut may lose them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def what_is_imported_stays() -> None:
    """The garbage collector passes by what is there: libraries and tests are millions of objects, and it runs often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """`shared("data/sst2")`: a path beside the checkout; the test is skipped where it is not there."""

    def path(name: str) -> Path:
        found = SHARED / name
        if not found.exists():
            pytest.skip(f"shared/{name} does not lie beside this checkout")
        return found

    return path
