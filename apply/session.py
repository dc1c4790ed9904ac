"""One person, one page: two replies, a click for the better one, and what the basis makes of the answers.

    pip install -r requirements-serve.txt
    python apply/session.py --basis BASIS --input POOL --output SESSIONS         then open the address it prints
    python apply/session.py --basis BASIS --input POOL --output SESSIONS --compare        chosen against random
    python apply/session.py --basis BASIS --input POOL --output SESSIONS --export FOLDER       when all is done

Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py
        --input, the pool, as best_of_n.py takes it: prompt, or messages; candidates, a list
Writes: --output, JSON lines, one for each answer: user_id, prompt or messages, chosen, rejected, shown_left,
        rule, time; OwnData/prepare.py and adapt.py read them. Beside it .aside.jsonl, what is no comparison
        ("cannot say", answers taken back), and .vectors/, the embedded candidates
        --export: basis.safetensors, as adapt.py writes it, with the people of SESSIONS; a head for each,
        in units of log-odds, as the last shard of export.py's folder
Cost:   one pass of the encoder over the candidates, the first time; then no model is needed, and a click
        costs milliseconds (benchmarks/apply.py).
"""

import base64
import hashlib
import json
import re
import secrets
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from answers import Answers, aside_of, is_ours, read_answers
from arms import arms_table
from outputs import ROWS, require_folder, require_ours, require_output, whole_folder
from pool import Pool, embed_pool, read_pool
from rater import RULES, Rater
from safetensors.torch import save_file
from server import LOOPBACK, bound, require_server, run

import saved_basis
from lore.common import InputError, require, start, written_whole
from lore.fit.basis import save_basis
from lore.fit.likelihood import LOGIT_SCALE
from lore.report.text_tables import print_table
from lore.settings import settings
from lore.text.conversations import SURROGATE, read_json_lines
from lore.text.input_rows import identifier, judgements_of
from questions import CHOSEN, RANDOM, is_one_for_all
from saved_basis import encoder_of_basis, open_basis
from stored_answers import StoredAnswers, require_new, taken_in, to_fit

# ------------------------------------------------------------------------------- settings ---
basis = ""  # a basis of train_basis.py or adapt.py
input = ""  # the pool: rows with a prompt and candidates
output = ""  # where the answers go, and are found again
rule = CHOSEN  # questions: chosen, random, or both, blinded: a coin says it of each
export = ""  # a new folder for what was learned of the people of --output; no page is served
compare = False  # print what chosen questions gave against random ones; no page is served
host = "127.0.0.1"  # loopback: this machine alone can open the page
port = 8001  # of the page
token = ""  # part of the address where the host is another; empty = a new one at each start
seed = 0  # of the sides on which replies stand, and of random questions
# -------------------------------------------------------------------------------------------

BASIS = "basis.safetensors"  # in a folder of what a session has learned
HERE = Path(__file__).resolve().parent
THREADS = 1  # of torch: a click is so little work that more wait for one another
LONGEST_NAME = 80  # characters
LEFT = "left"
RIGHT = "right"
NEITHER = "neither"
HEADERS = {  # of every answer
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class OutOfStep(InputError):
    """A click on a page that does not know what was clicked on another one, or twice."""

    def __init__(self, user, words):
        super().__init__(words)
        self.user = user


# ------------------------------------------------------------------------------------------------
# People and their answers
# ------------------------------------------------------------------------------------------------


class Session:
    """Everybody who answers, as SESSIONS has it."""

    def __init__(self, basis, pool, answers, rule, seed):
        self.basis = basis
        self.pool = pool
        self.answers = answers
        self.rule = rule
        self.seed = seed
        self.raters = {}

    def named(self, name):
        """The id of a name, in the spelling in which it was used first. InputError: no name, one of the basis."""
        require(isinstance(name, str) and not SURROGATE.search(name), "a name is a text")
        user = identifier("the name", {"user_id": name}, "user_id")
        require(user, "a name is needed")
        require(len(user) <= LONGEST_NAME, f"a name has at most {LONGEST_NAME} characters")
        folded = user.casefold()
        is_new = folded not in map(str.casefold, self.basis.everybody)
        require(is_new, f"{user} stands in the basis already; take another name")
        for row in (*self.answers.rows, *self.answers.unsure):
            if row["user_id"].casefold() == folded:
                return row["user_id"]
        return user

    def rater(self, name):
        """The Rater of a name, by what the files say now. InputError: see `named`."""
        self.answers.read()
        user = self.named(name)
        said = self.answers.of(user)
        rater = self.raters.get(user)
        if rater is None or (rater.rows, rater.unsure) != said:
            rater = Rater(user, self.pool, self.basis, *said, self.rule, self.seed)
            self.raters[user] = rater
        return rater

    def answer(self, name, mark, said):
        """Write down which reply somebody prefers, or that they cannot say.

        mark: that of the state in which the question was put. OutOfStep: it is another by now.
        """
        rater = self.rater(name)
        require(said in (LEFT, RIGHT, NEITHER), f"an answer is {LEFT}, {RIGHT} or {NEITHER}")
        if mark != self.mark(rater):
            words = "this was answered already, here or on another page; here is what comes next"
            raise OutOfStep(rater.user, words)
        require(rater.question, "everything has been asked")
        prompt, left, right, rule = rater.question
        row = {"user_id": rater.user} | prompt.carried
        replies = prompt.candidates[left], prompt.candidates[right]
        if said == NEITHER:
            self.answers.pass_over(row | {"rule": rule} | dict(zip((LEFT, RIGHT), replies)))
            return
        sides = ("chosen", "rejected") if said == LEFT else ("rejected", "chosen")
        self.answers.choose(row | dict(zip(sides, replies)) | {"shown_left": sides[0], "rule": rule})

    def undo(self, name, mark):
        """Take back the last answer of somebody. OutOfStep: see `answer`."""
        rater = self.rater(name)
        if mark != self.mark(rater):
            raise OutOfStep(rater.user, "another page has gone on; here is where it is")
        require(rater.turn, "there is nothing to take back")
        self.answers.take_back(rater.last)

    def mark(self, rater):
        """Of the last answer and of the question as it is put: another one where either is another."""
        last = rater.last["time"] if rater.turn else ""
        shown = rater.question and rater.question.shown
        return hashlib.sha256(json.dumps([last, shown]).encode()).hexdigest()

    def state(self, name, shown=None):
        """All that the page shows; shown: number of the prompt whose candidates are ranked, None = the first."""
        rater = self.rater(name)
        order, gains = rater.prompts_in_order()
        shown = order[order.index(shown)] if shown in order else order[0]
        return {
            "user": rater.user,
            "turn": rater.turn,
            "mark": self.mark(rater),
            "answers": len(rater.rows),
            "unsure": len(rater.unsure),
            "question": rater.question and rater.question.shown,
            "mixture": rater.fit.W[0].tolist(),
            "spread": rater.fit.spread[0].tolist(),
            "population": self.basis.prior.mean.tolist(),
            "own": self.basis.deviation_spread > 0,
            "order": order,
            "gains": gains,
            "shown": shown,
            "ranking": self.ranking(rater, shown),
        }

    def ranking(self, rater, shown):
        """The candidates of a prompt from the person's best to their worst, with the population's places."""
        prompt = self.pool.prompts[shown]
        population = self.pool.population[prompt.rows]
        place = population.argsort(descending=True, stable=True).argsort().tolist()
        rewards = rater.rewards[prompt.rows]
        best = rewards.max().item()
        lines = []
        for number in rewards.argsort(descending=True, stable=True).tolist():
            line = {"reply": prompt.reply(number), "population": place[number] + 1}
            lines.append(line | {"behind": best - rewards[number].item()})
        return {"asked": prompt.asked, "lines": lines}


# ------------------------------------------------------------------------------------------------
# The page
# ------------------------------------------------------------------------------------------------


def page_and_policy():
    """The page with its stylesheet in it, and the policy that lets nothing else run or be fetched."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    html = (HERE / "session.html").read_text(encoding="utf-8").replace("/* page.css */", style)
    allowed = {}
    for tag in ("script", "style"):
        content = html.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        allowed[tag] = f"{tag}-src 'sha256-{digest}'"
    closed = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return html, f"{closed}; connect-src 'self'; img-src data:; {allowed['script']}; {allowed['style']}"


def is_of_the_page(request, names):
    """Whether a request comes from the page itself, and not from one elsewhere.

    names: under which this machine may be asked, None = any: a page elsewhere can point a name of its own
    at this machine, or have a browser post to it.
    """
    host = request.headers.get("host", "")
    try:
        called = urlsplit(f"//{host}").hostname
        origin = urlsplit(request.headers.get("origin", f"//{host}")).netloc
    except ValueError:  # an address in brackets that is none
        return False
    return (names is None or called in names) and origin == host


def application(session, names, prefix):
    """The FastAPI application. Its functions run one after another: a person is changed by one at a time."""
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, Response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    html, policy = page_and_policy()

    @app.middleware("http")
    async def guarded(request, answer):
        response = JSONResponse({"error": "not asked by the page itself"}, 403)
        if is_of_the_page(request, names):
            response = await answer(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(InputError)
    async def refuse(_, error):
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def misread(*_):  # FastAPI's own shows what was sent, which JSON may not be able to say: NaN
        return JSONResponse({"error": "not what the page asks"}, 422)

    @app.exception_handler(OutOfStep)
    async def catch_up(_, error):
        return JSONResponse({"error": str(error), "state": session.state(error.user)}, 409)

    @app.exception_handler(OSError)
    async def tell(_, error):
        words = f"not written: {error.strerror or error}; it does not count, try again"
        return JSONResponse({"error": words}, 507)

    async def state(said: dict):
        return session.state(said.get("user"), said.get("shown"))

    async def answer(said: dict):
        session.answer(said.get("user"), said.get("mark"), said.get("answer"))
        return await state(said)

    async def undo(said: dict):
        session.undo(said.get("user"), said.get("mark"))
        return await state(said)

    async def foretold(said: dict):
        return {"foretold": session.rater(said.get("user")).foretold()}

    async def prompts(_: dict):
        return {"prompts": [prompt.title for prompt in session.pool.prompts]}

    for act in (state, answer, undo, foretold, prompts):
        app.post(f"{prefix}/{act.__name__}")(act)

    @app.get(f"{prefix}/")
    async def page():
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.get(f"{prefix}/learned/{{kind}}")
    async def learned(kind: Literal["basis", "head"], user: str):
        rater = session.rater(user)
        require(rater.rows, "nothing is known yet")
        with tempfile.TemporaryDirectory() as folder:
            write_people(folder, session.basis, session.pool, rater.judgements)
            (file,) = Path(folder).glob(f"{kind}*")
            content = file.read_bytes()
        attachment = {"Content-Disposition": f'attachment; filename="{kind}.safetensors"'}
        return Response(content, media_type="application/octet-stream", headers=attachment)

    return app


# ------------------------------------------------------------------------------------------------
# The script
# ------------------------------------------------------------------------------------------------


def require_sessions(path, read):
    """Before answers are appended to a file. InputError: it cannot be, or is of something else."""
    aside = [str(aside_of(path))] if path else []
    require_output(path, read, [suffix for suffix in ROWS if suffix], aside)
    require_ours(path, lambda file: is_ours(next(read_json_lines(file))[1]))


def write_people(folder, basis, pool, judgements):
    """FOLDER/basis.safetensors, as adapt.py writes it, and a head for each person of Judgements on a pool.

    A head is score.weight (1, d), V w + e over LOGIT_SCALE: the last shard of export.py's folder. -> rows of
    adapt.py's table. InputError: somebody stands in the basis by now.
    """
    require_new(judgements, basis, "the basis")
    judgements = to_fit(judgements)
    answers = StoredAnswers.of(judgements, pool.table, *pool.rows_of(judgements).T)
    with_people, said = taken_in(basis, answers)
    save_basis(Path(folder) / BASIS, with_people)
    for number, row in enumerate(said):
        head = with_people.rewards([row["user_id"]]).T / LOGIT_SCALE  # (1, d)
        header = {"format": "pt", "user_id": row["user_id"]}
        with written_whole(Path(folder) / f"head_{number:03d}.safetensors") as file:
            save_file({"score.weight": head}, file, header)
    return said


def export_people(args, basis, pool, judgements):
    with whole_folder(args.export) as folder:
        said = write_people(folder, basis, pool, judgements)
    path = Path(args.export) / BASIS
    print(f"{len(said)} people are in {path}, a head for each beside it; for a whole checkpoint of one:")
    named = shlex.join(["--basis", str(path), "--user", said[0]["user_id"]])
    print(f"python apply/export.py {named} --output FOLDER")


def serve(session, args):
    prefix = ""
    names = LOOPBACK
    if args.host not in LOOPBACK:
        prefix = f"/{args.token or secrets.token_urlsafe(16)}"
        names = None
    app = application(session, names, prefix)
    torch.set_num_threads(THREADS)
    with bound(args.host, args.port) as address:
        name = f"[{args.host}]" if ":" in args.host else args.host
        print(f"the page is http://{name}:{args.port}{prefix}/", flush=True)
        run(app, address)


def main():
    args = settings(globals(), saved_basis)
    basis = open_basis(args.basis)
    require(args.rule in RULES, f"--rule {args.rule}: {', '.join(RULES)}")
    plain = re.fullmatch(r"[\w-]*", args.token, re.ASCII) is not None
    require(plain, "--token: letters, digits, - and _ alone, since it is a part of the address")
    require(not (args.compare and args.export), "--compare and --export: one of the two")
    require_sessions(args.output, [args.basis, args.input])
    prompts = read_pool(args.input)
    reads = args.compare or args.export
    if args.export:
        require_folder(args.export)
    if not reads:
        require_server(args.port)
    answers = None if reads else Answers(args.output)
    rows = read_answers(args.output) if reads else answers.rows
    if args.rule != RANDOM and is_one_for_all(basis.prior):
        one = f"{args.basis} has one reward for everybody"
        print(f"{one}: no question tells more than another; --rule random")
        args.rule = RANDOM
    numbered = enumerate(rows, 1)
    judgements = judgements_of((f"{args.output}, line {number}", row) for number, row in numbered)
    encoder = encoder_of_basis(args.basis, basis, args)
    folder = Path(args.output).with_suffix(".vectors")
    table, row_of = embed_pool(folder, prompts, judgements, encoder)
    pool = Pool(prompts, table, row_of, basis, args.seed)
    print(f"{len(prompts)} prompts, {len(table)} replies, {len(pool.pairs)} pairs to ask about")
    if args.compare:
        print_table(arms_table(rows, pool, basis, args.seed))
    elif args.export:
        export_people(args, basis, pool, judgements)
    else:
        serve(Session(basis, pool, answers, args.rule, args.seed), args)


if __name__ == "__main__":
    start(main)
