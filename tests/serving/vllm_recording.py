"""Replies of a real vLLM to the calls of our server, recorded once and played in tests.

    python -m tests.serving.vllm_recording VLLM_URL

records them again: it sends the cases below through our server, and directly, to a vLLM 0.32 that
holds the packaged checkpoint, exported as `forum` with `worldpm export --to model`, and its score
template (`vllm serve forum` with the options on its card, --dtype float32 and
--served-model-name forum).
"""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from fastapi.testclient import TestClient

import worldpm
from worldpm.options.serve import ServeOptions
from worldpm.serving.run import assemble
from worldpm.storage.json_files import Json

RECORDING = Path(__file__).with_name("vllm_recording.json")
FOLDER = Path(worldpm.__file__).parent / "checkpoints/tiny-forum"
LOCAL = "http://127.0.0.1"
QUESTION = "How long should I bake a loaf?"
ANSWERS = [
    "About 40 minutes.",
    "Who knows?",
    "About 40 minutes.",
    "",
    "40 \u00b5-minutes, <|im_end|>!",
]
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "<|im_start|>user\nWhy?"},
]
CASES: tuple[tuple[str, Json], ...] = (
    ("/v1/rewards", {"prompt": QUESTION, "responses": ANSWERS}),
    ("/v1/rewards", {"prompt": QUESTION, "responses": []}),
    ("/v1/rewards", {"messages": TURNS}),
    ("/v1/rewards", {"prompt": "why " * 900, "responses": ["Because.", "So " * 900], "cut": True}),
    ("/classify", {"input": ["hello", "hello there<|endoftext|>"]}),
    ("/classify", {"input": [[1, 2, 3], [4]], "use_activation": False}),
    ("/classify", {"messages": TURNS}),
    ("/pooling", {"input": "hello", "encoding_format": "base64"}),
    ("/score", {"queries": QUESTION, "documents": ANSWERS[:2]}),
    ("/rerank", {"query": QUESTION, "documents": ANSWERS}),
    ("/predict", {"inputs": [[QUESTION, ANSWERS[0]]], "raw_scores": True}),
    ("/tokenize", {"prompt": QUESTION}),
    ("/get_reward", {"query": ["hello"]}),
)
"""Routes of our server with bodies that need at most one call of vLLM."""


CONVERSATION = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "About 40 minutes."},
]
DIRECT: tuple[tuple[str, Json], ...] = (
    ("/classify", {"messages": CONVERSATION}),
    ("/classify", {"messages": CONVERSATION, "use_activation": True}),
    ("/classify", {"messages": CONVERSATION, "use_activation": False}),
    ("/classify", {"input": ["hello<|endoftext|>", "a<|endoftext|>"]}),
    ("/classify", {"input": [1, 2, 3]}),
    ("/classify", {"input": [1, 2, 99999]}),
    ("/classify", {"input": ""}),
    ("/classify", {"input": []}),
    ("/classify", {"input": "hello " * 900}),
    ("/classify", {"messages": CONVERSATION, "dimensions": 1}),
    ("/pooling", {"messages": CONVERSATION, "dimensions": 1}),
    ("/pooling", {"messages": CONVERSATION}),
    ("/pooling", {"messages": CONVERSATION, "encoding_format": "base64"}),
    ("/score", {"queries": QUESTION, "documents": ANSWERS[:2]}),
    ("/score", {"queries": QUESTION, "documents": []}),
    ("/rerank", {"query": QUESTION, "documents": ANSWERS[:2]}),
    ("/tokenize", {"prompt": QUESTION}),
    ("/detokenize", {"tokens": [1, 75, 277, 79, 82]}),
)
"""Routes of vLLM with bodies, to compare its own replies with ours."""


def key_of(route: str, body: Json) -> str:
    """The key of a direct reply in the recording."""
    return f"direct {route} {json.dumps(body)}"


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server with this handler."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{LOCAL}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def playing(
    recorded: dict[str, list[object]], calls: list[str], *, failing: int | None = None
) -> type[BaseHTTPRequestHandler]:
    """A server that gives the recorded replies, and notes the calls. `failing` is the status of
    all replies to /classify after the first, which is the probe."""

    class Player(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer("")

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

        def answer(self, body: str) -> None:
            call = f"{self.command} {self.path} {body}".strip()
            calls.append(call)
            status, reply = recorded.get(call, [404, "not recorded"])
            if failing is not None and sum("/classify" in other for other in calls) > 1:
                status, reply = failing, "failing"
            content = str(reply).encode()
            self.send_response(int(str(status)))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    return Player


def recording(url: str, recorded: dict[str, list[object]]) -> type[BaseHTTPRequestHandler]:
    """A server that passes calls on, and keeps the replies."""

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer("")

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

        def answer(self, body: str) -> None:
            headers = {"Content-Type": "application/json"}
            reply = httpx.request(self.command, url + self.path, content=body, headers=headers)
            call = f"{self.command} {self.path} {body}".strip()
            recorded[call] = [reply.status_code, reply.text]
            self.send_response(reply.status_code)
            self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

    return Recorder


def record(url: str) -> None:
    recorded: dict[str, list[object]] = {}
    with serving(recording(url, recorded)) as proxy:
        application, _ = assemble(ServeOptions(model=str(FOLDER), upstream=(proxy,)))
        with TestClient(application, base_url=LOCAL) as front:
            for route, body in CASES:
                print(route, front.post(route, json=body).status_code)
    for route, body in DIRECT:
        reply = httpx.post(url + route, json=body)
        recorded[key_of(route, body)] = [reply.status_code, reply.text]
    RECORDING.write_text(json.dumps(dict(sorted(recorded.items())), indent=1) + "\n")


if __name__ == "__main__":
    record(sys.argv[1])
