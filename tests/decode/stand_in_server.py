"""A stand-in for llama.cpp's server: it shows what it was started with, and is ready at once."""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def answer(index: int, prompt: list[int], count: int) -> dict[str, Any]:
    # the first token is the server's K: the one after it the sum of the prompt, and so on
    tokens = [int(option("--spec-draft-n-max")), *(sum(prompt) + i for i in range(count - 1))]
    times = {"prompt_ms": 20.0, "predicted_ms": 100.0 * (index + 1), "draft_n": 4, "draft_n_accepted": index}
    return {"index": index, "tokens": tokens, "timings": times}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.respond(200, {"status": "ok"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["n_predict"] == 13:
            self.respond(400, {"error": "thirteen"})
            return
        assert len(asked["prompt"]) == int(option("--parallel"))
        count = asked["n_predict"] - (asked["n_predict"] == 7)
        found = [answer(i, prompt, count) for i, prompt in enumerate(asked["prompt"])]
        self.respond(200, found[0] if len(found) == 1 else found[::-1])

    def respond(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    if option("--model").endswith("broken.gguf"):
        print("no such model")
        sys.exit(3)
    HTTPServer(("127.0.0.1", int(option("--port"))), Handler).serve_forever()
