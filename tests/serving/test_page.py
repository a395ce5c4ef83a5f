"""The page in Chromium: results agree with each other, errors replace them, and neither a mouse nor
a wide window is needed."""

import contextlib
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worldpm.options.serve import ServeOptions
from worldpm.scoring.confidence import Confidence, Settings, StyleModel
from worldpm.serving.run import assemble
from worldpm.serving.service import ApiKey, Service
from worldpm.storage.json_files import Json

pytest.importorskip("playwright", reason="playwright (pip install playwright) is not installed")

from playwright.sync_api import Browser, Page, Request, Route, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path"),
]
CHROMIUM_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
LIKELY = re.compile(r"(over|under)? ?(\d+) % likely to be preferred")
PHONE = {"width": 390, "height": 844}

NOISY = Confidence(temperature=1.0, margins=[-1e6] * 20, source="20 test pairs")
"""A threshold above every margin, and above all log odds that weights can add."""
EXACT = Confidence(
    temperature=1.0, margins=[1.0] * 20, style=StyleModel(1.0, {}), source="20 test pairs"
)
"""A threshold of 0: every margin is certain."""


@dataclass
class Site:
    """A server in this process."""

    url: str
    service: Service
    calibrated: Confidence
    """Confidence of the server as it started."""


@dataclass(frozen=True)
class Card:
    """An answer as the page shows it."""

    name: str
    reward: float
    bar: float
    """Width, 0 to 1."""
    text: str
    badges: list[str]
    is_outside: bool


def with_policy(application: ASGIApp) -> ASGIApp:
    """The application, with a strict Content-Security-Policy where it sends none."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("content-security-policy", POLICY)
            await send(message)

        await application(scope, receive, send_with_policy)

    return wrapped


@pytest.fixture(scope="module")
def site(road: Path) -> Iterator[Site]:
    application, service = assemble(
        ServeOptions(model=str(road / "checkpoint"), name="tinyrm", calibration=road / "results")
    )
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(with_policy(application), log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)

        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield Site(url, service, service.confidence)
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_OPTIONS))
        yield chromium
        chromium.close()


@pytest.fixture
def opened(site: Site, browser: Browser) -> Iterator[Callable[..., Page]]:
    """A function that opens the page in a new window. Afterwards the console must be empty."""
    site.service.confidence = site.calibrated
    site.service.keys = {}
    complaints: list[str] = []

    with contextlib.ExitStack() as windows:

        def open_page(*, explained: bool = False, **options: Any) -> Page:
            context = browser.new_context(**options)
            windows.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(60_000)
            # a comparison takes a tenth of a second without an explanation, and seconds with one
            if not explained:
                page.route("**/v1/explain", lambda route: route.fulfill(status=501, json={}))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "console",
                lambda message: complaints.append(f"{message.type}: {message.text}"),
            )
            page.goto(site.url)
            expect(page.locator("#model")).to_have_text(re.compile("Scored by tinyrm"))
            return page

        yield open_page

    # Chromium itself logs each request that fails, and the key's field outside a form
    notes = ("error: Failed to load resource: ", "verbose: [DOM] Password")
    assert [text for text in complaints if not text.startswith(notes)] == []


@pytest.fixture
def page(opened: Callable[..., Page]) -> Page:
    """A page whose server does not explain rewards."""
    return opened()


def compare(page: Page) -> list[Card]:
    """Press Compare, wait for the end, and read the cards in their order."""
    page.get_by_role("button", name="Compare").click()
    return finished(page)


def finished(page: Page) -> list[Card]:
    """The cards of the running comparison, in their order."""
    page.wait_for_selector("body[data-done]")
    expect(page.locator("#error")).to_be_hidden()
    expect(page.locator("#status")).to_be_hidden()
    cards = page.eval_on_selector_all(
        ".answer",
        """cards => cards.map(card => [
            card.dataset.answer, card.querySelector(".muted").textContent,
            card.querySelector(".bar span").style.width,
            card.querySelector(".row").firstChild.textContent,
            [...card.querySelectorAll(".badge")].map(badge => badge.textContent),
            card.classList.contains("outside")])""",
    )
    return [
        Card(
            name,
            float(reward.removeprefix("reward ")),
            float(width.removesuffix("%")) / 100,
            text,
            badges,
            is_outside,
        )
        for name, reward, width, text, badges, is_outside in cards
    ]


def check_agreement(page: Page, cards: Sequence[Card]) -> None:
    """Check that order, bars, percentages and headline agree."""
    inside = [card for card in cards if not card.is_outside]
    assert cards == [*inside, *(card for card in cards if card.is_outside)]
    for group in (inside, cards[len(inside) :]):
        bars = [card.bar for card in group]
        assert bars == sorted(bars, reverse=True)

    for card in cards:
        match = LIKELY.match(card.text)
        assert match, card.text
        bound, percentage = match.groups()
        assert bound or float(percentage) / 100 == pytest.approx(card.bar, abs=0.0051)

    headline = page.inner_text("#headline")
    named = set(re.findall(r"\b[A-P]\b", headline))
    names = {card.name for card in inside[1:]}
    unsure = {
        name
        for badge in inside[0].badges
        if badge.startswith("can't tell from ")
        for name in re.findall(r"\b[A-P]\b", badge)
    } & names
    assert inside[0].name in named
    assert ("Can't tell" in headline or " tie" in headline) == bool(unsure)
    if unsure:
        assert named == {inside[0].name, *unsure}


def settle(page: Page, **fields: object) -> None:
    """Fill in preference settings, with `_` for the dash of a field's id."""
    if not page.locator("#weight-length").is_visible():
        page.locator("#preferences summary").click()
    for name, value in fields.items():
        page.fill(f"#{name.replace('_', '-')}", str(value))


def write(page: Page, prompt: str, answers: Sequence[str]) -> None:
    """Replace the example with these texts."""
    page.select_option("#example", "")
    page.fill("#prompt", prompt)
    for number, text in enumerate(answers):
        if number >= 2:
            page.get_by_role("button", name="Add an answer").click()
        page.get_by_label(f"Answer {'ABCDEFG'[number]}", exact=True).fill(text)


def rewards_of(page: Page) -> list[float]:
    """Rewards of the texts in the form, from the server."""
    texts = page.eval_on_selector_all("#answers textarea", "areas => areas.map(a => a.value)")
    body = {"prompt": page.input_value("#prompt"), "responses": texts}
    reply = page.request.post(f"{page.url}v1/rewards", data=body)
    rewards: list[float] = reply.json()["rewards"]
    return rewards


@pytest.mark.parametrize("example", [0, 1, 2])
def test_each_example_is_ranked_by_its_rewards_and_explained(
    opened: Callable[..., Page], example: int
) -> None:
    page = opened(explained=True)
    page.select_option("#example", str(example))
    cards = compare(page)

    check_agreement(page, cards)
    rewards = rewards_of(page)
    order = sorted(range(len(rewards)), key=lambda index: -rewards[index])
    assert [card.name for card in cards] == ["ABC"[index] for index in order]
    assert [card.reward for card in cards] == pytest.approx(
        [rewards[index] for index in order], abs=6e-4
    )
    assert "calibrated on" in page.inner_text("#why")

    # the page shows each answer in full, split into tokens
    shown = {
        card: page.text_content(f"[data-answer={card}] .tokens") for card in "ABC"[: len(order)]
    }
    texts = page.eval_on_selector_all("#answers textarea", "areas => areas.map(a => a.value)")
    assert list(shown.values()) == texts
    titles = page.eval_on_selector_all(".tokens span", "spans => spans.map(s => s.title)")
    assert len(titles) > 10
    assert all(re.fullmatch(r"[+-]\d+\.\d{3} logits", title) for title in titles)
    assert "Marked words count for or against" in page.inner_text("#explanation")
    rows = page.eval_on_selector_all("#style th[scope=row]", "cells => cells.map(c => c.innerText)")
    assert rows[:2] == ["Length, tokens", "Headers"]
    assert "At equal style" in rows


def test_custom_texts_are_added_removed_and_compared(page: Page) -> None:
    write(page, "Is <b>this</b> safe?", ["Yes.", "<img src=x onerror=alert(1)>", "No!", "Why?"])
    page.get_by_role("button", name="Remove answer C").click()
    assert page.evaluate("document.activeElement.id") == "answer-2"
    cards = compare(page)

    check_agreement(page, cards)
    assert sorted(card.name for card in cards) == ["A", "B", "C"]
    assert page.text_content("[data-answer=B] .tokens") == "<img src=x onerror=alert(1)>"
    assert page.text_content("[data-answer=C] .tokens") == "Why?"
    assert page.locator("#results img").count() == 0

    # two answers cannot be removed
    page.get_by_role("button", name="Remove answer C").click()
    assert page.get_by_role("button", name="Remove").count() == 0
    for _ in range(20):
        if page.get_by_role("button", name="Add an answer").is_enabled():
            page.get_by_role("button", name="Add an answer").click()
    assert page.locator("#answers textarea").count() == 16


def test_weights_change_order_bars_and_headline_together(page: Page, site: Site) -> None:
    site.service.confidence = EXACT
    before = compare(page)
    check_agreement(page, before)
    assert page.inner_text("#headline") == f"Answer {before[0].name} is preferred"

    # answer A is the longer
    settle(page, weight_length=50 if before[0].name == "B" else -50)
    after = compare(page)
    check_agreement(page, after)
    assert [card.name for card in after] == [card.name for card in reversed(before)]
    assert [card.reward for card in after] == [card.reward for card in reversed(before)]
    assert page.inner_text("#headline") == (
        f"Answer {after[0].name} is preferred under these settings"
    )
    assert after[0].text == f"over 99 % likely to be preferred over {after[1].name}"
    assert "Log odds: length" in page.inner_text("#why")
    assert "With the weights above" in page.inner_text("#style")

    # an empty field sets no weight
    settle(page, weight_length="")
    assert compare(page) == before


def test_order_bars_and_headline_agree_for_three_answers_and_any_weight(
    page: Page, site: Site
) -> None:
    site.service.confidence = EXACT
    write(page, "How long?", ["Forty minutes.", "word " * 12, "About 40 minutes, or a bit more."])
    for weight in (-100, -20, -3, 3, 20, 100):
        settle(page, weight_length=weight)
        check_agreement(page, compare(page))


def test_a_best_answer_that_loses_to_another_is_not_called_preferred(
    page: Page, site: Site
) -> None:
    site.service.confidence = EXACT

    def make_ring(route: Route) -> None:
        reply = route.fetch().json()
        best, second, _ = reply["ranking"]
        reply["probabilities"][best][second] = 0.4
        route.fulfill(json=reply)

    page.route("**/v1/rewards", make_ring)
    page.select_option("#example", "2")
    best, second, _ = (card.name for card in compare(page))
    assert page.inner_text("#headline") == (
        f"Answer {best} is best on average, but {second} is preferred to it"
    )


def test_cannot_tell_is_reported_where_it_holds(page: Page, site: Site) -> None:
    site.service.confidence = NOISY
    page.select_option("#example", "2")
    cards = compare(page)
    headline = "Can't tell answers A, B and C apart at a level of 90 %"
    assert page.inner_text("#headline") == headline
    assert all(len(card.badges) == 1 for card in cards)
    check_agreement(page, cards)

    # also with weights, which are small compared with that noise
    settle(page, weight_length=100, strictness=0.7)
    check_agreement(page, compare(page))
    assert re.fullmatch(
        "Can't tell answers .* apart at a level of 70 % under these settings",
        page.inner_text("#headline"),
    )

    # 20 judged pairs are too few for this level
    settle(page, strictness=0.999, weight_length="")
    compare(page)
    assert re.fullmatch("Answer [ABC] is ahead", page.inner_text("#headline"))
    assert "too few judged pairs" in page.inner_text("#why")

    write(page, "Same?", ["Yes.", "Yes."])
    compare(page)
    assert page.inner_text("#headline") == "Answers A and B tie"


def test_answers_outside_the_ranges_rank_last_and_the_page_explains_it(page: Page) -> None:
    settle(page, longest=20)
    cards = compare(page)
    assert [(card.name, card.is_outside) for card in cards] == [("B", False), ("A", True)]
    assert page.inner_text("#headline") == "Only answer B is inside the allowed ranges"
    assert "ranked after the others" in page.inner_text("#outside")
    assert cards[1].badges[-1].startswith("length is")
    assert "Allowed: length 0 to 20." in page.inner_text("#why")

    settle(page, longest=2)
    compare(page)
    assert page.inner_text("#headline") == "All answers are outside the allowed ranges"
    assert page.locator("#outside").count() == 0

    settle(page, longest="", shortest=3)
    compare(page)
    assert "Allowed: length 3 or more." in page.inner_text("#why")
    assert page.locator(".outside").count() == 0

    # the server rejects this range, and the page shows the message
    settle(page, longest=2)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert")).to_contain_text("ends before it begins")


def test_an_error_replaces_results_and_a_cut_text_is_marked(page: Page) -> None:
    compare(page)
    fitting = page.input_value("#prompt")
    page.fill("#answer-0", "word " * 5000)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert")).to_contain_text("tokens of prompt and response, but at most")
    expect(page.locator("#results")).to_be_hidden()
    expect(page.locator("#status")).to_be_hidden()

    page.get_by_label("Cut long texts to the model's limit").check()
    bodies: list[Any] = []

    def note(request: Request) -> None:
        bodies.append(request.post_data_json)

    page.on("request", note)
    cards = {card.name: card for card in compare(page)}
    assert "cut to the model's limit" in cards["A"].badges
    assert "cut to the model's limit" not in cards["B"].badges
    assert page.input_value("#prompt") == fitting
    # rewards and explanation are of the same text
    assert [body["cut"] for body in bodies] == [True, True]

    page.select_option("#example", "1")
    expect(page.locator("#results")).to_be_hidden()


def test_a_server_that_is_gone_or_a_proxy_is_reported(page: Page) -> None:
    page.route("**/v1/rewards", lambda route: route.abort("connectionrefused"))
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert")).to_contain_text("The server did not answer.")
    page.unroute("**/v1/rewards")

    page.route("**/v1/rewards", lambda route: route.fulfill(status=502, body="<b>Bad</b>"))
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert")).to_contain_text("The server answered 502")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (501, "This server does not explain rewards: the model runs in another process."),
        (503, "The rewards cannot be explained: <b>busy</b>"),
    ],
)
def test_a_failed_explanation_leaves_the_results(page: Page, status: int, message: str) -> None:
    error = {"error": {"message": "<b>busy</b>"}}
    page.route("**/v1/explain", lambda route: route.fulfill(status=status, json=error))
    cards = compare(page)
    check_agreement(page, cards)
    assert page.inner_text("#explanation") == message
    assert page.locator(".tokens span").count() == 0


def test_late_replies_of_a_first_comparison_change_nothing(opened: Callable[..., Page]) -> None:
    page = opened(explained=True)
    held: list[Route] = []

    def hold_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/v1/rewards", hold_first)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("status").first).to_have_text("Comparing …")
    write(page, "Second?", ["second A", "second B"])
    cards = compare(page)
    check_agreement(page, cards)

    late: Json = {"error": {"message": "late"}}
    with contextlib.suppress(Exception):  # the page has cancelled it
        held[0].fulfill(status=500, json=late)
    page.wait_for_timeout(300)
    assert page.text_content("[data-answer=A] .tokens") == "second A"
    expect(page.locator("#error")).to_be_hidden()

    # a late explanation changes nothing, either
    page.route("**/v1/explain", lambda route: held.append(route))
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#explanation")).to_contain_text("Looking for the words")
    page.unroute("**/v1/explain")
    write(page, "Third?", ["third A", "third B"])
    compare(page)
    with contextlib.suppress(Exception):
        held[1].continue_()
    page.wait_for_timeout(300)
    assert page.text_content("[data-answer=B] .tokens") == "third B"


def test_a_key_is_requested_sent_and_not_stored(page: Page, site: Site) -> None:
    settings = Settings(ranges={"length": (0, 20)})
    site.service.keys = {"tests": ApiKey("secret-key", settings)}
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert")).to_contain_text("Enter the key under “API key”.")

    page.get_by_label("Key, if the server needs one").fill("secret-key")
    compare(page)
    # the settings of the key apply where the form has none
    assert page.inner_text("#headline") == "Only answer B is inside the allowed ranges"

    stored = page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert "secret-key" not in stored
    page.reload()
    assert page.input_value("#key") == ""


def test_a_wrong_field_is_shown(page: Page) -> None:
    settle(page, strictness=3)
    page.locator("#preferences summary").click()
    expect(page.locator("#strictness")).to_be_hidden()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#strictness")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "strictness"
    expect(page.locator("#results")).to_be_hidden()


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until the element has the focus, which must be visible."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid"
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_everything_can_be_done_with_the_keyboard_alone(page: Page) -> None:
    press, write_text = page.keyboard.press, page.keyboard.type
    tab_to(page, "#example")
    press("End")
    expect(page.locator("#prompt")).to_have_value("What is 17 times 6?")
    tab_to(page, "#prompt")
    press("Control+A")
    write_text("What is 2 + 2?")
    tab_to(page, "[aria-label='Remove answer C']")
    press("Enter")
    tab_to(page, "#cut")
    press("Space")
    expect(page.locator("#cut")).to_be_checked()
    tab_to(page, "#compare")
    press("Enter")
    expect(page.locator("#headline")).to_be_focused()
    check_agreement(page, finished(page))

    # add an answer, which gets the focus
    page.locator("#prompt").focus()
    tab_to(page, "#add")
    press("Space")
    write_text("Four.")
    tab_to(page, "#preferences summary")
    press("Enter")
    tab_to(page, "#weight-length")
    write_text("-9")
    press("Control+Enter")
    expect(page.locator("#headline")).to_be_focused()
    check_agreement(page, cards := finished(page))
    assert len(cards) == 3

    # after the headline comes the table, which scrolls in a narrow window
    tab_to(page, "[role=region]")


def test_roles_and_names_for_screen_readers(page: Page) -> None:
    compare(page)
    for role, name in (
        ("main", None),
        ("combobox", "Start from an example"),
        ("textbox", "Prompt"),
        ("textbox", "Answer B"),
        ("checkbox", "Cut long texts to the model's limit"),
        ("region", "Style, side by side"),
        ("columnheader", "A"),
        ("rowheader", "Headers"),
        ("article", None),
    ):
        elements = page.get_by_role(role, name=name, exact=True) if name else page.get_by_role(role)  # type: ignore[arg-type]
        assert elements.count() >= 1, (role, name)
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(h => Number(h.tagName[1]))")
    assert levels[:2] == [1, 2]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    unlabelled = "all => all.filter(field => !field.labels.length).map(field => field.id)"
    assert page.eval_on_selector_all("input, textarea, select", unlabelled) == []


CONTRASTS = """() => {
  const rgb = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => {
    const [r, g, b] = rgb(color).slice(0, 3).map(
      c => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if ((rgb(color)[3] ?? 1) === 1) return color;
    }
  };
  return ["h1", ".muted", "#headline", ".badge", "button.main", "#add", "textarea", "summary",
      ".answer h3", ".answer .muted", "thead th", "td:last-child"].map(selector => {
    const node = document.querySelector(selector);
    const pair = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
    return [selector, (pair[0] + 0.05) / (pair[1] + 0.05)];
  });
}"""
"""Contrast of texts with their background, as WCAG 2.2 defines it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_readable_in_light_and_dark(
    opened: Callable[..., Page], site: Site, scheme: str
) -> None:
    site.service.confidence = NOISY
    page = opened(color_scheme=scheme, reduced_motion="reduce")
    compare(page)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(21, 23, 26)") == (scheme == "dark")
    contrasts = page.evaluate(CONTRASTS)
    assert [(selector, ratio) for selector, ratio in contrasts if ratio < 4.5] == []

    # nothing moves
    assert page.evaluate("document.getAnimations().length") == 0
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_nothing_is_wider_than_a_phone(opened: Callable[..., Page], site: Site) -> None:
    site.service.confidence = NOISY
    page = opened(viewport=PHONE)
    settle(page, weight_length=2, longest=30)
    page.locator("#access summary").click()
    write(page, "w" * 300, ["a" * 200, *["word " * 6] * 6])
    page.get_by_label("Cut long texts to the model's limit").check()
    compare(page)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]

    settle(page, longest=0, shortest=9)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
