"""A server under faults: `python lab/serving.py overload|kills|attacks MODEL`.

overload: rate of answers at two and ten times the server's capacity, as a share of the rate without
refusals. Rounds alternate, and server and clients have one core each. kills: kill -9 under load,
100 times; the log must contain every acknowledged decision, and its chain must be intact. attacks:
the most expensive bodies of 4 MB on every route: bytes of the replies, seconds of /health, memory.
"""

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from worldpm.serving import decision_files
from worldpm.serving.decisions import ConversationInputs

SECONDS, ROUNDS, KILLS, WORKERS = 20, 5, 100, 512
TIMES = (2, 10)
STEADY = {"4 responses": 16, "16 responses": 4}
"""Clients that send the next request after each answer: they keep the server busy, and it refuses
none."""
CLIENT_CORE, SERVER_CORE = 0, 1
PROMPT = "word " * 20
BODY = {"prompt": PROMPT, "responses": [f"answer {number} " * 15 for number in range(16)]}
BODIES = {
    "4 responses": {**BODY, "responses": BODY["responses"][:4]},
    "16 responses": BODY,
}
ROUTES = (
    *("/v1/rewards", "/v1/explain", "/v1/route", "/classify", "/pooling", "/score", "/rerank"),
    *("/tokenize", "/v1/embeddings", "/get_reward", "/predict"),
)
ATTACK_BYTES = 4_100_000
ONE_CORE = {"OMP_NUM_THREADS": "1"}


@contextmanager
def server(model: str, *words: object) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "worldpm.cli",
        "serve",
        model,
        "--port",
        str(port),
        *map(str, words),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | ONE_CORE)
    os.sched_setaffinity(process.pid, {SERVER_CORE})
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            httpx.get(f"{url}/ready")
            break
        except httpx.TransportError:
            time.sleep(0.05)
    try:
        yield process, url
    finally:
        process.kill()
        process.wait()


def memory_mib(process: subprocess.Popen[bytes], *, peak: bool = False) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    name = "VmHWM" if peak else "VmRSS"
    return int(next(line.split()[1] for line in status.splitlines() if name in line)) // 1024


class Load:
    """Requests on many connections: at a fixed rate that does not depend on the answers, or each
    after the answer to the previous request."""

    def __init__(self, url: str, name: str, per_second: float | None) -> None:
        self._address = url.removeprefix("http://").split(":")
        self._per_second = per_second
        self._workers = STEADY[name] if per_second is None else WORKERS
        body = json.dumps(BODIES[name]).encode()
        self._request = (
            b"POST /v1/rewards HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.answers: Counter[int] = Counter()
        self.seconds: list[float] = []
        """Latencies of the answers with rewards, from the time when the request was due."""

    async def run(self) -> float:
        """Answers with rewards per second, without the first quarter of the time."""
        due: asyncio.Queue[float] = asyncio.Queue()
        tasks = [asyncio.create_task(self._work(due)) for _ in range(self._workers)]
        if self._per_second is not None:
            tasks.append(asyncio.create_task(self._offer(due, 1 / self._per_second)))

        await asyncio.sleep(SECONDS / 4)
        before, started = self.answers[200], time.monotonic()
        await asyncio.sleep(SECONDS * 3 / 4)
        rate = (self.answers[200] - before) / (time.monotonic() - started)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return rate

    async def _offer(self, due: "asyncio.Queue[float]", interval: float) -> None:
        at = time.monotonic()
        while True:
            due.put_nowait(at)
            at += interval
            await asyncio.sleep(max(0, at - time.monotonic()))

    async def _work(self, due: "asyncio.Queue[float]") -> None:
        connection = None
        while True:
            at = time.monotonic() if self._per_second is None else await due.get()
            try:
                connection = connection or await asyncio.open_connection(*self._address)
                status = await self._ask(*connection)
            except (OSError, EOFError):
                status, connection = 0, None
            self.answers[status] += 1
            if status == 200:
                self.seconds.append(time.monotonic() - at)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = [
            int(line.split(b":")[1])
            for line in head.lower().splitlines()
            if line.startswith(b"content-length:")
        ]
        await reader.readexactly(length)
        return int(head[9:12])


def overload(model: str) -> None:
    os.sched_setaffinity(0, {CLIENT_CORE})
    words = ("--queue-tokens", 32_768, "--deadline-seconds", 10)
    for name in BODIES:
        with server(model, *words) as (process, url):
            asyncio.run(Load(url, name, None).run())
            shares: dict[int, list[float]] = {times: [] for times in TIMES}
            for _ in range(ROUNDS):
                free = Load(url, name, None)
                steady = asyncio.run(free.run())
                assert set(free.answers) == {200}, free.answers
                print(f"{name}: {steady:.1f} rewarded requests/s without refusals")
                for times in TIMES:
                    load = Load(url, name, times * steady)
                    shares[times].append(asyncio.run(load.run()) / steady)
                    late = sorted(load.seconds)[int(0.99 * len(load.seconds))]
                    print(
                        f"  {times:>2} times: {shares[times][-1]:.0%} of that rate; 99 % within"
                        f" {late:.2f} s; {dict(load.answers)}; {memory_mib(process)} MiB",
                        flush=True,
                    )
                    # Wait until the queue is empty
                    time.sleep(5)
            for times, of_steady in shares.items():
                print(f"{name}, {times} times: median {statistics.median(of_steady):.0%}")


def attack_bodies() -> dict[str, bytes]:
    """The most expensive bodies by name."""

    def of(head: str, unit: str, tail: str, size: int = ATTACK_BYTES) -> bytes:
        count = (size - len(head) - len(tail)) // len(unit)
        return (head + (unit * count).rstrip(",") + tail).encode()

    keys = ",".join(f'"k{number}":1' for number in range(300_000))
    return {
        "60 KB of {}": of('{"input":[', "{},", "]}", 60_000),
        "{} as inputs": of('{"input":[', "{},", "]}"),
        "{} as responses": of('{"prompt":"a","responses":[', "{},", "]}"),
        "{} as messages": of('{"messages":[', "{},", "]}"),
        "numbers as texts": of('{"prompt":"a","responses":[', "1,", "]}"),
        "nulls": of('{"query":"a","documents":[', "null,", "]}"),
        "ids": of('{"input":[', "12345,", "]}"),
        "lists of one id": of('{"input":[', "[1],", "]}"),
        "pairs": of('{"inputs":[', '["a"],', "]}"),
        "empty texts": of('{"query":[', '"",', "]}"),
        "surrogates": of('{"prompt":"a","responses":[', '"\\ud800",', "]}"),
        "depth": of('{"input":', "[", ""),
        "keys": f"{{{keys}}}".encode(),
        "one long key": of('{"', "k", '":1,"prompt":3}'),
        "one huge number": of('{"prompt":"a","responses":[', "9", "]}"),
        "long text": of('{"prompt":"', "a ", '","responses":["b"]}'),
        "long text, cut": of('{"prompt":"', "a ", '","responses":["b"],"cut":true}'),
        "many long texts": of('{"query":"a","documents":[', f'"{"word " * 3000}",', "]}"),
        "256 empty responses": of('{"prompt":"a","responses":[', '"",', "]}", 800),
    }


def attacks(model: str) -> None:
    print("| body | bytes in | most bytes out | slowest /health | memory | statuses |")
    print("|---|--:|--:|--:|--:|---|")
    with server(model) as (process, url), httpx.Client(timeout=60) as client:
        client.post(f"{url}/v1/rewards", json=BODY)
        before = memory_mib(process)
        for name, body in attack_bodies().items():
            headers = {"Content-Type": "application/json"}
            with slowest_health(url) as health:
                replies = [
                    client.post(url + route, content=body, headers=headers) for route in ROUTES
                ]
            largest = max(len(reply.content) for reply in replies)
            statuses = sorted({reply.status_code for reply in replies})
            grown = memory_mib(process, peak=True) - before
            print(
                f"| {name} | {len(body):,} | {largest:,} | {max(health):.2f} s | +{grown} MiB |"
                f" {statuses} |"
            )


@contextmanager
def slowest_health(url: str) -> Iterator[list[float]]:
    """Latencies of /health, in seconds, while the block runs."""
    times: list[float] = []
    ended = threading.Event()

    def probe() -> None:
        with httpx.Client(timeout=60) as client:
            while not ended.is_set():
                times.append(client.get(f"{url}/health").elapsed.total_seconds())
                time.sleep(0.02)

    thread = threading.Thread(target=probe)
    thread.start()
    yield times
    ended.set()
    thread.join()


def kills(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.sqlite"
        acknowledged: set[str] = set()
        for number in range(KILLS):
            with server(model, "--log", log) as (process, url):
                acknowledged |= asyncio.run(until_killed(process, url, number))
        with server(model, "--log", log):
            pass
        result = decision_files.verify(log)
        prompts = {
            row.inputs.prompt[0].content
            for row in decision_files.rows(log)
            if isinstance(row.inputs, ConversationInputs)
        }
        lost = len(acknowledged - prompts)
        print(
            f"{KILLS} kills, {len(acknowledged):,} acknowledged, {result.decisions:,} in the log,"
            f" {lost} lost, chain {result.finding}"
        )


async def until_killed(process: subprocess.Popen[bytes], url: str, number: int) -> set[str]:
    acknowledged: set[str] = set()
    async with httpx.AsyncClient(timeout=60) as client:

        async def one(index: int) -> None:
            prompt = f"prompt {number} {index}"
            try:
                if (
                    await client.post(
                        f"{url}/v1/rewards", json={"prompt": prompt, "responses": ["a", "b"]}
                    )
                ).status_code == 200:
                    acknowledged.add(prompt)
            except httpx.TransportError:
                pass

        await one(-1)  # warm the model, so that it answers within the burst

        async def killer() -> None:
            await asyncio.sleep(0.05 + 0.01 * number)
            os.kill(process.pid, signal.SIGKILL)

        await asyncio.gather(killer(), *(one(index) for index in range(64 + 4 * number)))
    return acknowledged


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("overload", "kills", "attacks"):
        sys.exit(__doc__)
    {"overload": overload, "kills": kills, "attacks": attacks}[sys.argv[1]](sys.argv[2])
