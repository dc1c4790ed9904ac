"""The servers of apply/, within this process."""

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
import uvicorn
from conftest import ROOT, call_script
from server import bound


def free_port():
    with bound("127.0.0.1", 0) as free:
        return free.getsockname()[1]


def application_of(name, *flags):
    """What apply/NAME.py would run, and what it prints."""
    applications = []
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.run", lambda application, _: applications.append(application))
        done = call_script(ROOT / f"apply/{name}.py", *flags, "--port", free_port())
    torch.set_num_threads(threads)
    assert done[0] == 0, done[2]
    return applications[0], done[1]


@contextmanager
def served(name, *flags):
    """The address of apply/NAME.py."""
    application, _ = application_of(name, *flags)
    running = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
    with bound("127.0.0.1", 0) as address, ThreadPoolExecutor(1) as thread:
        thread.submit(running.run, [address])
        try:
            yield f"http://127.0.0.1:{address.getsockname()[1]}"
        finally:
            running.should_exit = True


def post(address, body, path="get_reward"):
    """(status, answer) of a POST; a GET where the body is None."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"{address}/{path}", data, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
