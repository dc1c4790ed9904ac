"""A reward server for policy training: POST /get_reward as OpenRLHF sends it, user ids in labels.

    pip install -r requirements-serve.txt
    python apply/serve.py --basis BASIS
    curl 127.0.0.1:8000/get_reward -H 'Content-Type: application/json' \\
        -d '{"query": ["Name a fruit. Quince."], "prompts": ["Name a fruit. "], "labels": ["ann"]}'

Takes:  {"query": [..], "prompts": [..], "labels": [..]}, the last two as long as the first, or not there.
        A query is a text that the model's own chat template (or that of --policy) has made, or a list
        of messages, or plain text that begins with its prompt; a label is a user id, or {"user_id": id},
        or nothing: the population. docs/apply.md says what becomes of other texts.
Gives:  {"rewards": [..], "scores": [..], "extra_logs": {}}, log-odds as of score.py; null, and a line
        in "errors", for a query that cannot be scored; 400 with {"error": one line} where none can,
        or the request is broken; 413 for more than --max_bytes.
Also:   POST /classify and /v1/embeddings as vLLM and SGLang answer them, for {"model": "user:ID",
        "input": [..]}; GET /users, and /health with the SHA-256 of the basis.
Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py
Cost:   requests that come while others are computed wait, and are then computed together; of large
        ones a part at a time, so that small ones do not wait for them.
"""

import asyncio
import json
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from queries import Reader, policy_tokenizer
from scorer import Scorer, number_of, require_unknown, reward_of
from server import LOOPBACK, bound, require_server, run

import saved_basis
from lore.common import InputError, require, shortened, start
from lore.settings import settings
from lore.text.conversations import content_hash, text_bytes
from saved_basis import encoder_of_basis, open_basis

# ------------------------------------------------------------------------------- settings ---
basis = ""  # a basis of train_basis.py or adapt.py
policy = ""  # folder or Hub name of the model whose chat template writes queries; "" = the basis's
host = "127.0.0.1"  # loopback: this machine alone can ask; there is no password
port = 8000  # of the server
max_bytes = 8_000_000  # of a request; more is refused before it is read
max_queries = 64  # that are computed together, of all who wait alike
unscored = ""  # reward of an empty or too long reply, for clients that take numbers only; "" = null
unknown = "refuse"  # or population: whose reward it is where the basis does not know the user
# -------------------------------------------------------------------------------------------

PART = 8  # bytes of text for each token of a batch: about two batches are computed together


class Query(NamedTuple):
    """One conversation that waits for its reward."""

    talk: list  # or an InputError
    user: str | None
    reward: asyncio.Future  # the same


class Queue:
    """Queries that wait, a line of them for each request; some of each line are computed together."""

    def __init__(self, scorer, most, size):
        self.scorer = scorer
        self.most = most  # queries at a time
        self.size = size  # bytes of text, about
        self.lines = deque()
        self.arrival = asyncio.Event()
        self.thread = ThreadPoolExecutor(1)

    async def ask(self, talks, users):
        """Rewards and InputErrors, one for each query."""
        loop = asyncio.get_running_loop()
        line = deque(Query(talk, user, loop.create_future()) for talk, user in zip(talks, users))
        rewards = asyncio.gather(*(query.reward for query in line))
        if line:
            self.lines.append(line)
            self.arrival.set()
        return await rewards

    async def work(self):
        while True:
            await self.arrival.wait()
            part = self.next_part()
            talks = [query.talk for query in part]
            users = [query.user for query in part]
            loop = asyncio.get_running_loop()
            computing = loop.run_in_executor(self.thread, self.scorer.results, talks, users)
            # a fault of ours is told to those who asked, and the server goes on
            (results,) = await asyncio.gather(computing, return_exceptions=True)
            for number, query in enumerate(part):
                if query.reward.done():  # who asked has gone
                    continue
                if isinstance(results, BaseException):
                    query.reward.set_exception(results)
                else:
                    query.reward.set_result(results[number])

    def next_part(self):
        """Queries to compute: of each line in turn one, and more while they are short."""
        part = []
        size = 0
        lines = len(self.lines)
        while self.lines and len(part) < self.most and (len(part) < lines or size < self.size):
            line = self.lines.popleft()
            query = line.popleft()
            part.append(query)
            size += 0 if isinstance(query.talk, InputError) else text_bytes(query.talk)
            if line:
                self.lines.append(line)
        if not self.lines:
            self.arrival.clear()
        return part


def answer_of(results, unscored, logs=None):
    """What a client gets for rewards and InputErrors. InputError: no query has a reward.

    unscored: the reward of an empty or too long reply, or None; logs: {name: number} for the client's log.
    """
    rewards = [reward_of(result, unscored) for result in results]
    errors = []
    for number, result in enumerate(results):
        errors.append(one_line(result, f"query {number}") if isinstance(result, InputError) else None)
    if any(errors) and rewards == [None] * len(rewards):
        raise InputError(errors[0])
    answer = {"rewards": rewards, "scores": rewards, "extra_logs": logs or {}}
    return answer | {"errors": errors} if any(errors) else answer


def list_of(key, constants, results, unscored, logs):
    """The same as vLLM's and SGLang's lists, which have numbers alone, each under a key beside some constants.

    InputError: a query has no reward.
    """
    answer = answer_of(results, unscored, logs)
    if None in answer["rewards"]:
        raise InputError(answer["errors"][answer["rewards"].index(None)])
    data = [{"index": number, key: [reward], **constants} for number, reward in enumerate(answer["rewards"])]
    return {"object": "list", "data": data} | ({"extra_logs": logs} if logs else {})


def one_line(error, where=""):
    """An error as one short line, which says where."""
    text = shortened(error)
    text = text if text.startswith(where) else f"{where}: {text}"
    return text.encode("utf-8", "backslashreplace").decode()  # half a character is none


def application(basis, encoder, reader, args):
    """The FastAPI application."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

    scorer = Scorer(basis, encoder)
    queue = Queue(scorer, args.max_queries, PART * encoder.batch_tokens)
    version = content_hash(args.basis).hex()

    @asynccontextmanager
    async def lifespan(_):
        worker = asyncio.create_task(queue.work())
        yield
        worker.cancel()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.exception_handler(InputError)
    async def refuse(_, error, status=400):
        return JSONResponse({"error": one_line(error)}, status)

    def read(body, queries_of):
        try:
            talks, users = queries_of(json.loads(body))
        except (ValueError, RecursionError) as error:  # of broken JSON
            raise InputError(str(error)) from error
        count = scorer.place_unknown(talks, users, args.unknown)
        return talks, users, {"unknown_users": count} if args.unknown == "population" else {}

    def answering(path, queries_of, answer_of):
        @app.post(path)
        async def answer(request: Request):
            body = b""
            async for piece in request.stream():
                body += piece
                if len(body) > args.max_bytes:
                    return await refuse(request, f"more than {args.max_bytes} bytes (--max_bytes)", 413)
            talks, users, logs = await asyncio.to_thread(read, body, queries_of)
            return answer_of(await queue.ask(talks, users), args.unscored, logs)

    answering("/get_reward", reader.queries, answer_of)
    answering("/classify", reader.inputs, partial(list_of, "probs", {"label": None, "num_classes": 1}))
    answering("/v1/embeddings", reader.inputs, partial(list_of, "embedding", {"object": "embedding"}))

    @app.get("/users")
    async def users():
        return {"users": basis.everybody}

    @app.get("/health")
    async def health():
        sizes = {"people": len(basis.everybody), "rank": basis.V.shape[1]}
        return sizes | {"model": encoder.name, "basis": version}

    return app


def main():
    args = settings(globals(), saved_basis)
    basis = open_basis(args.basis)
    require_server(args.port)
    args.unscored = number_of(args.unscored)
    require_unknown(args.unknown)
    require(args.max_queries >= 1, "--max_queries 0: at least one is needed")
    encoder = encoder_of_basis(args.basis, basis, args)
    reader = Reader(encoder, policy_tokenizer(args.policy))
    encoder.load()
    app = application(basis, encoder, reader, args)
    if args.host not in LOOPBACK:
        print(f"--host {args.host}: whoever reaches this machine can ask; there is no password")
    with bound(args.host, args.port) as address:
        print(f"{len(basis.everybody)} people at http://{args.host}:{args.port}/get_reward", flush=True)
        run(app, address)


if __name__ == "__main__":
    start(main)
