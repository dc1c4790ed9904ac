"""apply/serve.py: what it takes, what it gives, and whom it keeps waiting."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import texts
from test_apply import APPLY, scored

from lore.fit.basis import load_basis
from lore.text.conversations import exchange


@pytest.fixture(scope="module")
def server(basis):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--basis", basis, "--port", port, "--max_bytes", 20000]
    running = subprocess.Popen(
        [sys.executable, str(APPLY / "serve.py"), *map(str, flags)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/health")
            break
        except OSError:
            assert running.poll() is None, running.stdout.read()
            time.sleep(0.5)
    yield address
    running.terminate()
    running.wait(30)


def post(address, body):
    """(status, answer) of POST /get_reward."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"{address}/get_reward", data, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_server_gives_the_rewards_of_score(server, basis, rows, tmp_path, model):
    from transformers import AutoTokenizer

    user = load_basis(basis).user_ids[0]
    found = scored(basis, rows, tmp_path / "scored.jsonl", "--users", user)
    row = texts.read(rows)[0]
    talk = exchange(row["prompt"], row["response"])
    rendered = AutoTokenizer.from_pretrained(model).apply_chat_template(talk, tokenize=False)
    plain = f"{row['prompt']} {row['response']}"
    prompts = ["", "", row["prompt"]]
    body = {
        "query": [talk, rendered, plain],
        "prompts": prompts,
        "labels": [user, {"user_id": user}, ""],
    }
    status, answer = post(server, body)
    assert status == 200 and answer["scores"] == answer["rewards"] and answer["extra_logs"] == {}
    own_reward, common = found[0]["rewards"][user], found[0]["population"]
    assert answer["rewards"] == pytest.approx([own_reward, own_reward, common], abs=1e-4)
    asks = [
        {"query": [exchange("the cat?", other["response"])], "labels": [user]}
        for other in texts.read(rows)
    ]
    with ThreadPoolExecutor(4) as people:
        answers = [*people.map(lambda ask: post(server, ask)[1]["rewards"][0], asks)]
    assert answers == pytest.approx([row["rewards"][user] for row in found], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"query": ["what?"]}, 400, "query 0"),
        ({"query": [exchange("a", "b")], "labels": ["nobody"]}, 400, "no user nobody"),
        ({"query": [exchange("a", "b")], "labels": [{"user": "0"}]}, 400, "without a user_id"),
        (b'{"query": [[]], "labels": [NaN]}', 400, "query"),
        ({"query": [exchange("a", "b")], "labels": [10**400]}, 400, "no user 1000"),
        ({"query": [exchange("a", "b")], "labels": ["\ud800"]}, 400, "no user"),
        ({"query": [exchange("a", "b")], "labels": []}, 400, "labels is no list of 1"),
        ({"query": [exchange("a", "")]}, 400, "empty"),
        ({"query": [exchange("a", "the cat " * 1000)]}, 400, "for the reply alone"),
        (b"{", 400, "Expecting"),
        (b"[]", 400, "a JSON object"),
        (b"x" * 30000, 413, "--max_bytes"),
    ],
)
def test_the_server_refuses_in_one_line(server, body, status, words):
    found, answer = post(server, body)
    assert found == status and words in answer["error"] and "\n" not in answer["error"]
