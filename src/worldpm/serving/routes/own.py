"""Our own routes: a prompt and all its responses come together, as everywhere in this project."""

import secrets
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import JSONResponse

from worldpm.records import Message
from worldpm.scoring import confidence, explanations
from worldpm.scoring.confidence import LEVEL, Settings
from worldpm.scoring.scorer import Request, Scorer
from worldpm.serving.backends import AS_MADE, Answer, LocalEngine
from worldpm.serving.routing import RoutingRules
from worldpm.serving.service import Call, RefusedError, Service, check_text, refusing

Json = dict[str, Any]
Feature = Literal["length", "headers", "lists", "bold", "code", "links"]
Number = Annotated[float, Field(allow_inf_nan=False)]
EXPLAINED = 16


class Strict(BaseModel):
    """A body in which a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid")


class Turn(Strict):
    """One message."""

    role: Literal["system", "user", "assistant"]
    content: str


class Preferences(Strict):
    """What a user wants of a choice; rewards do not change by it."""

    strictness: Annotated[float, Field(ge=0.5, lt=1)] = LEVEL
    """The level at which two responses are told apart."""
    ranges: dict[Feature, tuple[Number, Number]] = {}
    """Allowed counts, `length` in tokens: responses outside are named and stand after the
    others."""
    weights: dict[Feature, Annotated[float, Field(ge=-100, le=100)]] = {}
    """Log odds for each unit of a style difference, which runs from -1 to 1."""

    @model_validator(mode="after")
    def _low_before_high(self) -> Self:
        if wrong := [name for name, (low, high) in self.ranges.items() if low > high]:
            raise ValueError(f"the range of {wrong[0]} ends before it begins")
        return self


class PromptAndResponses(Strict):
    """A prompt with its responses, or a conversation whose last message is judged."""

    model: str | None = None
    prompt: str | Annotated[list[Turn], Field(min_length=1)] | None = None
    responses: list[str] | None = None
    messages: Annotated[list[Turn], Field(min_length=2)] | None = None
    cut: bool = False
    """Cut what is too long, instead of refusing it."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.messages is None) == (self.prompt is None or self.responses is None):
            raise ValueError("give either prompt and responses, or messages")
        if self.messages is not None and (self.prompt is not None or self.responses is not None):
            raise ValueError("give either prompt and responses, or messages")
        if self.messages is not None and self.messages[-1].role != "assistant":
            raise ValueError("the last of the messages must be the assistant's")
        return self

    def request(self) -> Request:
        """What is scored."""
        if self.messages is not None:
            *before, last = self.messages
            return Request("messages", _messages(before), [last.content])
        turns = (
            [Turn(role="user", content=self.prompt)]
            if isinstance(self.prompt, str)
            else self.prompt or []
        )
        return Request("responses", _messages(turns), self.responses or [])


class Rewards(PromptAndResponses):
    """`/v1/rewards`."""

    settings: Preferences | None = None
    """The key's own unless given."""


class Explain(PromptAndResponses):
    """`/v1/explain`."""

    tokens: bool = True
    """Attribute each reward to the tokens of prompt and response, by integrated gradients."""
    sentences: bool = True
    """Tell what each reward loses without each of its sentences."""


class Route(PromptAndResponses):
    """`/v1/route`."""


def _messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
    return tuple(Message(turn.role, turn.content) for turn in turns)


def routes(
    service: Service, rules: RoutingRules | None, settings: Mapping[str, Preferences]
) -> APIRouter:
    """`/v1/rewards`, `/v1/explain`, `/v1/route`; `settings` are those of the API keys, by their
    names."""
    router = APIRouter(prefix="/v1", tags=["rewards"])

    @router.post(
        "/rewards",
        summary="Rewards of one prompt's responses, with probabilities, ranking and confidence",
    )
    async def rewards(body: Rewards, http: HttpRequest) -> JSONResponse:
        call, request = _begin(service, body, http)
        wanted = body.settings or settings.get(call.client or "") or Preferences()
        call.settings = wanted.model_dump()
        (answer,) = await call.conversations([request], cut_to=AS_MADE if body.cut else None)
        return JSONResponse(
            {**_head(service, "rewards"), **_told(request, answer, service.confidence, wanted)}
        )

    @router.post("/explain", summary="Which tokens and sentences a reward rests on")
    async def explain(body: Explain, http: HttpRequest) -> JSONResponse:
        call, request = _begin(service, body, http)
        if not isinstance(service.engine, LocalEngine):
            raise RefusedError(
                501, "explanations need the weights, which are upstream", kind="NotImplemented"
            )
        if len(request.responses) > EXPLAINED:
            raise RefusedError(
                422,
                f"{len(request.responses)} responses; at most {EXPLAINED} are explained at once",
                kind="TooManyInputs",
            )
        check_text("".join([*(message.content for message in request.prompt), *request.responses]))
        scorer = service.engine.scorer.cutting() if body.cut else service.engine.scorer
        work = partial(_explained, scorer, request, tokens=body.tokens, sentences=body.sentences)
        found = await call.while_connected(
            refusing(service.engine.explained(work, deadline=call.deadline()))
        )
        return JSONResponse({**_head(service, "explanation"), "responses": found})

    @router.post("/route", summary="The queue that the rule file sends a response to")
    async def route(body: Route, http: HttpRequest) -> JSONResponse:
        call, request = _begin(service, body, http)
        if rules is None:
            raise RefusedError(
                404, "no rules; start the server with --rules FILE", kind="NotFoundError"
            )
        call.settings = {"rules": rules.rules, "otherwise": rules.otherwise}
        (answer,) = await call.conversations([request], cut_to=AS_MADE if body.cut else None)
        found = [
            rules.queue(service.confidence, answer.rewards, place)
            for place in range(len(answer.rewards))
        ]
        return JSONResponse(
            {**_head(service, "route"), "responses": [one._asdict() for one in found]}
        )

    return router


def _begin(service: Service, body: PromptAndResponses, http: HttpRequest) -> tuple[Call, Request]:
    service.check_model(body.model)
    return service.of(http), body.request()


def _told(
    request: Request, answer: Answer, known: confidence.Confidence, wanted: Preferences
) -> Json:
    """Everything that is said of one prompt's responses."""
    counts = [
        confidence.counts_of(text, tokens)
        for text, tokens in zip(request.responses, answer.length_tokens, strict=True)
    ]
    settings = Settings(**wanted.model_dump())
    choose = partial(confidence.choose, known, answer.rewards, counts)
    chosen = choose(settings)
    return {
        "rewards": answer.rewards,
        "ranking": chosen.ranking,
        "probabilities": known.probabilities(answer.rewards),
        "confidence": {
            "level": settings.strictness,
            "can_tell": known.can_tell(answer.rewards, settings.strictness),
            "temperature": known.temperature,
            "source": known.source if known.temperature else None,
        },
        "style": {
            "counts": counts,
            "outside": chosen.outside,
            "at_equal_style": choose(Settings()).probabilities if known.style else None,
            "with_settings": chosen.probabilities,
            "terms": chosen.terms,
            "as_in_calibration": choose(Settings(weights=known.style.weights)).probabilities
            if known.style
            else None,
            "weights_of_calibration": dict(known.style.weights) if known.style else None,
        },
        "settings": wanted.model_dump(),
        "truncated": answer.truncated,
        "usage": {
            "response_tokens": answer.length_tokens,
            "sequence_tokens": answer.sequence_tokens,
            "computed_tokens": answer.computed_tokens,
        },
    }


def _explained(
    scorer: Scorer, request: Request, run: explanations.Run, *, tokens: bool, sentences: bool
) -> list[Json]:
    """The explanations of each response; each piece of work with the model goes through `run`."""
    found: list[Json] = []
    for number, response in enumerate(request.responses):
        asked = request._replace(name=f"response {number}", responses=[response])
        one: Json = {"tokens": None, "sentences": None}
        if tokens:
            one["tokens"] = explanations.of_tokens(scorer, asked, run=run)._asdict()
        if sentences:
            one["sentences"] = [
                part._asdict() for part in explanations.of_sentences(scorer, asked, run=run)
            ]
        found.append(one)
    return found


def _head(service: Service, kind: str) -> Json:
    return {
        "id": f"{kind}-{secrets.token_hex(8)}",
        "object": kind,
        "created": int(time.time()),
        "model": service.identity.name,
    }
