"""A reward server for policy training: POST /get_reward, as OpenRLHF and verl send it, user ids in labels.

    pip install -r requirements-serve.txt
    python apply/serve.py --basis BASIS
    curl 127.0.0.1:8000/get_reward -H 'Content-Type: application/json' \\
        -d '{"query": ["Name a fruit. Quince."], "prompts": ["Name a fruit. "], "labels": ["ann"]}'

Takes:  {"query": [..], "prompts": [..], "labels": [..]}, the last two as long as the first, or not there.
        A query is a text that the model's own chat template has made, or a list of messages, or plain
        text that begins with its prompt; a label is a user id, or {"user_id": id}, or nothing: the
        population.
Gives:  {"rewards": [..], "scores": [..], "extra_logs": {}}, log-odds as of score.py; 400 with
        {"error": one line} for what cannot be scored, 413 for more than --max_bytes.
Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py
Cost:   requests that come while others are computed wait, and are then computed together.
"""

import asyncio
import json
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import saved_basis
from lore.common import InputError, start
from lore.settings import settings
from lore.text.conversations import distinct, exchange
from lore.text.input_rows import finished, identifier, messages_of
from lore.text.throughput import Tally
from lore.text.tokens import RENDERED
from saved_basis import encoder_of_basis, open_basis

# ------------------------------------------------------------------------------- settings ---
basis = ""  # a basis of train_basis.py or adapt.py
host = "127.0.0.1"  # loopback: this machine alone can ask; there is no password
port = 8000  # of the server
max_bytes = 8_000_000  # of a request; more is refused before it is read
max_queries = 4096  # that are computed together
# -------------------------------------------------------------------------------------------

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Reader:
    """Requests to conversations."""

    def __init__(self, encoder):
        self.tokenizer = encoder.tokenizer
        self.between = None  # what a chat template writes between prompt and reply
        if encoder.pooling == "last":
            rendered = encoder.tokeniser.render(exchange("PROMPT", "REPLY"))
            self.between, self.end = rendered.partition("PROMPT")[2].split("REPLY", 1)

    def conversations(self, request):
        """(conversations, user ids or None) of a request. InputError: what it cannot mean."""
        if not isinstance(request, dict) or not isinstance(request.get("query"), list):
            raise InputError("a JSON object with a list query is needed")
        queries = request["query"]
        prompts = self.beside(request, "prompts", len(queries))
        labels = self.beside(request, "labels", len(queries))
        talks = []
        users = []
        for number, (query, prompt, label) in enumerate(zip(queries, prompts, labels)):
            place = f"query {number}"
            talks.append(self.conversation(place, query, prompt))
            users.append(user_of(place, label))
        return talks, users

    def beside(self, request, name, count):
        """A list as long as the queries; of nothing where the request has none."""
        values = request.get(name)
        if values is None:
            return [None] * count
        if not isinstance(values, list) or len(values) != count:
            raise InputError(f"{name} is no list of {count}, as query is")
        return values

    def conversation(self, place, query, prompt):
        if isinstance(query, list):
            return finished(place, messages_of(place, query, "query"), "query")
        if not isinstance(query, str) or not query.strip():
            raise InputError(f"{place} is neither a text nor a list of messages")
        if self.between and self.between in query:
            head, _, reply = query.rpartition(self.between)
            text = head + self.between + self.without_end(reply) + self.end
            return [{"role": RENDERED, "content": text}]
        if isinstance(prompt, str) and prompt.strip() and query.startswith(prompt):
            talk = exchange(prompt.strip(), query[len(prompt) :].strip())
            return finished(place, messages_of(place, talk, "query"), "query")
        raise InputError(
            f"{place} is not of this model's chat template, and does not begin with its prompt"
        )

    def without_end(self, reply):
        """A reply without the tokens that a template or a sampler has left behind it."""
        special = [self.end.strip(), *self.tokenizer.all_special_tokens]
        before = None
        while before != reply:
            before = reply
            reply = reply.rstrip()
            for token in special:
                reply = reply.removesuffix(token)
        return reply


def user_of(place, label):
    """The user id of a label: text or number, or user_id of an object or of its JSON text."""
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = json.loads(label)
        except ValueError as error:
            raise InputError(f"{place}: its label is broken JSON") from error
    if label is None:
        return None
    if not isinstance(label, dict):
        label = {"user_id": label}
    if "user_id" not in label:
        raise InputError(f"{place}: its label is an object without a user_id")
    if label["user_id"] in (None, ""):
        return None
    user = identifier(place, label, "user_id")
    if user is None:
        raise InputError(f"{place}: its label is NaN")
    return user


class Scorer:
    """Conversations to rewards."""

    def __init__(self, basis, encoder):
        self.basis = basis
        self.encoder = encoder

    def rewards(self, talks, users):
        """Log-odds of each conversation for its user, None = the population: a list of floats."""
        unique, numbers = distinct(talks)
        with Tally(0) as tally:
            table = self.encoder.embed_counted(unique, tally)[numbers]
        rewards = self.basis.population(table)
        personal = [row for row, user in enumerate(users) if user is not None]
        named = [users[row] for row in personal]
        rewards[personal] = self.basis.log_odds_by_row(table[personal], named)
        return rewards.tolist()

    def together(self, jobs):
        """Rewards, or an InputError, for each (talks, users) of a list, in one pass of the encoder."""
        talks = []
        users = []
        for own_talks, own_users in jobs:
            talks += own_talks
            users += own_users
        try:
            rewards = iter(self.rewards(talks, users))
        except InputError as error:
            if len(jobs) == 1:
                return [error]
            return [
                self.together([job])[0] for job in jobs
            ]  # so that it is told to whom it belongs
        return [[next(rewards) for _ in own_talks] for own_talks, _ in jobs]


class Queue:
    """Requests that wait, computed together when the encoder is free."""

    def __init__(self, scorer, most):
        self.scorer = scorer
        self.most = most
        self.waiting = asyncio.Queue()

    async def ask(self, talks, users):
        answer = asyncio.get_running_loop().create_future()
        await self.waiting.put((talks, users, answer))
        return await answer

    async def work(self):
        while True:
            batch = [await self.waiting.get()]
            count = len(batch[0][0])
            while not self.waiting.empty() and count < self.most:
                batch.append(self.waiting.get_nowait())
                count += len(batch[-1][0])
            jobs = [(talks, users) for talks, users, _ in batch]
            computing = asyncio.to_thread(self.scorer.together, jobs)
            # a fault of ours is told to those who asked, and the server goes on
            (found,) = await asyncio.gather(computing, return_exceptions=True)
            if isinstance(found, BaseException):
                found = [found] * len(batch)
            for (_, _, answer), rewards in zip(batch, found):
                if answer.cancelled():
                    continue
                if isinstance(rewards, BaseException):
                    answer.set_exception(rewards)
                else:
                    answer.set_result(rewards)


async def read_body(request, most):
    """Bytes of a request; None where there are more than `most`."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            return None
    return body


def application(basis, encoder, max_bytes, max_queries):
    """The FastAPI application."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

    reader = Reader(encoder)
    queue = Queue(Scorer(basis, encoder), max_queries)

    @asynccontextmanager
    async def lifespan(_):
        worker = asyncio.create_task(queue.work())
        yield
        worker.cancel()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None)

    def refuse(status, text):
        printable = text.encode("utf-8", "backslashreplace").decode()  # half a character is none
        return JSONResponse({"error": printable}, status_code=status)

    @app.post("/get_reward")
    async def get_reward(request: Request):
        body = await read_body(request, max_bytes)
        if body is None:
            return refuse(413, f"more than {max_bytes} bytes (--max_bytes)")
        try:
            talks, users = reader.conversations(json.loads(body))
            basis.positions([user for user in users if user is not None])
            rewards = await queue.ask(talks, users) if talks else []
        except (InputError, ValueError, RecursionError) as error:
            return refuse(400, str(error).splitlines()[0])
        return {"rewards": rewards, "scores": rewards, "extra_logs": {}}

    @app.get("/health")
    async def health():
        return {"people": len(basis.everybody), "rank": basis.V.shape[1], "model": encoder.name}

    return app


def bound(host, port):
    """A socket that has the address. InputError: it cannot be had, as when another server does."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error.strerror or error}") from error


def main():
    args = settings(globals(), saved_basis)
    basis = open_basis(args.basis)
    if not 0 < args.port < 2**16:
        raise InputError(f"--port {args.port}: between 1 and 65535")
    try:
        import uvicorn
    except ImportError as error:
        raise InputError(
            f"{error.name} is missing: pip install -r requirements-serve.txt"
        ) from error
    encoder = encoder_of_basis(args.basis, basis, args)
    encoder.load()
    app = application(basis, encoder, args.max_bytes, args.max_queries)
    if args.host not in LOOPBACK:
        print(f"--host {args.host}: whoever reaches this machine can ask; there is no password")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with bound(args.host, args.port) as address:
        print(
            f"{len(basis.everybody)} people at http://{args.host}:{args.port}/get_reward",
            flush=True,
        )
        server.run([address])


if __name__ == "__main__":
    start(main)
