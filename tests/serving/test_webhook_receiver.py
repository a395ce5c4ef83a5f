"""The example receiver of `deploy/webhook` starts its command for drift events only."""

import base64
import hashlib
import hmac
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

RECEIVER = Path(__file__).parents[2] / "deploy" / "webhook" / "receiver.py"
SECRET = "whsec_" + base64.b64encode(b"a key of the tests, of 32 bytes.").decode()
BEGAN = json.dumps({"type": "drift.began", "timestamp": "2026-01-01T00:00:00Z", "data": {}})
Headers = dict[str, str]


def signature(secret: str, name: str, sent: str, body: str) -> str:
    """The value of `webhook-signature`."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = hmac.new(key, f"{name}.{sent}.{body}".encode(), hashlib.sha256).digest()
    return "v1," + base64.b64encode(signed).decode()


def headers(name: str, body: str, *, age: int = 0, secret: str = SECRET) -> Headers:
    """The headers of an event that was sent `age` seconds ago."""
    sent = str(int(time.time()) - age)
    return {
        "webhook-id": name,
        "webhook-timestamp": sent,
        "webhook-signature": signature(secret, name, sent, body),
    }


class Running(NamedTuple):
    """A receiver in a separate process."""

    port: int
    starts: Path
    """A file with a line for each start of the command."""

    def post(self, body: str, sent: Headers) -> int:
        """Status of the reply."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/", body.encode(), sent)
            return connection.getresponse().status
        finally:
            connection.close()

    def start_count(self) -> int:
        """Times that the command was started."""
        return len(self.starts.read_text().splitlines()) if self.starts.exists() else 0


@contextmanager
def running(folder: Path, *options: str, command: str = "") -> Iterator[Running]:
    """Run a receiver that writes a line to a file for each drift event."""
    secret, starts = folder / "secret", folder / "starts"
    secret.write_text(SECRET + "\n")
    command = command or f"echo {{time}} >> '{starts}'"
    words = [RECEIVER, "--port", "0", "--secret", secret, *options, "--", "sh", "-c", command]
    with subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield Running(int(process.stdout.readline().split()[-1]), starts)
        finally:
            process.kill()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, "--every", "0") as started:
        yield started


def test_signatures_are_those_of_the_specification() -> None:
    # The example of the reference libraries at github.com/standard-webhooks
    assert (
        signature(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            '{"test": 2432232314}',
        )
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_an_event_of_drift_starts_the_command_once(receiver: Running) -> None:
    sent = headers("msg_1", BEGAN)
    assert receiver.post(BEGAN, sent) == 200
    assert receiver.start_count() == 1
    assert abs(int(receiver.starts.read_text()) - time.time()) < 60

    # A sender repeats an event if the reply was lost, and must not count that as a failure
    assert receiver.post(BEGAN, sent) == 200
    assert receiver.start_count() == 1
    assert receiver.post(BEGAN, headers("msg_2", BEGAN)) == 200
    assert receiver.start_count() == 2


def test_a_sender_may_sign_with_its_old_secret_too(receiver: Running) -> None:
    sent = headers("msg_1", BEGAN)
    sent["webhook-signature"] = f"v1,AAAA v1a,AAAA {sent['webhook-signature']}"
    assert receiver.post(BEGAN, sent) == 200
    assert receiver.start_count() == 1


def changed(sent: Headers, **values: str) -> Headers:
    """The headers with other values; an empty value drops the header."""
    changes = {f"webhook-{name}": value for name, value in values.items()}
    return {name: value for name, value in {**sent, **changes}.items() if value}


def rejected() -> dict[str, tuple[str, Headers, int]]:
    """Bodies, headers and statuses of wrong requests, with current timestamps."""
    fresh = headers("msg_1", BEGAN)
    chunked = {**fresh, "content-length": "", "transfer-encoding": "chunked"}
    other_version = fresh["webhook-signature"].replace("v1,", "v2,")
    future = str(int(time.time()) + 1000)
    array, deep = '["type"]', "[" * 100_000
    # The receiver closes the connection without reading such a body
    large = {**fresh, "content-length": str(2**20 + 1)}
    return {
        "unsigned": (BEGAN, changed(fresh, signature=""), 401),
        "no headers": (BEGAN, {}, 401),
        "another secret": (BEGAN, headers("msg_1", BEGAN, secret="whsec_AAAA"), 401),
        "another version": (BEGAN, changed(fresh, signature=other_version), 401),
        "another body": (BEGAN.replace("{}", "[]"), fresh, 401),
        "another id": (BEGAN, changed(fresh, id="msg_2"), 401),
        "another time": (BEGAN, changed(fresh, timestamp=future), 401),
        "not ASCII": (BEGAN, changed(fresh, signature="v1,\xe9"), 401),
        "old": (BEGAN, headers("msg_1", BEGAN, age=400), 400),
        "in the future": (BEGAN, headers("msg_1", BEGAN, age=-400), 400),
        "not JSON": ("drift.began", headers("msg_1", "drift.began"), 400),
        "not an object": (array, headers("msg_1", array), 400),
        "nested too deeply": (deep, headers("msg_1", deep), 400),
        "too large": ("", large, 413),
        "chunked": (BEGAN, chunked, 411),
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("receiver"), "--every", "0") as started:
        yield started


@pytest.mark.parametrize("name", rejected())
def test_other_requests_are_rejected_and_start_nothing(shared: Running, name: str) -> None:
    body, sent, status = rejected()[name]
    assert shared.post(body, sent) == status
    assert shared.start_count() == 0


@pytest.mark.parametrize("kind", ["drift.ended", "fairness.finished", "unknown", 7])
def test_other_events_are_accepted_and_start_nothing(shared: Running, kind: object) -> None:
    body = json.dumps({"type": kind})
    assert shared.post(body, headers(f"msg_{kind}", body)) == 200
    assert shared.start_count() == 0


def test_the_command_starts_at_most_once_an_hour(tmp_path: Path) -> None:
    with running(tmp_path) as receiver:
        statuses = [receiver.post(BEGAN, headers(f"msg_{i}", BEGAN)) for i in range(3)]
        assert statuses == [200, 200, 200]
        assert receiver.start_count() == 1


def test_an_event_whose_command_failed_may_be_sent_again(tmp_path: Path) -> None:
    ready, starts = tmp_path / "ready", tmp_path / "starts"
    with running(tmp_path, command=f"test -e '{ready}' && echo >> '{starts}'") as receiver:
        sent = headers("msg_1", BEGAN)
        assert receiver.post(BEGAN, sent) == 500
        ready.touch()
        assert receiver.post(BEGAN, sent) == 200
        assert receiver.start_count() == 1


def test_a_silent_connection_does_not_stop_others(receiver: Running) -> None:
    silent = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=30)
    silent.putrequest("POST", "/")
    silent.putheader("content-length", "100")
    silent.endheaders()
    try:
        assert receiver.post(BEGAN, headers("msg_1", BEGAN)) == 200
    finally:
        silent.close()
