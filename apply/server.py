"""What the servers of apply/ share: an address of their own, bodies of limited size, the run itself."""

import importlib.util
import socket
from urllib.parse import urlsplit

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


def refusal(request, hosts):
    """Why a request is not of the page itself, else None.

    hosts: names under which this machine may be asked, None = any; a page elsewhere can point a name of
    its own at this machine, or have a browser post to it.
    """
    host = request.headers.get("host", "")
    if hosts is not None and host not in hosts:
        return "asked under a name that is not this machine's"
    if request.method != "POST":
        return None
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return "posted by another page"
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return "not posted by the page"
    return None


def names_of_loopback(port):
    """What a browser on this machine may call it."""
    names = []
    for name in ("127.0.0.1", "localhost", "[::1]"):
        names += [f"{name}:{port}", *([name] if port == 80 else [])]
    return names


async def read_body(request, most):
    """Bytes of a request; None where there are more than `most`."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            return None
    return body


def run(app, address):
    """Answer at a socket until the process is told to end."""
    import uvicorn

    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([address])
