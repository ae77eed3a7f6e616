"""`posttrain vote A B --questions FILE`: a blind side-by-side page on this machine, and what came of it."""

from __future__ import annotations

import json
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from posttrain.app.compare import answers_of, read_prompts
from posttrain.app.screen import make_console, print_json
from posttrain.core.errors import UserError
from posttrain.eval.votes import CRITERIA, a_is_left, is_same, make_vote, outcome, read_votes

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("vote.html")
BODY_MOST = 64 << 10


def main(command) -> int:
    """Serve the page until every question is voted on or Ctrl-C; the votes are in the file either way."""
    options = command.options
    if not options["questions"]:
        raise UserError("there are no questions to vote on", where="--questions", expected="a .txt, .jsonl or .json "
                        "file", fix=f"posttrain vote {' '.join(command.words)} --questions questions.txt")
    from posttrain.app.assistant import how_to_answer

    how = how_to_answer(command)
    path = Path(options["output"])
    read_votes(path)  # a file that is something else is refused before the models are asked
    questions = read_prompts(options["questions"], options["limit"])
    console = make_console(to_stderr=options["json"])
    answers = [[a.text.strip() for a in answers_of(name, questions, command, console, how)] for name in command.words]
    box = Box(path, tuple(command.words), list(zip(questions, *answers, strict=True)), command.settings.seed)
    if box.left():
        serve(box, options["port"], console)
    votes = box.votes()
    if options["json"]:
        print_json({"votes": len(votes), "of": len(box.pairs), "same": box.same, "file": str(path),
                    "models": list(box.models), "criteria": outcome(votes)})
        return 0
    tell(box, votes, console)
    return 0


def serve(box: Box, port: int, console) -> None:
    """The page on loopback until the last vote or Ctrl-C."""
    try:
        server = ThreadingHTTPServer((HOST, port), type("Page", (Handler,), {"box": box}))
    except OSError as e:
        raise UserError("the page cannot be served", where=f"{HOST}:{port}", found=e.strerror or str(e),
                        fix="name another --port, or 0 for any that is free") from None
    server.daemon_threads = True
    box.done.clear()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    console.print(f"vote at http://{HOST}:{server.server_address[1]}/ ({box.left()} to go; Ctrl-C pauses, the same "
                  "command goes on)", markup=False, soft_wrap=True)
    try:
        box.done.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.shutdown()
        server.server_close()


class Box:
    """The questions with both answers, and the file that the votes go to, one line each as it is cast."""

    def __init__(self, path: Path, models: tuple[str, str], pairs: list[tuple[list[dict[str, Any]], str, str]],
                 seed: int):
        self.path, self.models, self.seed = path, models, seed
        self.pairs = [pair for pair in pairs if pair[1] != pair[2]]
        self.same = len(pairs) - len(self.pairs)
        self.lock, self.done = threading.Lock(), threading.Event()

    def votes(self) -> list[dict[str, Any]]:
        """The votes on these questions; the file may hold others."""
        cast = read_votes(self.path)
        return [found for pair in self.pairs if (found := next((v for v in cast if is_same(v, *pair)), None))]

    def left(self) -> int:
        return len(self.pairs) - len(self.votes())

    def next(self) -> int | None:
        """The first question without a vote."""
        cast = read_votes(self.path)
        return next((i for i, pair in enumerate(self.pairs) if not any(is_same(v, *pair) for v in cast)), None)

    def state(self) -> dict[str, Any]:
        """What the page shows: one question, its answers on their sides, and no model's name before the end."""
        number = self.next()
        made: dict[str, Any] = {"of": len(self.pairs), "voted": len(self.votes()), "criteria": CRITERIA}
        if number is None:
            names = dict(zip("ab", self.models, strict=True))
            return made | {"number": None, "outcome": outcome(self.votes()), "models": names}
        messages, a, b = self.pairs[number]
        sides = (a, b) if a_is_left(self.seed, *self.pairs[number]) else (b, a)
        return made | {"number": number, "messages": messages, "left": sides[0], "right": sides[1]}

    def cast(self, cast: Any) -> None:
        """Write one vote; a second one on the same question changes nothing (two clicks, two windows)."""
        number = cast.get("number") if isinstance(cast, dict) else None
        if type(number) is not int or not 0 <= number < len(self.pairs):
            raise UserError("the vote names no question", found=repr(number), expected=f"0 to {len(self.pairs) - 1}")
        pair = self.pairs[number]
        with self.lock:
            if any(is_same(v, *pair) for v in read_votes(self.path)):
                return
            vote = make_vote(*pair, self.models, a_is_left(self.seed, *pair), cast)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(vote, ensure_ascii=False) + "\n")


class Handler(BaseHTTPRequestHandler):
    """GET / is the page, GET /state what to show, POST /vote one vote, POST /end closes the box when it is full."""

    box: Box
    server_version = "posttrain"
    sys_version = ""

    def do_GET(self) -> None:
        if not self._from_here():
            return
        if self.path == "/":
            nonce = secrets.token_urlsafe(16)
            page = PAGE.read_text("utf-8").replace("NONCE", nonce)
            self._send(page.encode(), "text/html; charset=utf-8", policy=(
                f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
                "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"))
        elif self.path == "/state":
            self._json(self.box.state())
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        if not self._from_here():
            return
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Content-Type") != "application/json" or not length.isdigit() or int(length) > BODY_MOST:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        body = self.rfile.read(int(length))
        try:
            if self.path == "/vote":
                self.box.cast(json.loads(body))
            elif self.path == "/end":
                if self.box.left() == 0:
                    self.box.done.set()
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
        except (ValueError, UserError) as e:
            self._json({"error": str(e)}, HTTPStatus.BAD_REQUEST)
            return
        self._json(self.box.state())

    def _from_here(self) -> bool:
        """Whether the request names this server: no page of another origin, and no name that was made to point here."""
        port = self.server.server_address[1]
        hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in hosts and (origin is None or origin.removeprefix("http://") in hosts):
            return True
        self.send_error(HTTPStatus.FORBIDDEN)
        return False

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value, ensure_ascii=False).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, policy: str = "default-src 'none'"
              ) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store"),
                            ("Content-Security-Policy", policy), ("X-Content-Type-Options", "nosniff"),
                            ("Referrer-Policy", "no-referrer")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing: the terminal is for the outcome."""


def tell(box: Box, votes: list[dict[str, Any]], console) -> None:
    """The outcome as lines: counts, B's win rate with its interval, the sign test."""
    same = f"; {box.same} with equal answers were not asked" if box.same else ""
    console.print(f"{len(votes)} of {len(box.pairs)} voted on{same}; votes in {box.path}", markup=False, soft_wrap=True)
    console.print(f"A = {box.models[0]}, B = {box.models[1]}", markup=False, soft_wrap=True)
    for name, found in outcome(votes).items():
        counts = f"{name:<9} A {found['a']}, B {found['b']}, tie {found['tie']}, both bad {found['both bad']}"
        sure = "" if found["b_wins"] is None else (
            f"; B wins {found['b_wins']:.0%} [{found['low']:.0%}, {found['high']:.0%}], sign test p = {found['p']:.3g}")
        console.print(counts + sure, markup=False, soft_wrap=True)
    if len(votes) < len(box.pairs):
        console.print("the same command goes on where you stopped", markup=False)
    elif votes:
        console.print(f"as preference rows: posttrain dpo --data {box.path}", markup=False, soft_wrap=True)
