"""Serving speed: 32 clients, each request with two responses of 100 tokens to a prompt of 300, a
model of 8 layers x 512.

    python speed/serving.py [--dtype float32] [--clients 32] [--requests 96]

Runs these sides one after the other on the same requests: `worldpm serve` with many clients and
with one; a simple FastAPI server, which computes the two texts of a request as a padded batch in
plain transformers; and the scorer alone, in one call.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import torch
from transformers import Qwen2Config

from worldpm import Message, Scorer
from worldpm.model import chat, checkpoint, reward_model
from worldpm.model.description import RewardStatistics, describe_encoder, write_description
from worldpm.model.encoder import Encoder, Limits
from worldpm.model.tokenizer import save_tokenizer, train_tokenizer
from worldpm.scoring.scorer import Request

PROMPT, RESPONSE = 300, 100
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
PLAIN = """
import sys, torch, uvicorn
from fastapi import FastAPI
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder, port, dtype = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, dtype))
model.eval()
app = FastAPI()

@app.post("/v1/rewards")
def rewards(body: dict) -> dict:
    prompt = {"role": "user", "content": body["prompt"]}
    turns = [[prompt, {"role": "assistant", "content": response}] for response in body["responses"]]
    texts = [tokenizer.apply_chat_template(one, tokenize=False) for one in turns]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        return {"rewards": model(**batch).logits[:, 0].tolist()}

@app.get("/ready")
def ready() -> dict:
    return {}

uvicorn.run(app, port=int(port), log_level="error")
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=96)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        asked = make(folder, options.requests)
        ours = [
            sys.executable,
            "-m",
            "worldpm.cli",
            "serve",
            str(folder),
            "--dtype",
            options.dtype,
            "--port",
        ]
        plain = [sys.executable, "-c", PLAIN, str(folder)]
        rows = []
        for name, command, last, clients in (
            (f"worldpm serve, {options.clients} clients", ours, [], options.clients),
            ("worldpm serve, one at a time", ours, [], 1),
            (
                f"FastAPI and padded batches, {options.clients} clients",
                plain,
                [options.dtype],
                options.clients,
            ),
            ("FastAPI and padded batches, one at a time", plain, [options.dtype], 1),
        ):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            words = [*command, str(port), *last]
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                rows.append((name, *asyncio.run(load(f"http://127.0.0.1:{port}", asked, clients))))
            finally:
                process.terminate()
                process.wait()
        rows.append(("the scorer alone, one call", *alone(folder, asked, options.dtype), []))
    show(rows, options.dtype)


def make(folder: Path, count: int) -> list[dict]:
    """Write a model with its tokenizer. Return requests with the right numbers of tokens."""
    rng = np.random.default_rng(0)
    words = [
        "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=rng.integers(3, 8)))
        for _ in range(4000)
    ]
    texts = [" ".join(rng.choice(words, size=200)) for _ in range(400)]
    tokenizer = train_tokenizer(texts, vocabulary=8192, max_length=2048)
    frame = chat.frame_of(tokenizer)
    tokenizer.chat_template = chat.standing_alone(str(tokenizer.chat_template), frame)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **SHAPE,
    )
    model = reward_model.from_config(config, seed=0).eval()
    folder.mkdir()
    save_tokenizer(tokenizer, folder)
    checkpoint.save(model, model.state_dict(), folder, pad_token_id=tokenizer.pad_token_id)
    encoder = Encoder(tokenizer, frame, Limits(2048, 1024))
    rewards = RewardStatistics(mean=0.0, std=1.0, temperature=1.0)
    write_description(folder, describe_encoder(encoder, rewards))
    (folder / "manifest.json").write_text(json.dumps({"step": "train", "files": {}}))

    def text(tokens: int) -> str:
        long = " ".join(rng.choice(words, size=2 * tokens))
        return tokenizer.decode(tokenizer.encode(long)[:tokens])

    return [
        {"prompt": text(PROMPT), "responses": [text(RESPONSE), text(RESPONSE)]}
        for _ in range(count)
    ]


async def load(
    url: str, asked: Sequence[dict], clients: int
) -> tuple[float, torch.Tensor, list[float]]:
    """Seconds for all requests, the rewards, and the latency of each request in seconds. The first
    two requests, which warm the server, are not counted."""
    rewards: list[list[float]] = [[] for _ in asked]
    latencies: list[float] = []
    todo = iter(range(len(asked)))
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=httpx.Limits(max_connections=clients)
    ) as client:
        for _ in range(600):
            try:
                if (await client.get("/ready")).status_code == 200:
                    break
            except httpx.TransportError:
                await asyncio.sleep(0.1)
        for _ in range(2):
            await client.post("/v1/rewards", json=asked[0])

        async def one() -> None:
            for index in todo:
                started = time.perf_counter()
                reply = await client.post("/v1/rewards", json=asked[index])
                latencies.append(time.perf_counter() - started)
                rewards[index] = reply.raise_for_status().json()["rewards"]

        started = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        return time.perf_counter() - started, torch.tensor(rewards), latencies


def alone(folder: Path, asked: Sequence[dict], dtype: str) -> tuple[float, torch.Tensor]:
    scorer = Scorer.load(folder, dtype=getattr(torch, dtype))
    requests = [
        Request(str(i), (Message("user", one["prompt"]),), one["responses"])
        for i, one in enumerate(asked)
    ]
    list(scorer.score(requests[:2]))
    started = time.perf_counter()
    rewards = torch.tensor([result.rewards for result in scorer.score(requests)])
    return time.perf_counter() - started, rewards


def show(rows: Sequence[tuple[str, float, torch.Tensor, list[float]]], dtype: str) -> None:
    ours = rows[0]
    print(f"{len(ours[2])} requests, {dtype}")
    for name, seconds, rewards, latencies in rows:
        apart = float((rewards - ours[2]).abs().max())
        waits = (
            f"p50 {1e3 * np.quantile(latencies, 0.5):6.0f} ms, p99"
            f" {1e3 * np.quantile(latencies, 0.99):6.0f} ms"
            if latencies
            else ""
        )
        rate = len(rewards) / seconds
        print(
            f"{name:45} {rate:6.2f} requests/s, ours is {seconds / ours[1]:5.2f} times as fast;"
            f" rewards differ by at most {apart:.1g}  {waits}"
        )


if __name__ == "__main__":
    main()
