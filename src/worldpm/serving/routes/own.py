"""Our own routes, which take a prompt with all its responses in one request."""

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
"""Largest number of responses that are explained in one request."""
MOST_COMPARED = 32
"""Largest number of responses for which a reply has matrices. A body of one kilobyte with 256 empty
responses would otherwise get ten megabytes of matrices."""


class Strict(RequestBody):
    """A body that rejects unknown keys, such as misspelt names."""

    model_config = ConfigDict(extra="forbid")


class Turn(Strict):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    """The text; may be None if there are tool calls."""
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message has neither content nor tool calls. Give it one of them.")
        return self

    def message(self) -> Message:
        """The message, with all fields that chat templates read."""
        return Message.of(self.model_dump())


class Preferences(Strict):
    """Settings of a choice between responses. They do not change rewards."""

    strictness: Annotated[float, Field(ge=0.5, lt=1)] = LEVEL
    """The level at which two responses are distinguished."""
    ranges: dict[Feature, tuple[Number, Number]] = Field(default_factory=dict)
    """Allowed counts by feature, `length` in tokens. Responses outside are marked, and ranked after
    the others."""
    weights: dict[Feature, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    """Log odds for each unit of a style difference, which is between -1 and 1."""

    @model_validator(mode="after")
    def _low_before_high(self) -> Self:
        wrong = [name for name, (low, high) in self.ranges.items() if low > high]
        if wrong:
            raise ValueError(f"the range of {wrong[0]} ends before it begins")
        return self

    def settings(self) -> Settings:
        """The settings in the form of `scoring.confidence`."""
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
        # An empty list counts as given; only None counts as absent.
        has_messages = self.messages is not None
        has_prompt_or_responses = self.prompt is not None or self.responses is not None
        has_both = self.prompt is not None and self.responses is not None

        if has_messages == has_both or (has_messages and has_prompt_or_responses):
            raise ValueError("Give either prompt and responses, or messages.")
        if self.messages is not None and self.messages[-1].role not in ("assistant", "tool"):
            raise ValueError("The last message must be the assistant's or a tool's.")
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
        """The backend's argument `cut_to`."""
        return CUT_TO_MODEL_LIMIT if self.cut else None


class Rewards(PromptAndResponses):
    """Body of `/v1/rewards`."""

    model_config = example({"prompt": QUESTION, "responses": [GOOD, POOR]})

    settings: Preferences | None = None
    """Preference settings; by default those of the API key."""


class Explain(PromptAndResponses):
    """Body of `/v1/explain`."""

    model_config = example({"prompt": QUESTION, "responses": [GOOD, POOR]})

    tokens: bool = True
    """Attribute each reward to the tokens of prompt and response, by integrated gradients."""
    sentences: bool = True
    """Give the drop of each reward when a sentence is removed, for each sentence."""


class Route(PromptAndResponses):
    """Body of `/v1/route`."""

    model_config = example({"prompt": QUESTION, "responses": [GOOD, POOR]})


@dataclass(frozen=True)
class RewardConfidence:
    """Confidence in the choice between responses."""

    level: float
    """The level at which two responses are distinguished."""
    can_tell: list[list[bool]] | None
    """Whether the row's response is distinguished from the column's. Also None if there are too few
    judged pairs."""
    temperature: float | None
    """The divisor that turns margins into log odds; None if margins are not calibrated."""
    source: str | None
    """Name of the pairs of the calibration; None if margins are not calibrated."""


@dataclass(frozen=True)
class Averages:
    """Mean log odds of each response against the others, as a probability.

    For two responses this is the pair's probability, and for a single response 0.5.
    """

    without_settings: list[float]
    """Averages without settings. A higher reward has a higher average."""
    at_equal_style: list[float] | None
    """Averages at equal style; None without a style model."""
    with_settings: list[float]
    """Averages under the settings. They decide `ranking`, except for responses outside the allowed
    ranges."""
    as_in_calibration: list[float] | None
    """Averages with the judges' weights of style; None without a style model."""


@dataclass(frozen=True)
class StyleReport:
    """Style of the responses, and probabilities under several weights of style.

    Matrices of probabilities hold the probability that the row's response is preferred to the
    column's.
    """

    counts: list[dict[str, float]]
    """Counts of each response by feature, `length` in tokens."""
    outside: list[list[str]]
    """Reasons why each response is outside the allowed ranges."""
    at_equal_style: list[list[float]] | None
    """Probabilities at equal style; also None without a style model."""
    with_settings: list[list[float]] | None
    """Probabilities under the settings."""
    can_tell_with_settings: list[list[bool]] | None
    """Like `confidence.can_tell`, with the log odds of the weights added to the margins."""
    terms: dict[str, list[list[float]]] | None
    """Log odds that each weighted feature adds."""
    as_in_calibration: list[list[float]] | None
    """Probabilities with the judges' weights of style; also None without a style model."""
    weights_of_calibration: dict[str, float] | None
    """The judges' weights of style; None without a style model."""


@dataclass(frozen=True)
class RewardUsage:
    """Tokens of a request."""

    response_tokens: list[int]
    """Tokens of each response, before any cut."""
    sequence_tokens: list[int]
    """Tokens of prompt and response that the model reads, for each response."""
    computed_tokens: int
    """Tokens that the model computed; a shared prompt counts once."""


@dataclass(frozen=True)
class RewardsReply(ReplyHead):
    """Reply of `/v1/rewards`. Lists have the order of the responses. Matrices are None if there are
    more than 32 responses."""

    rewards: list[float]
    """Rewards in logits."""
    ranking: list[int]
    """Indices of the responses, best first."""
    probabilities: list[list[float]] | None
    """Probabilities that the row's response is preferred to the column's, without settings."""
    averages: Averages
    confidence: RewardConfidence
    style: StyleReport
    settings: Json
    """The preference settings in effect."""
    truncated: list[bool]
    usage: RewardUsage


@dataclass(frozen=True)
class Explanation:
    """Explanation of one response."""

    tokens: Json | None
    """Fields of `TokenAttributions`; None if not requested."""
    sentences: list[Json] | None
    """Fields of each `Sentence`; None if not requested."""


@dataclass(frozen=True)
class ExplanationReply(ReplyHead):
    """Reply of `/v1/explain`."""

    responses: list[Explanation]


@dataclass(frozen=True)
class RouteReply(ReplyHead):
    """Reply of `/v1/route`."""

    responses: list[Routed]


def routes(service: Service) -> APIRouter:
    """The routes `/v1/rewards`, `/v1/explain` and `/v1/route`."""
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
        summary="Contributions of tokens and sentences to each reward",
        responses=reply_of(ExplanationReply),
    )
    async def explain(body: Explain, http: HttpRequest) -> Reply:
        return await _explain(_begin(service, body, http, "explanation"), body)

    @router.post(
        "/route",
        summary="The queue of each response, by the rule file",
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
    # A request's settings replace those of its key; they are not merged.
    settings = body.settings.settings() if body.settings else _key_settings(call)
    call.settings = _settings_content(settings)
    (reply,) = await call.conversations([request], cut_to=body.cut_to)

    return Reply(_rewards_reply(call, request, reply, settings))


def _key_settings(call: Call) -> Settings:
    """The settings of the request's API key, or else the defaults."""
    key = call.service.keys.get(call.key_name or "")
    return key.settings if key is not None else Settings()


def _settings_content(settings: Settings) -> Json:
    """Settings in the form of the reply and the decision log."""
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
    """The matrix; None if there are too many responses."""
    return matrix if matrix is not None and len(matrix) <= MOST_COMPARED else None


async def _explain(call: Call, body: Explain) -> Reply:
    service, request = call.service, body.request()
    if not isinstance(service.backend, LocalBackend):
        raise RefusedError(
            501,
            "explanations need the model's weights, which other processes or servers hold.",
            kind="NotImplemented",
        )
    if len(request.responses) > MOST_EXPLAINED:
        raise RefusedError(
            422,
            f"the request has {len(request.responses)} responses. Send at most {MOST_EXPLAINED} at"
            " once.",
            kind="TooManyInputs",
        )
    # Check texts here, because explanations do not use `Call.conversations`, which checks them
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
    """An explanation for each response. `run` runs each piece of work with the model."""
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
            404, "the server has no rules. Start it with --rules FILE.", kind="NotFoundError"
        )
    # Log the rules, because the file may change later
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
