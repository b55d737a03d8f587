"""The connection to a Ray cluster, and messages about its nodes."""

import importlib
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from afclip_runtime.errors import UserError, install_extra, shown

ANSWER = 10.0  # seconds in which a cluster must answer
LOOK = 2.0  # seconds between two looks at the nodes
HANDED_ON = ("AFCLIP_", "PYTHONPATH", "OMP_NUM_THREADS")  # prefixes of environment variables that workers inherit
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # of HTTP/2, with no settings
SETTINGS = 4  # type of the first frame of an HTTP/2 server
START = "`ray start --head` starts a cluster and prints its address."
TOKEN = (
    "the cluster asks for a token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what `ray get-auth-token` prints "
    "on the cluster's first node, or write it to ~/.ray/auth_token."
)
SETTINGS_OF_RAY = {
    "RAY_gcs_server_port_wait_time_s": "3",  # how often Ray tries to connect, with a second in between; else 20 times
    # how long a task may be silent before its node is asked, and how long the answer may take; else 5 and 2 minutes
    "RAY_grpc_client_keepalive_time_ms": "30000",
    "RAY_grpc_client_keepalive_timeout_ms": "30000",
}


def require_ray() -> None:
    """Checks early that Ray is installed, without importing it: it reads its settings when it is imported.

    Raises:
        UserError: It is not. The message says how to install it.
    """
    if find_spec("ray") is None:
        raise _absent("ray")


def _absent(package: str | None) -> UserError:
    return UserError(f"{package} is not installed: {install_extra('scale')}.")


def open_ray(address: str | None) -> Any:
    """Returns the module `ray`, connected to a cluster. Without an address, a cluster on this machine is started.

    Raises:
        UserError: Ray is not installed, no cluster answers at the address, or it refuses the token.
    """
    if address:
        os.environ.update({name: value for name, value in SETTINGS_OF_RAY.items() if name not in os.environ})
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise _absent(error.name) from error
    try:
        _reach(address or "")
    except OSError as error:
        raise _unusable(address, error) from error
    try:
        ray.init(address or "local", include_dashboard=None if address else False, log_to_driver=False)
    except (ImportError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _unusable(address, error) from error
    return ray


def _reach(address: str) -> None:
    """Raises `OSError` if no Ray answers at HOST:PORT. Ray itself would try for minutes.

    Ray speaks gRPC, whose servers begin with the settings of HTTP/2. Encrypted connections are only opened.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):
        return
    with socket.create_connection((host.strip("[]"), int(port)), ANSWER) as connection:
        if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
            return
        connection.sendall(GREETING)
        answer = connection.recv(len(GREETING))
        if answer[3:4] != bytes([SETTINGS]):
            raise ConnectionError("what answers there is not Ray")


def _unusable(address: str | None, error: Exception) -> UserError:
    place = f"--ray_address {shown(address)}" if address else "--launcher ray"
    if _is_about_a_token(error):
        return UserError(f"{place}: {TOKEN}")
    reason = " ".join(str(error).split())[:300]
    return UserError(f"{place}: Ray cannot be used ({reason}). {START}")


def _is_about_a_token(error: BaseException | None) -> bool:
    """Returns whether an error, or one that caused it, is about authentication."""
    while error is not None:
        if "authenticat" in f"{type(error).__name__}: {error}".lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def variables_for_workers() -> dict[str, str]:
    """Returns the variables of this environment that workers on other machines have too."""
    return {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}


@contextmanager
def nodes_watched(ray: Any, cpus: int, gpus: int) -> Iterator[None]:
    """Prints a line when a node leaves the cluster, and when no node has room for a worker, while the body runs.

    Args:
        ray: The module, connected to a cluster.
        cpus: Number of processors of a worker.
        gpus: Number of GPUs of a worker.
    """
    ended = threading.Event()

    def watch() -> None:
        alive: dict[str, str] = {}
        room = True
        while True:
            try:
                nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
            except Exception:  # the cluster is gone, which the work itself reports
                return
            for left in alive.keys() - nodes.keys():
                _say(f"Node {alive[left]} has left the Ray cluster. What ran there is run again on another node.")
            alive = {key: _name(node) for key, node in nodes.items()}
            before, room = room, any(_has_room(node["Resources"], cpus, gpus) for node in nodes.values())
            if before and not room:
                needs = f"{cpus} CPU" + f" and {gpus} GPU" * bool(gpus)
                _say(f"No node of the Ray cluster has {needs} for a worker: waiting for one. Ctrl-C ends the command.")
            if ended.wait(LOOK):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LOOK)


def _name(node: Mapping[str, Any]) -> str:
    return shown(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})")


def _has_room(resources: Mapping[str, float], cpus: int, gpus: int) -> bool:
    return resources.get("CPU", 0) >= cpus and resources.get("GPU", 0) >= gpus


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
