"""Rewards from a vLLM that runs elsewhere: our routes, page, limits and log in front of it.

Conversations go there as messages, so its chat template is the one that counts; it must end a conversation with the token that the
reward is read at, as the templates of our checkpoints do.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx

from worldpm.field.errors import ConfigError, DataError, NotFiniteError
from worldpm.parts.scorer import Request
from worldpm.parts.serving.batcher import BusyError, ExpiredError
from worldpm.parts.serving.engine import Answer, Text
from worldpm.parts.serving.service import Identity

Json = dict[str, Any]
AT_ONCE = 64
"""Calls that are under way together; vLLM makes batches of them."""


def identify(url: str) -> Identity:
    """The model that answers there; its weights have no hash that we could know.

    Raises:
        ConfigError: If nothing answers, or no vLLM.
    """
    try:
        told = httpx.get(f"{url}/v1/models", timeout=10).raise_for_status().json()["data"][0]
        return Identity(str(told["id"]), f"upstream {url} {told['id']}", None, told.get("max_model_len"))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"--upstream {url}: no vLLM answers at /v1/models ({error or type(error).__name__})") from error


class UpstreamEngine:
    """One call of `/classify` for each response, and one of `/tokenize` for its length."""

    def __init__(self, url: str, model: str) -> None:
        self._model = model
        self._client = httpx.AsyncClient(base_url=url)
        self._free = asyncio.Semaphore(AT_ONCE)

    async def conversations(self, requests: Sequence[Request], *, cut: bool, deadline: float) -> list[Answer]:
        """As `Engine` has it."""
        return list(await asyncio.gather(*(self._conversation(request, cut=cut, deadline=deadline) for request in requests)))

    async def texts(self, texts: Sequence[Text], *, cut: bool, deadline: float) -> list[Answer]:
        """As `Engine` has it."""

        async def one(text: Text) -> Answer:
            reward, tokens = await self._classify({"input": text if isinstance(text, str) else list(text)}, cut=cut, deadline=deadline)
            return Answer([reward], [tokens], [False], [tokens], tokens)

        return list(await asyncio.gather(*map(one, texts)))

    async def run(self) -> None:
        """As `Engine` has it: the work is done elsewhere."""
        try:
            await asyncio.Event().wait()
        finally:
            await self._client.aclose()

    async def _conversation(self, request: Request, *, cut: bool, deadline: float) -> Answer:
        prompt = [{"role": message.role, "content": message.content} for message in request.prompt]

        async def one(response: str) -> tuple[float, int, int]:
            messages = [*prompt, {"role": "assistant", "content": response}]
            (reward, tokens), told = await asyncio.gather(
                self._classify({"messages": messages}, cut=cut, deadline=deadline),
                self._post("/tokenize", {"prompt": response, "add_special_tokens": False}, deadline),
            )
            return reward, int(told["count"]), tokens

        distinct = list(dict.fromkeys(request.responses))
        known = dict(zip(distinct, await asyncio.gather(*map(one, distinct)), strict=True))
        rewards, lengths, tokens = (
            (list(column) for column in zip(*(known[text] for text in request.responses), strict=True)) if known else ([], [], [])
        )
        return Answer(rewards, lengths, [False] * len(rewards), tokens, sum(tokens))

    async def _classify(self, body: Json, *, cut: bool, deadline: float) -> tuple[float, int]:
        """The raw reward, and the tokens it took."""
        options = {"use_activation": False, **({"truncate_prompt_tokens": -1} if cut else {})}
        told = await self._post("/classify", {**body, **options}, deadline)
        reward = told["data"][0]["probs"][0]
        if not isinstance(reward, float) or reward != reward:
            raise NotFiniteError(f"upstream gave {reward!r} for a reward")
        return reward, int(told["usage"]["prompt_tokens"])

    async def _post(self, route: str, body: Json, deadline: float) -> Json:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ExpiredError("the deadline passed before upstream was asked")
        try:
            async with self._free:
                reply = await self._client.post(route, json={"model": self._model, **body}, timeout=left)
        except httpx.TimeoutException as error:
            raise ExpiredError("upstream did not answer before the deadline") from error
        except httpx.HTTPError as error:
            raise BusyError(5) from error  # gone for a moment, or for good: /metrics shows which
        if reply.status_code in (429, 500, 502, 503, 504):
            raise BusyError(int(reply.headers.get("retry-after", 1)))
        if reply.status_code != 200:
            raise DataError("upstream", f"answered {reply.status_code}: {reply.text[:300]}")
        told: Json = reply.json()
        return told
