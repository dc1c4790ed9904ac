"""apply/session.py: what is written when somebody clicks, and what becomes of it, without and with a browser."""

import json
import os
import random
import re
import resource
import shutil
import time

import pytest
import texts
import torch
from answers import Answers, aside_of, read_answers
from conftest import assert_one_line_error
from fastapi.testclient import TestClient
from pool import Pool, embed_pool, read_pool
from rater import BOTH
from safetensors.torch import load, load_file
from servers import application_of, served
from session import LOOPBACK, Session, application
from test_apply import applied, apply
from tiny import encoder

from lore.common import InputError
from lore.fit.basis import load_basis, save_basis
from lore.fit.likelihood import LOGIT_SCALE
from lore.text.input_rows import read_judgements
from questions import CHOSEN, RANDOM, Posterior, most_telling

LIKED = 4.0  # log-odds by which replies of the pool differ, about, under each basis reward
HOSTILE = (
    '<script>document.title = "taken"</script><img src="http://other.example/x.png" onerror="alert(1)"> sat'
)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu")


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory):
    """Twelve prompts with four candidates."""
    rng = random.Random(0)
    rows = []
    for number in range(12):
        candidates = [texts.text(rng, 4, 30) for _ in range(4)]
        rows.append({"prompt": f"{texts.text(rng, 5)} {number}?", "candidates": candidates})
    rows[0]["candidates"][0] = HOSTILE
    rows[1]["prompt"] = f"{texts.text(rng, 40)} {'a' * 200}?"  # wider than a phone
    rows[2]["candidates"][1] = "b" * 200
    return texts.write(tmp_path_factory.mktemp("pool") / "pool.jsonl", rows)


@pytest.fixture(scope="module")
def telling_basis(basis, model, pool_file, tmp_path_factory):
    """The trained basis with three rewards that tell the replies of the pool apart."""
    saved = load_basis(basis)
    talks = [talk for prompt in read_pool(pool_file) for talk in prompt.talks]
    table = encoder(model).embed(talks)
    axes = torch.linalg.svd(table - table.mean(0), full_matrices=False).Vh[:3]
    spread = (table @ axes.T).std(0)
    V = LIKED * LOGIT_SCALE * axes.T / spread
    path = tmp_path_factory.mktemp("telling") / "basis.safetensors"
    save_basis(path, saved._replace(V=V, mean=torch.full((3,), 1 / 3)))
    return path


@pytest.fixture
def opened(telling_basis, model, pool_file, tmp_path):
    """opened(rule, spread): a Session on SESSIONS of the test's folder; the one before is closed."""
    locks = []

    def make(rule=CHOSEN, spread=0.0):
        while locks:
            os.close(locks.pop())
        basis = load_basis(telling_basis)
        if spread:  # people may have something of their own
            zeros = torch.zeros(len(basis.everybody), len(basis.V))
            E, E_unseen = zeros.tensor_split([len(basis.user_ids)])
            basis = basis._replace(E=E, E_unseen=E_unseen, deviation_spread=spread)
        prompts = read_pool(pool_file)
        table, row_of = embed_pool(tmp_path / "s.vectors", prompts, [], encoder(model))
        pool = Pool(prompts, table, row_of, basis, 0)
        answers = Answers(tmp_path / "s.jsonl")
        locks.append(answers.lock)
        return Session(basis, pool, answers, rule, 0)

    yield make
    for lock in locks:
        os.close(lock)


def answer_all(session, user, likes, count):
    """Somebody answers by the basis reward that they like."""
    for _ in range(count):
        rater = session.rater(user)
        prompt, left, right, _ = rater.question
        scores = session.pool.Z[prompt.rows, likes]
        session.answer(user, session.mark(rater), "left" if scores[left] > scores[right] else "right")


# ---------------------------------------------------------------------------------------- The file ---


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_what_is_clicked_is_what_other_scripts_read(opened, tmp_path, spread):
    session = opened(CHOSEN, spread)
    first = {session.rater(f"new {number}").question[1:3] for number in range(9)}
    assert len(first) == 2  # one pair, which a coin turns round
    save_basis(tmp_path / "basis.safetensors", session.basis)
    answer_all(session, "ann", 0, 8)
    answer_all(session, "bob", 2, 8)
    session.answer("ann", session.state("ann")["mark"], "neither")
    answer_all(session, "ann", 0, 1)
    session.undo("ann", session.state("ann")["mark"])
    for user, likes in (("ann", 0), ("bob", 2)):
        assert session.rater(user).fit.W[0].argmax() == likes
    judgements = read_judgements(tmp_path / "s.jsonl")
    assert [each.user_id for each in judgements] == ["ann"] * 8 + ["bob"] * 8
    applied("adapt", tmp_path / "basis.safetensors", tmp_path / "s.jsonl", tmp_path / "me.safetensors")
    adapted = load_basis(tmp_path / "me.safetensors")
    for user in ("ann", "bob"):
        rewards = adapted.log_odds(session.pool.table, [user])[:, 0]
        assert torch.allclose(session.rater(user).rewards.float(), rewards, atol=0.01)
    told = texts.report(tmp_path / "me.json")["rows"]
    assert session.rater("ann").foretold()["right"] == round(8 * told[0]["leave_one_out"])
    rows = read_answers(tmp_path / "s.jsonl")
    assert {row["shown_left"] for row in rows} == {"chosen", "rejected"}
    assert {row["rule"] for row in rows} == {CHOSEN}
    prompts = [row["prompt"] for row in rows if row["user_id"] == "ann"]
    assert len({*prompts}) == len(prompts)  # none a second time before all others


def test_a_new_start_goes_on_where_it_was_and_undo_asks_again(opened, tmp_path):
    session = opened()
    answer_all(session, "ann", 1, 3)
    session.answer("ann", session.state("ann")["mark"], "neither")
    before = session.state("ann")
    assert opened().state("ANN") == before and before["user"] == "ann" and before["unsure"] == 1
    session = opened()
    session.undo("ann", before["mark"])
    again = session.state("ann")
    assert again["turn"] == 3 and again["unsure"] == 0 and opened().state("ann") == again
    session = opened()
    session.undo("ann", again["mark"])
    content = (tmp_path / "s.jsonl").read_text()
    assert len(content.splitlines()) == 2 and opened().state("ann")["turn"] == 2
    events = [row["event"] for row in texts.read(aside_of(tmp_path / "s.jsonl"))]
    assert events == ["cannot say", "taken back", "taken back"]
    session = opened()
    (tmp_path / "s.jsonl").write_text(content.splitlines()[0] + "\n")  # by somebody else
    assert session.state("ann")["turn"] == 1
    (tmp_path / "s.jsonl").write_text('{"user_id": "ann"}\n' + content)
    with pytest.raises(InputError, match="line 1: not a line of session"):
        session.state("ann")


def test_a_page_that_another_has_overtaken_invents_and_takes_back_nothing(opened):
    session = opened()
    session.answer("ann", session.state("ann")["mark"], "left")
    stale = session.state("ann")["mark"]
    session.undo("ann", stale)
    session.answer("ann", session.state("ann")["mark"], "right")  # a question behind each, as many answered
    now = session.state("ann")
    with pytest.raises(InputError, match="page"):
        session.answer("ann", stale, "left")
    with pytest.raises(InputError, match="page"):
        session.undo("ann", stale)
    assert session.state("ann") == now
    answer_all(session, "bob", 1, 1)
    rows = read_answers(session.answers.path)
    rows[1]["time"] = rows[0]["time"]  # as when two files were put together by hand
    texts.write(session.answers.path, rows)
    session.undo("ann", session.state("ann")["mark"])
    assert read_answers(session.answers.path) == rows[1:]
    assert session.state("ann", 1.0)["shown"] == 1


def test_replies_of_unequal_length_are_each_shown(tmp_path):
    first = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    second = [*first, {"role": "user", "content": "c?"}, {"role": "assistant", "content": "d"}]
    for candidates in ([first, second], [second, first]):
        row = {"messages": first[:1], "candidates": candidates}
        (prompt,) = read_pool(texts.write(tmp_path / "p.jsonl", [row]))
        assert [len(prompt.reply(place)) for place in (0, 1)] == [len(each) - 1 for each in candidates]


@pytest.mark.parametrize("end", ['{"user_id": "ann", "prom', "\0\0\0", '{"user_id": "ann", "prompt": "\\u00'])
def test_a_last_line_that_was_cut_goes_aside(opened, tmp_path, capsys, end):
    answer_all(opened(), "ann", 1, 2)
    whole = (tmp_path / "s.jsonl").read_bytes()
    for path in (tmp_path / "s.jsonl", aside_of(tmp_path / "s.jsonl")):
        with open(path, "ab") as file:
            file.write(end.encode())
    assert opened().state("ann")["answers"] == 2
    assert (tmp_path / "s.jsonl").read_bytes() == whole and "was cut off" in capsys.readouterr().out
    assert [row["line"] for row in texts.read(aside_of(tmp_path / "s.jsonl"))] == [end, end]
    (tmp_path / "s.jsonl").write_bytes(whole.removesuffix(b"\n"))  # as an editor leaves it: an answer
    assert opened().state("ann")["answers"] == 2
    assert (tmp_path / "s.jsonl").read_bytes() == whole


def test_a_full_disk_leaves_no_half_line_and_counts_nothing(opened, tmp_path):
    session = opened()
    answer_all(session, "ann", 1, 2)
    whole = (tmp_path / "s.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
    try:
        with pytest.raises(OSError):
            answer_all(session, "ann", 1, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "s.jsonl").read_bytes() == whole and session.state("ann")["turn"] == 2
    answer_all(session, "ann", 1, 1)
    assert len(read_answers(tmp_path / "s.jsonl")) == 3


def test_answers_that_were_moved_away_are_missed(opened, tmp_path):
    session = opened()
    answer_all(session, "ann", 1, 1)
    (tmp_path / "s.jsonl").rename(tmp_path / "moved.jsonl")
    with pytest.raises(OSError):
        session.state("ann")
    (tmp_path / "moved.jsonl").rename(tmp_path / "s.jsonl")
    assert session.state("ann")["turn"] == 1


def test_an_answer_is_on_the_disk_before_the_page_goes_on(opened, tmp_path, monkeypatch):
    session = opened()
    sizes = []
    monkeypatch.setattr("answers.os.fsync", lambda file: sizes.append(os.fstat(file).st_size))
    answer_all(session, "ann", 1, 1)
    assert sizes == [(tmp_path / "s.jsonl").stat().st_size]


def test_two_sessions_on_one_file_names_and_what_is_not_ours(opened, telling_basis, pool_file, tmp_path):
    session = opened()
    with pytest.raises(InputError, match="in use by another session"):
        Answers(tmp_path / "s.jsonl")
    taken = load_basis(telling_basis).user_ids[0]
    refused = ((taken, "in the basis"), (" ", "a name"), (None, "text"), ("\ud800", "text"), ("a" * 99, "80"))
    for name, words in refused:
        with pytest.raises(InputError, match=words):
            session.rater(name)
    other = texts.write(tmp_path / "o.jsonl", texts.comparisons())
    alike = texts.write(tmp_path / "alike.jsonl", [{"prompt": "a?", "candidates": ["b", "b "]}])
    fresh = tmp_path / "n.jsonl"
    for pool, output, *flags, words in (
        (pool_file, other, "not written by this script"),
        (pool_file, "/dev/full", "/dev/full is no file"),
        (pool_file, tmp_path / "n.jsonl.gz", "give it such a name"),
        (pool_file, fresh, "--rule", "none", "--rule none"),
        (pool_file, fresh, "--token", "a/b", "--token"),
        (pool_file, fresh, "--compare", "nobody has answered"),
        (alike, fresh, "no prompt with two different candidates"),
    ):
        assert_one_line_error(apply("session", telling_basis, pool, output, *flags), words)


def test_rules_are_logged_and_not_told_and_can_be_compared(opened, telling_basis, pool_file, tmp_path):
    session = opened(BOTH)
    for number in 16 * (0, 1, 2):
        answer_all(session, f"person {number}", number, 1)
        rater = session.rater(f"person {number}")  # chosen questions know of answers to such questions alone
        chosen = rater.known[[row["rule"] == CHOSEN for row in rater.rows]]
        numbers, _ = most_telling(session.pool, Posterior.of(session.pool, chosen), allowed=rater.free())
        assert rater.telling(rater.free()) == numbers
    assert {RANDOM, CHOSEN} == {row["rule"] for row in session.answers.rows}
    told = json.dumps(session.state("person 0"))
    assert "rule" not in told and RANDOM not in told
    mark = session.mark(session.rater("person 0"))
    with pytest.raises(InputError, match="already"):  # that page shows another question
        opened(RANDOM).answer("person 0", mark, "left")
    again = ("session", telling_basis, pool_file, tmp_path / "s.jsonl")
    out = applied(*again, "--compare")
    (line,) = [line for line in out.splitlines() if line.split()[0] == "3"]
    assert line.split()[1] == "3" and "chosen - random" in out  # people
    out = applied(*again, "--export", tmp_path / "out")
    exported = load_basis(tmp_path / "out/basis.safetensors")
    assert exported.unseen_ids[-1] == "person 2" and "export.py --basis" in out
    assert len([*(tmp_path / "s.vectors").glob("*.safetensors")]) == 1  # made once
    head = load_file(tmp_path / "out/head_002.safetensors")["score.weight"]
    assert torch.allclose(head, exported.rewards(["person 2"]).T / LOGIT_SCALE)


# -------------------------------------------------------------------------------------- The server ---


def test_other_pages_other_names_and_strangers_are_refused(opened):
    session = opened()
    client = TestClient(application(session, LOOPBACK, ""), "http://127.0.0.1:8001")
    ann = {"user": "ann"}
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not re.search("unsafe|http", page.headers["Content-Security-Policy"])
    for host in ("127.0.0.1:8001", "localhost", "[::1]:8001"):
        state = client.post("/state", json=ann, headers={"Host": host, "Origin": f"http://{host}"})
        assert state.status_code == 200 and state.json()["turn"] == 0 and "Set-Cookie" not in state.headers
    named = ("rebound.example", "rebound.example:8001", "[")  # a name that leads here
    asked_from = ("http://other.example", "null", "http://[")
    for elsewhere in (*({"Host": name} for name in named), *({"Origin": page} for page in asked_from)):
        assert client.post("/state", json=ann, headers=elsewhere).status_code == 403
    for kind, body in (
        ("text/plain", json.dumps(ann)),
        *(("application/json", body) for body in ("", "3", "[]", "[NaN]", '"\\ud800"')),
    ):
        done = client.post("/state", content=body, headers={"Content-Type": kind})
        assert done.status_code == 422
    for asked, status, words in (
        (client.post("/state", json={}), 400, "a name is a text"),
        (client.post("/answer", json=ann | {"mark": "another", "answer": "left"}), 409, "answered already"),
        (client.get("/learned/basis?user=ann"), 400, "nothing is known"),
    ):
        assert asked.status_code == status and words in asked.text
    assert client.post("/answer", json=ann | {"mark": ""}).json()["error"].startswith("an answer is left")
    answer_all(session, "ann", 0, 2)
    assert client.post("/foretold", json=ann).json()["foretold"]["of"] == 2
    head = load(client.get("/learned/head?user=ann").content)["score.weight"]
    assert head.shape == (1, 32) and client.get("/learned/basis?user=ann").status_code == 200


def test_elsewhere_a_token_stands_in_the_address(telling_basis, pool_file, tmp_path):
    flags = ("--basis", telling_basis, "--input", pool_file, "--output", tmp_path / "s.jsonl")
    served_application, said = application_of("session", *flags, "--host", "0.0.0.0")
    token = said.strip().split("/")[-2]
    client = TestClient(served_application, "http://any.example")
    assert len(token) > 20 and client.get(f"/{token}/").status_code == 200
    assert client.get("/").status_code == client.post("/state", json={"user": "ann"}).status_code == 404


# -------------------------------------------------------------------------- The page, in a browser ---


class Page:
    """A browser of its own."""

    def __init__(self, folder):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def of(self, name, what="textContent"):
        """What an element of the page has."""
        return self.driver.execute_script(f"return document.getElementById('{name}').{what}")

    def says(self, words, name="who"):
        """Wait until an element says so."""
        for _ in range(1200):
            if words in self.of(name):
                return
            time.sleep(0.05)
        raise AssertionError(f"not so: {self.of('who')}, {self.of('error')}")

    def press(self, key):
        self.driver.switch_to.active_element.send_keys(key)

    def asked(self):
        """What stands on the page as the question."""
        return [self.of(name) for name in ("asked", "left", "right")]

    def answered(self, key, count):
        """Press a key; then the page shows so many answers."""
        self.press(key)
        self.says(f": {count} answer")

    def fits(self, width):
        """Whether all of it is within so many pixels."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        return self.driver.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.fixture
def pages(tmp_path):
    """pages(address): a new browser that shows it."""
    pytest.importorskip("selenium", reason="selenium is not installed (requirements-dev.txt)")
    if not (BROWSER and DRIVER):
        pytest.skip("no chromium with its chromedriver on this machine")
    made = []

    def make(address):
        made.append(Page(tmp_path / f"browser{len(made)}"))
        made[-1].driver.get(address)
        return made[-1]

    yield make
    for page in made:
        page.driver.quit()


def test_a_whole_session(pages, opened, telling_basis, pool_file, tmp_path):
    session = opened()
    scores = {}
    for prompt in session.pool.prompts:
        for talk, row in zip(prompt.talks, prompt.rows):
            scores[talk[0]["content"], talk[1]["content"]] = session.pool.Z[row]
    sessions = tmp_path / "browser.jsonl"
    with served("session", "--basis", telling_basis, "--input", pool_file, "--output", sessions) as address:
        ann, bob = pages(address), pages(f"{address}/#bob")
        while ann.of("entry", "hidden"):
            time.sleep(0.05)
        ann.press("ann\n")  # by keyboard alone
        clicked = []
        for page, user, likes in 4 * ((ann, "ann", 0), (bob, "bob", 2)):
            page.says(f": {len(clicked) // 2} answers")
            asked = page.asked()
            left, right = [scores[asked[0], reply][likes] for reply in asked[1:]]
            page.answered("1" if left > right else "2", len(clicked) // 2 + 1)
            clicked.append([user, asked[0], *(asked[1:] if left > right else asked[:0:-1])])
        names = ("user_id", "prompt", "chosen", "rejected")
        assert [[row[name] for name in names] for row in read_answers(sessions)] == clicked
        before = ann.asked(), ann.of("mixture"), ann.of("ranks")
        ann.driver.refresh()
        ann.says(": 4 answers")
        assert (ann.asked(), ann.of("mixture"), ann.of("ranks")) == before
        ann.press("0")
        ann.says(": 4 answers, 1 without one")
        # the same person in another tab: what was answered here is not answered there again
        second = pages(f"{address}/#Ann")
        second.says(": 4 answers")
        second.answered("1", 5)
        ann.press("2")
        ann.says("answered already", "error")
        assert ann.asked() == second.asked() and len(read_answers(sessions)) == 9
        ann.answered("u", 4)
        assert len(read_answers(sessions)) == 8 and ann.of("error") == ""
        assert_can_be_used(ann)
        assert len({ann.of("mixture", f"querySelectorAll('.bar')[{k}].style.width") for k in range(3)}) == 3
        assert ann.fits(400) and ann.fits(1400)
        for page in (ann, bob, second):
            assert page.driver.get_cookies() == [] and page.driver.title == "Which reply is better?"
    bob.press("1")
    bob.says("nothing was written down", "error")


def assert_can_be_used(page):
    """Everything that can be used is told to a screen reader, and reached by Tab; texts are texts."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    for tag in ("button", "select", "a"):
        for element in page.driver.find_elements(By.TAG_NAME, tag):
            assert not element.is_displayed() or element.accessible_name, element.get_attribute("outerHTML")
    reached = set()
    for _ in range(30):
        page.press(Keys.TAB)
        reached.add(page.driver.switch_to.active_element.get_attribute("id"))
    assert {"left", "right", "choose-left", "choose-neither", "choose-right", "undo", "prompts"} <= reached
    select = page.driver.find_element(By.ID, "prompts")
    select.click()
    options = [option.get_attribute("value") for option in select.find_elements(By.TAG_NAME, "option")]
    page.driver.execute_script(
        "arguments[0].value = '0'; arguments[0].dispatchEvent(new Event('change'))", select
    )
    page.says(HOSTILE, "ranks")  # a reply full of HTML is its text
    assert sorted(map(int, options)) == [*range(12)]
    assert not page.driver.find_elements(
        By.CSS_SELECTOR, "#ranks img, #ranks script, .reply img, .reply script"
    )
