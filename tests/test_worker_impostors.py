"""Addresses behind which no worker is: whoever answers there is named, in bounded time."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import tensorflow as tf

from moirai_tf import Cluster, MoiraiError
from moirai_tf.bench.bench import BenchOptions, bench
from moirai_tf.bench.local_cluster import LocalCluster
from moirai_tf.cost.options import ProfileOptions
from moirai_tf.cost.profile import profile
from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.verify import VerifyOptions, verify
from tests.placements import place
from tests.saved_models import graph_of, save_function

_ONE, _TWO = (f"/job:worker/replica:0/task:{i}/device:CPU:0" for i in range(2))
_PATIENCE_S = 240.0
"""Far more than any of these may take; without a bound they would never end."""


def _speaks_http(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def _hangs_up(connection: socket.socket) -> None:
    connection.recv(1)


def _says_nothing(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def _says_anything(connection: socket.socket) -> None:
    connection.sendall(bytes(range(256)) * 64)
    _says_nothing(connection)


_IMPOSTORS = {
    "http": _speaks_http, "hangs up": _hangs_up, "silent": _says_nothing, "noise": _says_anything,
}  # fmt: skip


@contextmanager
def _impostor(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a socket that answers so, whoever connects and how often."""
    with socket.create_server(("localhost", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        def talk(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"localhost:{server.getsockname()[1]}"


@contextmanager
def _other_service() -> Iterator[str]:
    """The address of a gRPC server that knows no method."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("localhost:0")
        server.start()
        yield f"localhost:{port}"
        server.stop(None).wait()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """y = sin(tanh(x)), the sine with worker two."""
    folder = tmp_path_factory.mktemp("impostors")

    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.sin(tf.tanh(x))}

    source = save_function(folder / "model", serve)
    plan = place(source, folder / "first", placement={}, devices=(_ONE, _TWO))
    sine = {name: _TWO for name in plan.placement if name.endswith("/Sin")}
    place(source, folder / "placed", placement=sine, devices=(_ONE, _TWO))
    return source, folder / "placed"


def _verifies(pair: tuple[Path, Path], cluster: Cluster) -> None:
    options = VerifyOptions(loaders=("cluster",), grappler="off", step_timeout_s=5.0)
    verify(*pair, options, cluster)


def _profiles(pair: tuple[Path, Path], cluster: Cluster) -> None:
    coarse = coarsen(graph_of(pair[0]))[0]
    profile(read_saved_model(pair[0]), coarse, cluster, ProfileOptions(repeats=2, warmup=1))


def _benches(pair: tuple[Path, Path], cluster: Cluster) -> None:
    bench(pair[0], [pair[1]], cluster, BenchOptions(repeats=2, timeout_s=5.0))


_FEW = [("http", "verify"), ("another service", "profile"), ("silent", "bench")]
_ACTS = {"verify": _verifies, "profile": _profiles, "bench": _benches}
_ALL = itertools.product([*_IMPOSTORS, "another service"], _ACTS)


@pytest.mark.parametrize(
    ("kind", "act"),
    [*_FEW, *(pytest.param(*case, marks=pytest.mark.slow) for case in _ALL if case not in _FEW)],
)
def test_an_impostor_is_named(
    kind: str, act: str, pair: tuple[Path, Path], workers: LocalCluster
) -> None:
    one, two = workers.cluster.devices
    start = time.monotonic()
    impostor = _impostor(_IMPOSTORS[kind]) if kind in _IMPOSTORS else _other_service()
    with impostor as address:
        cluster = replace(workers.cluster, devices=(one, replace(two, address=address)))
        with pytest.raises(MoiraiError, match=rf"worker .*/task:1 at {address} does not answer"):
            _ACTS[act](pair, cluster)
    assert time.monotonic() - start < _PATIENCE_S
