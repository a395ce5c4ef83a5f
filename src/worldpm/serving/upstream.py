"""Rewards from a vLLM that runs elsewhere: our routes, page, limits and log in front of it.

Conversations go there as messages, so its chat template is the one that counts; it must end a
conversation with the token that the reward is read at, as the templates of our checkpoints do.
"""

import asyncio
import math
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import httpx

from worldpm.errors import ConfigError, DataError, NotFiniteError
from worldpm.scoring.scorer import Request
from worldpm.serving.backends import Answer, Text, UnavailableError
from worldpm.serving.batcher import BusyError, ExpiredError
from worldpm.serving.service import Identity

Json = dict[str, Any]
Result = TypeVar("Result")
AT_ONCE = 64
"""Calls that are under way together; vLLM makes batches of them."""


def identify(url: str) -> Identity:
    """The model that answers there; its weights have no hash that we could know.

    Raises:
        ConfigError: If nothing answers, or no vLLM.
    """
    try:
        told = httpx.get(f"{url}/v1/models", timeout=10).raise_for_status().json()["data"][0]
        return Identity(
            str(told["id"]), f"upstream {url} {told['id']}", None, told.get("max_model_len")
        )
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"--upstream {url}: no vLLM answers at /v1/models ({error or type(error).__name__})"
        ) from error


class UpstreamEngine:
    """One call of `/classify` for each response, and of `/tokenize` for its length, and for the
    whole one's where a cut was asked for."""

    def __init__(self, url: str, model: str) -> None:
        self._model = model
        self._client = httpx.AsyncClient(base_url=url)
        self._free = asyncio.Semaphore(AT_ONCE)

    async def conversations(
        self, requests: Sequence[Request], *, cut_to: int | None, deadline: float
    ) -> list[Answer]:
        """As `Engine` has it."""
        return await _together(
            [self._conversation(request, cut_to=cut_to) for request in requests], deadline
        )

    async def texts(
        self, texts: Sequence[Text], *, cut_to: int | None, deadline: float
    ) -> list[Answer]:
        """As `Engine` has it."""

        async def one(text: Text) -> Answer:
            reward, tokens = await self._classify(
                {"input": text if isinstance(text, str) else list(text)}, cut_to=cut_to
            )
            cut = cut_to is not None and tokens < (
                await self._count({"prompt": text}) if isinstance(text, str) else len(text)
            )
            return Answer([reward], [tokens], [cut], [tokens], tokens)

        return await _together([one(text) for text in texts], deadline)

    async def run(self) -> None:
        """As `Engine` has it: the work is done elsewhere."""
        try:
            await asyncio.Event().wait()
        finally:
            await self._client.aclose()

    async def _conversation(self, request: Request, *, cut_to: int | None) -> Answer:
        prompt = [asdict(message) for message in request.prompt]

        async def one(response: str) -> tuple[float, int, int, bool]:
            messages = [*prompt, {"role": "assistant", "content": response}]
            calls: list[Coroutine[Any, Any, Any]] = [
                self._classify({"messages": messages}, cut_to=cut_to)
            ]
            calls.append(self._count({"prompt": response, "add_special_tokens": False}))
            if cut_to is not None:
                calls.append(self._count({"messages": messages, "add_generation_prompt": False}))
            (reward, tokens), length, *whole = await _together(calls)
            return reward, length, tokens, any(tokens < count for count in whole)

        distinct = list(dict.fromkeys(request.responses))
        known = dict(
            zip(distinct, await _together([one(response) for response in distinct]), strict=True)
        )
        found = [known[response] for response in request.responses]
        rewards, lengths, tokens, cut = ([one[place] for one in found] for place in range(4))
        # of each kind
        return Answer(rewards, lengths, cut, tokens, sum(tokens))  # type: ignore[arg-type]

    async def _classify(self, body: Json, *, cut_to: int | None) -> tuple[float, int]:
        """The raw reward, and the tokens it took."""
        options = {
            "use_activation": False,
            **({} if cut_to is None else {"truncate_prompt_tokens": cut_to}),
        }
        told = await self._post("/classify", {**body, **options})
        reward = told["data"][0]["probs"][0]
        if not isinstance(reward, float) or not math.isfinite(reward):
            raise NotFiniteError(f"upstream gave {reward!r} for a reward")
        return reward, int(told["usage"]["prompt_tokens"])

    async def _count(self, body: Json) -> int:
        """The tokens of a text, or of a conversation, uncut."""
        return int((await self._post("/tokenize", body))["count"])

    async def _post(self, route: str, body: Json) -> Json:
        try:
            async with self._free:
                reply = await self._client.post(
                    route, json={"model": self._model, **body}, timeout=None
                )
        except httpx.HTTPError as error:
            raise UnavailableError(f"upstream does not answer ({type(error).__name__})") from error
        if reply.status_code in (429, 503):
            wait = reply.headers.get("retry-after", "")
            raise BusyError(int(wait) if wait.isdigit() else 1)
        if reply.status_code >= 500:
            raise UnavailableError(f"upstream answered {reply.status_code}: {reply.text[:300]}")
        if reply.status_code != 200:
            raise DataError("upstream", f"answered {reply.status_code}: {reply.text[:300]}")
        told: Json = reply.json()
        return told


async def _together(
    calls: Sequence[Coroutine[Any, Any, Result]], deadline: float | None = None
) -> list[Result]:
    """All results; the first failure, or the deadline, ends the others.

    Raises:
        ExpiredError: If the deadline passed.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
            return list(await asyncio.gather(*tasks))
    except TimeoutError:
        raise ExpiredError from None
    finally:
        for task in tasks:
            task.cancel()
