"""Our own routes: a prompt and all its responses are one request."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import ConfigDict, Field, model_validator

from worldpm.records import Message
from worldpm.scoring import confidence, explanations
from worldpm.scoring.confidence import LEVEL, Settings
from worldpm.scoring.scorer import Request, Scorer
from worldpm.serving.backends import CUT_TO_MODEL_LIMIT, BackendReply, LocalBackend
from worldpm.serving.client import (
    GOOD,
    POOR,
    QUESTION,
    Client,
    Many,
    Reply,
    ReplyHead,
    RequestBody,
    example,
    head_of,
    reply_of,
)
from worldpm.serving.routing import Routed
from worldpm.serving.service import Call, RefusedError, Service, check_text, refusing
from worldpm.storage.json_files import Json

Feature = Literal["length", "headers", "lists", "bold", "code", "links"]
Number = Annotated[float, Field(allow_inf_nan=False)]
Value = TypeVar("Value", float, bool)
MOST_EXPLAINED = 16
"""Responses that are explained in one request."""
MOST_COMPARED = 32
"""Responses up to which a reply holds their matrices. Those of 256 empty responses, a body of a
kilobyte, would be ten megabytes."""


class Strict(RequestBody):
    """A body in which a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid")


class Turn(Strict):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    """None only beside tool calls."""
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message has neither content nor tool calls")
        return self

    def message(self) -> Message:
        """The message with what chat templates read of it."""
        return Message.of(self.model_dump())


class Preferences(Strict):
    """Settings of a choice between responses; they do not change rewards."""

    strictness: Annotated[float, Field(ge=0.5, lt=1)] = LEVEL
    """The level at which two responses are distinguished."""
    ranges: dict[Feature, tuple[Number, Number]] = Field(default_factory=dict)
    """Allowed counts, `length` in tokens. Responses outside are named and ranked after the
    others."""
    weights: dict[Feature, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    """Log odds for each unit of a style difference, which runs from -1 to 1."""

    @model_validator(mode="after")
    def _low_before_high(self) -> Self:
        wrong = [name for name, (low, high) in self.ranges.items() if low > high]
        if wrong:
            raise ValueError(f"the range of {wrong[0]} ends before it begins")
        return self

    def settings(self) -> Settings:
        """The same for `scoring.confidence`."""
        return Settings(**self.model_dump())


class PromptAndResponses(Strict):
    """A prompt with its responses, or a conversation whose last message is scored."""

    model: str | None = None
    prompt: str | Annotated[Many[Turn], Field(min_length=1)] | None = None
    responses: Many[str] | None = None
    messages: Annotated[Many[Turn], Field(min_length=2)] | None = None
    cut: bool = False
    """Cut long inputs instead of rejecting them."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        # An empty list is given too: only None is absent.
        has_messages = self.messages is not None
        has_prompt_or_responses = self.prompt is not None or self.responses is not None
        has_both = self.prompt is not None and self.responses is not None

        if has_messages == has_both or (has_messages and has_prompt_or_responses):
            raise ValueError("give either prompt and responses, or messages")
        if self.messages is not None and self.messages[-1].role not in ("assistant", "tool"):
            raise ValueError("the last of the messages must be the assistant's, or a tool's")
        return self

    def request(self) -> Request:
        """The request to score."""
        if self.messages is not None:
            *before, last = (turn.message() for turn in self.messages)
            return Request("messages", before, [last.content], last)

        turns = self.prompt or []
        if isinstance(turns, str):
            turns = [Turn(role="user", content=turns)]
        return Request("responses", [turn.message() for turn in turns], self.responses or [])

    @property
    def cut_to(self) -> int | None:
        """The tokens to cut to, as the backend takes them."""
        return CUT_TO_MODEL_LIMIT if self.cut else None


class Rewards(PromptAndResponses):
    """`/v1/rewards`."""

    model_config = example({"prompt": QUESTION, "responses": [GOOD, POOR]})

    settings: Preferences | None = None
    """Those of the API key unless given."""


class Explain(PromptAndResponses):
    """`/v1/explain`."""

    model_config = example({"prompt": QUESTION, "responses": [GOOD, POOR]})

    tokens: bool = True
    """Attribute each reward to the tokens of prompt and response, by integrated gradients."""
    sentences: bool = True
    """Give the loss of each reward without each of its sentences."""


class Route(PromptAndResponses):
    """`/v1/route`."""

    model_config = example({"prompt": QUESTION, "responses": [GOOD, POOR]})


@dataclass(frozen=True)
class RewardConfidence:
    """Certainty of the choice between responses."""

    level: float
    """At which two responses are distinguished."""
    can_tell: list[list[bool]] | None
    """Whether the response of the row is distinguished from that of the column. Also None if there
    are too few judged pairs."""
    temperature: float | None
    """Divides margins into log odds; None if they are not calibrated."""
    source: str | None
    """Name of the pairs of the calibration; None if margins are not calibrated."""


@dataclass(frozen=True)
class Averages:
    """Probability of each response at its mean log odds against the others.

    Equal to the pair's probability if there are two responses, and 0.5 if there is one.
    """

    without_settings: list[float]
    """In the order of the rewards."""
    at_equal_style: list[float] | None
    """None without a style model."""
    with_settings: list[float]
    """In the order of `ranking`, except for responses outside the allowed ranges."""
    as_in_calibration: list[float] | None
    """None without a style model."""


@dataclass(frozen=True)
class StyleReport:
    """Style of the responses, and probabilities under several weights of style.

    A matrix holds the probability that the response of the row is preferred to the column's.
    """

    counts: list[dict[str, float]]
    """Of each response, by feature; `length` in tokens."""
    outside: list[list[str]]
    """Reasons why each response is outside the allowed ranges."""
    at_equal_style: list[list[float]] | None
    """Also None without a style model."""
    with_settings: list[list[float]] | None
    can_tell_with_settings: list[list[bool]] | None
    """As `confidence.can_tell`, with the log odds of the weights added to the margins."""
    terms: dict[str, list[list[float]]] | None
    """Log odds that each weighted feature adds."""
    as_in_calibration: list[list[float]] | None
    """With the weights of the judges' pairs; also None without a style model."""
    weights_of_calibration: dict[str, float] | None
    """None without a style model."""


@dataclass(frozen=True)
class RewardUsage:
    """Tokens of a request."""

    response_tokens: list[int]
    """Of each response, before any cut."""
    sequence_tokens: list[int]
    """Of prompt and response, as the model reads them."""
    computed_tokens: int
    """A shared prompt counts once."""


@dataclass(frozen=True)
class RewardsReply(ReplyHead):
    """Reply of `/v1/rewards`; lists are in the order of the responses, and a matrix is None where
    there are more than `MOST_COMPARED` of them."""

    rewards: list[float]
    """Logits."""
    ranking: list[int]
    """Indices of the responses, best first."""
    probabilities: list[list[float]] | None
    """That the response of the row is preferred to that of the column, without settings."""
    averages: Averages
    confidence: RewardConfidence
    style: StyleReport
    settings: Json
    """Preferences that were used."""
    truncated: list[bool]
    usage: RewardUsage


@dataclass(frozen=True)
class Explanation:
    """Explanation of one response."""

    tokens: Json | None
    """Fields of `TokenAttributions`; None unless asked for."""
    sentences: list[Json] | None
    """Fields of each `Sentence`; None unless asked for."""


@dataclass(frozen=True)
class ExplanationReply(ReplyHead):
    """Reply of `/v1/explain`."""

    responses: list[Explanation]


@dataclass(frozen=True)
class RouteReply(ReplyHead):
    """Reply of `/v1/route`."""

    responses: list[Routed]


def routes(service: Service) -> APIRouter:
    """`/v1/rewards`, `/v1/explain`, `/v1/route`."""
    router = APIRouter(prefix="/v1")

    @router.post(
        "/rewards",
        summary="Rewards of one prompt's responses, with probabilities, ranking and confidence",
        responses=reply_of(RewardsReply),
    )
    async def rewards(body: Rewards, http: HttpRequest) -> Reply:
        return await _rewards(_begin(service, body, http, "rewards"), body)

    @router.post(
        "/explain",
        summary="Which tokens and sentences a reward rests on",
        responses=reply_of(ExplanationReply),
    )
    async def explain(body: Explain, http: HttpRequest) -> Reply:
        return await _explain(_begin(service, body, http, "explanation"), body)

    @router.post(
        "/route",
        summary="The queue that the rule file sends a response to",
        responses=reply_of(RouteReply),
    )
    async def route(body: Route, http: HttpRequest) -> Reply:
        return await _route(_begin(service, body, http, "route"), body)

    return router


def _begin(service: Service, body: PromptAndResponses, http: HttpRequest, kind: str) -> Call:
    service.check_model(body.model)
    return service.of(http, kind)


async def _rewards(call: Call, body: Rewards) -> Reply:
    request = body.request()
    # Settings of a request replace those of its key, they are not merged.
    settings = body.settings.settings() if body.settings else _key_settings(call)
    call.settings = _settings_content(settings)
    (reply,) = await call.conversations([request], cut_to=body.cut_to)

    return Reply(_rewards_reply(call, request, reply, settings))


def _key_settings(call: Call) -> Settings:
    """The settings of the request's API key, or else the defaults."""
    key = call.service.keys.get(call.key_name or "")
    return key.settings if key is not None else Settings()


def _settings_content(settings: Settings) -> Json:
    """Settings as the reply and the decision log have them."""
    return {
        "strictness": settings.strictness,
        "ranges": settings.ranges,
        "weights": settings.weights,
    }


def _rewards_reply(
    call: Call, request: Request, reply: BackendReply, settings: Settings
) -> RewardsReply:
    calibrated, rewards = call.service.confidence, reply.rewards
    are_few = len(rewards) <= MOST_COMPARED
    counts = [
        confidence.counts_of(text, tokens)
        for text, tokens in zip(request.responses, reply.length_tokens, strict=True)
    ]
    choose = partial(confidence.choose, calibrated, rewards, counts)
    style = calibrated.style
    chosen = _Choices(
        with_settings=choose(settings),
        at_equal_style=choose(Settings()) if style else None,
        as_in_calibration=choose(Settings(weights=style.weights)) if style else None,
    )

    return RewardsReply(
        **head_of(call, holds="rewards"),
        rewards=rewards,
        ranking=chosen.with_settings.ranking,
        probabilities=calibrated.probabilities(rewards) if are_few else None,
        averages=Averages(
            without_settings=calibrated.averages(rewards),
            at_equal_style=chosen.at_equal_style.averages if chosen.at_equal_style else None,
            with_settings=chosen.with_settings.averages,
            as_in_calibration=(
                chosen.as_in_calibration.averages if chosen.as_in_calibration else None
            ),
        ),
        confidence=RewardConfidence(
            level=settings.strictness,
            can_tell=calibrated.can_tell(rewards, settings.strictness) if are_few else None,
            temperature=calibrated.temperature,
            source=calibrated.source if calibrated.temperature else None,
        ),
        style=_style_report(chosen, counts, style),
        settings=_settings_content(settings),
        truncated=reply.truncated,
        usage=RewardUsage(reply.length_tokens, reply.sequence_tokens, reply.computed_tokens),
    )


class _Choices(NamedTuple):
    """The choice between the responses under several weights of style."""

    with_settings: confidence.Choice
    at_equal_style: confidence.Choice | None
    as_in_calibration: confidence.Choice | None


def _style_report(
    chosen: _Choices, counts: list[dict[str, float]], style: confidence.StyleModel | None
) -> StyleReport:
    choice, equal, calibrated = chosen
    are_few = len(counts) <= MOST_COMPARED
    return StyleReport(
        counts=counts,
        outside=choice.outside,
        at_equal_style=_of_few(equal.probabilities) if equal else None,
        with_settings=_of_few(choice.probabilities),
        can_tell_with_settings=_of_few(choice.can_tell),
        terms=choice.terms if are_few else None,
        as_in_calibration=_of_few(calibrated.probabilities) if calibrated else None,
        weights_of_calibration=dict(style.weights) if style else None,
    )


def _of_few(matrix: list[list[Value]] | None) -> list[list[Value]] | None:
    """The matrix; None where the responses are too many for it."""
    return matrix if matrix is not None and len(matrix) <= MOST_COMPARED else None


async def _explain(call: Call, body: Explain) -> Reply:
    service, request = call.service, body.request()
    if not isinstance(service.backend, LocalBackend):
        raise RefusedError(
            501, "explanations need the weights, which are upstream", kind="NotImplemented"
        )
    if len(request.responses) > MOST_EXPLAINED:
        raise RefusedError(
            422,
            f"{len(request.responses)} responses; at most {MOST_EXPLAINED} are explained at once",
            kind="TooManyInputs",
        )
    # Explanations do not go through `Call.conversations`, which checks texts
    check_text("".join([*(message.content for message in request.prompt), *request.responses]))

    backend = service.backend
    scorer = backend.scorer.cutting() if body.cut else backend.scorer
    work = partial(_explanations, scorer, request, tokens=body.tokens, sentences=body.sentences)
    responses = await call.while_connected(
        refusing(backend.explained(request, work, deadline=call.deadline()))
    )
    return Reply(ExplanationReply(**head_of(call, holds="explanation"), responses=responses))


def _explanations(
    scorer: Scorer, request: Request, run: explanations.Run, *, tokens: bool, sentences: bool
) -> list[Explanation]:
    """An explanation for each response; `run` runs each piece of work with the model."""
    responses: list[Explanation] = []
    for number, response in enumerate(request.responses):
        single = request._replace(name=f"response {number}", responses=[response])
        attributions, parts = None, None

        if tokens:
            attributions = explanations.of_tokens(scorer, single, run=run)._asdict()
        if sentences:
            parts = [part._asdict() for part in explanations.of_sentences(scorer, single, run=run)]
        responses.append(Explanation(attributions, parts))
    return responses


async def _route(call: Call, body: Route) -> Reply:
    service, rules = call.service, call.service.rules
    if rules is None:
        raise RefusedError(
            404, "no rules; start the server with --rules FILE", kind="NotFoundError"
        )
    # The log keeps the rules, because the file may change later
    call.settings = {
        "rules": [rule.source for rule in rules.rules],
        "otherwise": rules.otherwise,
    }
    call.queues = lambda rewards: [
        routed.queue for routed in rules.routed(service.confidence, rewards)
    ]
    (reply,) = await call.conversations([body.request()], cut_to=body.cut_to)

    responses = rules.routed(service.confidence, reply.rewards)
    return Reply(RouteReply(**head_of(call, holds="route"), responses=responses))


OWN = Client(
    "rewards",
    routes,
    paths=("/v1/rewards", "/v1/explain", "/v1/route"),
    invalid_status=422,
)
