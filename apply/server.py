"""What the servers of apply/ share: an address of their own, the run itself."""

import importlib.util
import socket

from lore.common import InputError, require

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def require_server(port):
    """InputError: no such port; the packages of requirements-serve.txt are missing."""
    require(0 < port < 2**16, f"--port {port}: between 1 and 65535")
    for name in ("fastapi", "uvicorn"):
        is_there = importlib.util.find_spec(name) is not None
        require(is_there, f"{name} is missing: pip install -r requirements-serve.txt")


def bound(host, port):
    """A socket that has the address. InputError: it cannot be had, as when another server does."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error.strerror or error}") from error


def run(app, address):
    """Answer at a socket until the process is told to end."""
    import uvicorn

    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([address])
