"""A server of apply/ as a user starts it, in a process of its own."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

from conftest import ROOT


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """apply/NAME.py on a port that is free; `address` is what it prints."""

    def __init__(self, name, *flags):
        command = (sys.executable, ROOT / f"apply/{name}.py", *flags, "--port", free_port())
        self.command = [*map(str, command)]
        self.start()

    def start(self):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(self.command, cwd=ROOT, **pipes)
        said = ""
        while "http://" not in said:
            assert self.process.poll() is None, said
            said += self.process.stdout.readline()
        self.address = re.search(r"http://\S+/", said)[0]

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.wait(30)
        self.process.stdout.close()


@contextmanager
def started(*arguments):
    server = Server(*arguments)
    try:
        yield server
    finally:
        server.end()


def post(address, body, path=""):
    """(status, answer) of a POST; a GET where the body is None."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
