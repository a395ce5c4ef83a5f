"""A server under faults: `python lab/serving.py overload|kills|fuzz MODEL`.

overload: ten times what it can do for 60 s, then what it answered, its memory, and how soon it is
itself again. kills: 100 times kill -9 under load; every acknowledged decision must be in the log,
and the chain whole. fuzz: every route from the server's own OpenAPI document, by schemathesis (`pip
install schemathesis`).
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from worldpm.serving import decision_files

SECONDS, TIMES, KILLS = 60, 10, 100
BODY = {"prompt": "word " * 20, "responses": [f"answer {number} " * 15 for number in range(16)]}
"""Enough work that the load can be made on the same machine."""


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
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
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


def memory_mib(process: subprocess.Popen[bytes]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return (
        int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
        // 1024
    )


async def offered(url: str, per_second: float, seconds: float) -> Counter[object]:
    """Requests at a fixed rate, whatever becomes of them."""
    found: Counter[object] = Counter()
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:

        async def one() -> None:
            try:
                found[(await client.post(f"{url}/v1/rewards", json=BODY)).status_code] += 1
            except httpx.TransportError as error:
                found[type(error).__name__] += 1

        tasks, started = [], time.monotonic()
        while (now := time.monotonic() - started) < seconds:
            if len(tasks) < now * per_second:
                tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(0 if len(tasks) < now * per_second else 0.002)
        await asyncio.gather(*tasks)
    return found


def overload(model: str) -> None:
    with server(model, "--queue-tokens", 8192, "--deadline-seconds", 10) as (process, url):
        httpx.post(f"{url}/v1/rewards", json=BODY, timeout=60)
        started = time.monotonic()
        for _ in range(30):
            httpx.post(f"{url}/v1/rewards", json=BODY, timeout=60)
        capacity = 30 / (time.monotonic() - started)
        asyncio.run(offered(url, capacity, 5))
        before = memory_mib(process)
        found = asyncio.run(offered(url, TIMES * capacity, SECONDS))
        after, ended = memory_mib(process), time.monotonic()
        while (
            reply := httpx.post(f"{url}/v1/rewards", json=BODY, timeout=60)
        ).status_code != 200 or reply.elapsed.total_seconds() > 1:
            time.sleep(0.05)
        print(
            f"capacity {capacity:.1f} requests/s; offered {sum(found.values()) / SECONDS:.0f} for"
            f" {SECONDS} s: {dict(found)}"
        )
        print(
            f"memory {before} MiB before, {after} after; an ordinary answer"
            f" {time.monotonic() - ended:.2f} s after the load"
        )


def kills(model: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "log.sqlite"
        acknowledged: set[str] = set()
        for number in range(KILLS):
            with server(model, "--log", log) as (process, url):
                acknowledged |= asyncio.run(until_killed(process, url, number))
        with server(model, "--log", log):
            pass
        found = decision_files.verify(log)
        prompts = {row.inputs.prompt[0].content for row in decision_files.rows(log)}
        lost = len(acknowledged - prompts)
        print(
            f"{KILLS} kills, {len(acknowledged):,} acknowledged, {found.decisions:,} in the log,"
            f" {lost} lost, chain {found.finding}"
        )


async def until_killed(process: subprocess.Popen[bytes], url: str, number: int) -> set[str]:
    acknowledged: set[str] = set()
    async with httpx.AsyncClient(timeout=60) as client:

        async def one(place: int) -> None:
            prompt = f"prompt {number} {place}"
            try:
                if (
                    await client.post(
                        f"{url}/v1/rewards", json={"prompt": prompt, "responses": ["a", "b"]}
                    )
                ).status_code == 200:
                    acknowledged.add(prompt)
            except httpx.TransportError:
                pass

        await one(-1)  # a model that is warm answers within the burst

        async def killer() -> None:
            await asyncio.sleep(0.05 + 0.01 * number)
            os.kill(process.pid, signal.SIGKILL)

        await asyncio.gather(killer(), *(one(place) for place in range(64 + 4 * number)))
    return acknowledged


def fuzz(model: str) -> None:
    with server(model, "--max-body-mib", 1) as (process, url):
        command = [
            "schemathesis",
            "run",
            f"{url}/openapi.json",
            "--checks",
            "not_a_server_error",
            "--max-examples",
            "100",
        ]
        done = subprocess.run(command, check=False)
        alive = httpx.post(f"{url}/v1/rewards", json=BODY, timeout=60).status_code
        print(
            f"schemathesis ended with {done.returncode}; the server then answers {alive}, and runs:"
            f" {process.poll() is None}"
        )


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("overload", "kills", "fuzz"):
        sys.exit(__doc__)
    {"overload": overload, "kills": kills, "fuzz": fuzz}[sys.argv[1]](sys.argv[2])
