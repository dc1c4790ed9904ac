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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from answers import Answers, aside_of, is_ours, read_answers
from arms import arms_table
from outputs import ROWS, require_folder, require_ours, require_output, whole_folder
from pool import Pool, embed_pool, read_pool
from rater import RULES, Rater
from server import LOOPBACK, bound, names_of_loopback, read_body, refusal, require_server, run

import saved_basis
from lore.common import InputError, require, start
from lore.report.text_tables import print_table
from lore.settings import settings
from lore.text.conversations import SURROGATE, read_json_lines
from lore.text.input_rows import identifier, judgements_of
from questions import CHOSEN, RANDOM, is_one_for_all
from saved_basis import encoder_of_basis, open_basis
from stored_answers import BASIS, write_people

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

HERE = Path(__file__).resolve().parent
THREADS = 1  # of torch: a click is so little work that more wait for one another
MOST_BYTES = 10_000  # of a request
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
        if folded in {each.casefold() for each in self.basis.everybody}:
            raise InputError(f"{user} stands in the basis already; take another name")
        for row in (*self.answers.rows, *self.answers.unsure):
            if row["user_id"].casefold() == folded:
                return row["user_id"]
        return user

    def rater(self, name):
        """The Rater of a name. InputError: see `named`."""
        if self.answers.is_changed():
            self.answers.read()
            self.raters = {}
        user = self.named(name)
        if user not in self.raters:
            rows, unsure = self.answers.of(user)
            self.raters[user] = Rater(user, self.pool, self.basis, rows, unsure, self.rule, self.seed)
        return self.raters[user]

    def answer(self, name, mark, said):
        """Write down which reply somebody prefers, or that they cannot say.

        mark: that of the state in which the question was put. OutOfStep: it is another by now.
        """
        rater = self.rater(name)
        require(said in (LEFT, RIGHT, NEITHER), f"an answer is {LEFT}, {RIGHT} or {NEITHER}")
        if mark != self.mark(rater):
            raise OutOfStep("this was answered already, here or on another page; here is what comes next")
        question = rater.question
        require(question is not None, "everything has been asked")
        prompt = self.pool.prompts[self.pool.prompt[question.pair]]
        left, right = sides(self.pool.places[question.pair], question.turned)
        if said == NEITHER:
            row = {"user_id": rater.user} | prompt.carried | {"rule": question.rule}
            row |= {LEFT: prompt.candidates[left], RIGHT: prompt.candidates[right]}
            rater.pass_over(self.answers.pass_over(row))
            return
        chosen, rejected = (left, right) if said == LEFT else (right, left)
        row = prompt.answer(rater.user, chosen, rejected)
        row |= {"shown_left": "chosen" if said == LEFT else "rejected", "rule": question.rule}
        rater.learn([self.answers.choose(row)])

    def undo(self, name, mark):
        """Take back the last answer of somebody. OutOfStep: see `answer`."""
        rater = self.rater(name)
        if mark != self.mark(rater):
            raise OutOfStep("another page has gone on; here is where it is")
        require(rater.turn, "there is nothing to take back")
        self.answers.take_back(rater.last)
        del self.raters[rater.user]

    def mark(self, rater):
        """Of the last answer and of the question as it is put: another one where either is another."""
        last = rater.last["time"] if rater.turn else ""
        return hashlib.sha256(json.dumps([last, self.question(rater)]).encode()).hexdigest()

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
            "question": self.question(rater),
            "mixture": rater.fit.W[0].tolist(),
            "spread": rater.fit.spread[0].tolist(),
            "population": self.basis.prior.mean.tolist(),
            "own": self.basis.deviation_spread > 0,
            "order": order,
            "gains": gains,
            "shown": shown,
            "ranking": self.ranking(rater, shown),
        }

    def question(self, rater):
        """The question as it is put, without the rule that it was chosen by."""
        if rater.question is None:
            return None
        prompt = self.pool.prompts[self.pool.prompt[rater.question.pair]]
        left, right = sides(self.pool.places[rater.question.pair], rater.question.turned)
        return {"asked": prompt.asked, LEFT: prompt.reply(left), RIGHT: prompt.reply(right)}

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


def sides(pair, turned):
    """Places of the replies that stand left and right."""
    left, right = pair
    return (right, left) if turned else (left, right)


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


def application(session, hosts, prefix):
    """The FastAPI application. Its functions run one after another: a person is changed by one at a time."""
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    html, policy = page_and_policy()

    @app.middleware("http")
    async def guarded(request, answer):
        reason = refusal(request, hosts)
        response = await answer(request) if reason is None else refuse(403, reason)
        response.headers.update(HEADERS)
        return response

    def refuse(status, error, **more):
        return JSONResponse({"error": str(error), **more}, status_code=status)

    async def asked(request):
        """The JSON object of a request. InputError: something else."""
        body = await read_body(request, MOST_BYTES)
        require(body is not None, f"more than {MOST_BYTES} bytes")
        try:
            said = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InputError("broken JSON") from error
        require(isinstance(said, dict), "no JSON object")
        return said

    def answering(act):
        """A function of what the page says, as an end point."""

        async def end_point(request: Request):
            said = {}
            try:
                said = await asked(request)
                return JSONResponse(act(said))
            except OutOfStep as error:
                return refuse(409, error, state=session.state(said["user"]))
            except InputError as error:
                return refuse(400, error)
            except OSError as error:
                return refuse(507, f"not written: {error.strerror or error}; it does not count, try again")

        return end_point

    def state(said):
        return session.state(said.get("user"), said.get("shown"))

    def answer(said):
        session.answer(said.get("user"), said.get("mark"), said.get("answer"))
        return state(said)

    def undo(said):
        session.undo(said.get("user"), said.get("mark"))
        return state(said)

    def foretold(said):
        return {"foretold": session.rater(said.get("user")).foretold()}

    def prompts(said):
        return {"prompts": [prompt.title for prompt in session.pool.prompts]}

    for act in (state, answer, undo, foretold, prompts):
        app.post(f"{prefix}/{act.__name__}")(answering(act))

    @app.get(f"{prefix}/")
    async def page():
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.get(f"{prefix}/learned/{{kind}}")
    async def learned(kind: str, user: str):
        try:
            rater = session.rater(user)
            require(rater.rows, "nothing is known yet")
            require(kind in ("basis", "head"), "a basis or a head")
            with tempfile.TemporaryDirectory() as folder:
                write_people(folder, session.basis, session.pool, rater.rows)
                file = next(Path(folder).glob("head_*" if kind == "head" else "basis.safetensors"))
                content = file.read_bytes()
        except InputError as error:
            return refuse(400, error)
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


def conversations_of(path, rows):
    """Both conversations of each row of SESSIONS."""
    talks = []
    for said in judgements_of((f"{path}, line {number}", row) for number, row in enumerate(rows, 1)):
        talks += [said.chosen, said.rejected]
    return talks


def export_people(args, basis, pool, rows):
    with whole_folder(args.export) as folder:
        said = write_people(folder, basis, pool, rows)
    path = Path(args.export) / BASIS
    print(f"{len(said)} people are in {path}, a head for each beside it; for a whole checkpoint of one:")
    named = shlex.join(["--basis", str(path), "--user", said[0]["user_id"]])
    print(f"python apply/export.py {named} --output FOLDER")


def serve(session, args):
    prefix = ""
    hosts = names_of_loopback(args.port)
    if args.host not in LOOPBACK:
        prefix = f"/{args.token or secrets.token_urlsafe(16)}"
        hosts = None
    app = application(session, hosts, prefix)
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
        print(
            f"{args.basis} has one reward for everybody: no question tells more than another; --rule random"
        )
        args.rule = RANDOM
    encoder = encoder_of_basis(args.basis, basis, args)
    folder = Path(args.output).with_suffix(".vectors")
    table, row_of = embed_pool(folder, prompts, conversations_of(args.output, rows), encoder)
    pool = Pool(prompts, table, row_of, basis, args.seed)
    print(f"{len(prompts)} prompts, {len(table)} replies, {len(pool.pairs)} pairs to ask about")
    if args.compare:
        print_table(arms_table(rows, pool, basis, args.seed))
    elif args.export:
        export_people(args, basis, pool, rows)
    else:
        serve(Session(basis, pool, answers, args.rule, args.seed), args)


if __name__ == "__main__":
    start(main)
