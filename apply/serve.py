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
import math
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from queries import Reader, policy_tokenizer
from scorer import Scorer, require_unknown, reward_of
from server import LOOPBACK, bound, read_body, require_server, run

import saved_basis
from lore.common import InputError, shortened, start
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


class Job:
    """A request: its queries, of which each becomes a reward or an InputError."""

    def __init__(self, talks, users, answer):
        self.talks = talks
        self.users = users
        self.answer = answer  # a future
        self.results = list(talks)
        self.waiting = deque()
        for number, talk in enumerate(talks):
            if not isinstance(talk, InputError):
                self.waiting.append(number)

    def take(self, count, size):
        """Numbers of the next queries: so many, of so many bytes of text, but one at least."""
        numbers = []
        while self.waiting and len(numbers) < count and (size > 0 or not numbers):
            numbers.append(self.waiting.popleft())
            size -= text_bytes(self.talks[numbers[-1]])
        return numbers

    def end(self):
        """Tell those who asked, unless they have gone."""
        if not self.answer.done():
            self.answer.set_result(self.results)


class Queue:
    """Requests that wait; a part of each is computed together with parts of the others."""

    def __init__(self, scorer, most, size):
        self.scorer = scorer
        self.most = most  # queries at a time
        self.size = size  # bytes of text, about
        self.jobs = []
        self.arrival = asyncio.Event()
        self.thread = ThreadPoolExecutor(1)

    async def ask(self, talks, users):
        """Rewards and InputErrors, one for each query."""
        job = Job(talks, users, asyncio.get_running_loop().create_future())
        if not job.waiting:
            return job.results
        self.jobs.append(job)
        self.arrival.set()
        return await job.answer

    async def work(self):
        while True:
            await self.arrival.wait()
            part = self.next_part()
            talks = [job.talks[number] for job, number in part]
            users = [job.users[number] for job, number in part]
            loop = asyncio.get_running_loop()
            computing = loop.run_in_executor(self.thread, self.scorer.each, talks, users)
            # a fault of ours is told to those who asked, and the server goes on
            (results,) = await asyncio.gather(computing, return_exceptions=True)
            if isinstance(results, BaseException):
                self.fail(part, results)
            else:
                for (job, number), result in zip(part, results):
                    job.results[number] = result
            self.end_jobs()

    def next_part(self):
        """[(job, number of a query)] to compute: of each job alike, those who wait longest first."""
        jobs = self.jobs[: self.most]
        self.jobs = self.jobs[self.most :] + jobs
        part = []
        for job in jobs:
            for number in job.take(max(self.most // len(jobs), 1), self.size // len(jobs)):
                part.append((job, number))
        return part

    def fail(self, part, error):
        for job, _ in part:
            job.waiting.clear()
            if not job.answer.done():
                job.answer.set_exception(error)

    def end_jobs(self):
        unfinished = []
        for job in self.jobs:
            if job.waiting and not job.answer.done():
                unfinished.append(job)
            else:
                job.end()
        self.jobs = unfinished
        if not unfinished:
            self.arrival.clear()


def answer_of(results, unscored, logs=None):
    """What a client gets for rewards and InputErrors. InputError: no query has a reward.

    unscored: the reward of an empty or too long reply, or None; logs: {name: number} for the client's log.
    """
    rewards = [reward_of(result, unscored) for result in results]
    errors = [*map(error_of, range(len(results)), results)]
    if any(errors) and rewards == [None] * len(rewards):
        raise InputError(errors[0])
    answer = {"rewards": rewards, "scores": rewards, "extra_logs": logs or {}}
    return answer | {"errors": errors} if any(errors) else answer


def list_of(item, results, unscored, logs):
    """The same as vLLM's and SGLang's lists, which have numbers alone. InputError: a query has no reward."""
    data = []
    for number, result in enumerate(results):
        reward = reward_of(result, unscored)
        if reward is None:
            raise InputError(error_of(number, result))
        data.append({"index": number} | item(reward))
    return {"object": "list", "data": data} | ({"extra_logs": logs} if logs else {})


def as_class(reward):
    return {"label": None, "probs": [reward], "num_classes": 1}


def as_embedding(reward):
    return {"object": "embedding", "embedding": [reward]}


def error_of(number, result):
    """The line of a query that has no reward, None of another."""
    return one_line(result, f"query {number}") if isinstance(result, InputError) else None


def one_line(error, where=""):
    """An error as one short line, which says where."""
    text = shortened(error)
    text = text if text.startswith(where) else f"{where}: {text}"
    return text.encode("utf-8", "backslashreplace").decode()  # half a character is none


def number_of(unscored):
    """The setting as a number, or None. InputError: it is none that JSON can say."""
    try:
        number = float(unscored or 0)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"--unscored {unscored}: neither a number nor empty")
    return number if unscored else None


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

    def refuse(status, error):
        return JSONResponse({"error": one_line(error)}, status_code=status)

    def read(body, queries_of):
        talks, users = queries_of(json.loads(body))
        count = scorer.place_unknown(talks, users, args.unknown)
        return talks, users, {"unknown_users": count} if args.unknown == "population" else {}

    async def asked(request, queries_of, answer):
        body = await read_body(request, args.max_bytes)
        if body is None:
            return refuse(413, f"more than {args.max_bytes} bytes (--max_bytes)")
        try:
            talks, users, logs = await asyncio.to_thread(read, body, queries_of)
        except (InputError, ValueError, RecursionError) as error:
            return refuse(400, error)
        try:
            return answer(await queue.ask(talks, users), args.unscored, logs)
        except InputError as error:
            return refuse(400, error)

    @app.post("/get_reward")
    async def get_reward(request: Request):
        return await asked(request, reader.queries, answer_of)

    @app.post("/classify")
    async def classify(request: Request):
        return await asked(request, reader.inputs, partial(list_of, as_class))

    @app.post("/v1/embeddings")
    async def embeddings(request: Request):
        return await asked(request, reader.inputs, partial(list_of, as_embedding))

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
    if args.max_queries < 1:
        raise InputError("--max_queries 0: at least one is needed")
    encoder = encoder_of_basis(args.basis, basis, args)
    reader = Reader(encoder, policy_tokenizer(args.policy))
    encoder.load()
    app = application(basis, encoder, reader, args)
    if args.host not in LOOPBACK:
        print(f"--host {args.host}: whoever reaches this machine can ask; there is no password")
    with bound(args.host, args.port) as address:
        print(
            f"{len(basis.everybody)} people at http://{args.host}:{args.port}/get_reward",
            flush=True,
        )
        run(app, address)


if __name__ == "__main__":
    start(main)
