"""Messages to a webhook are signed by the specification, sent again, and reported when they
fail."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.conftest import run
from worldpm.errors import ConfigError, WorldPMError
from worldpm.options.serve import ServeOptions
from worldpm.serving import drift
from worldpm.serving.drift_messages import DriftMessages
from worldpm.serving.prometheus import Metrics
from worldpm.serving.service import Identity
from worldpm.storage.json_files import Json
from worldpm.webhook import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return path


class Receiver(HTTPServer):
    """A server that answers with these statuses in order, and then with 204."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = [*statuses]
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.got = threading.Semaphore(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append(({k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.end_headers()
        self.server.got.release()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiver(*statuses: int) -> Iterator[Receiver]:
    with Receiver(*statuses) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_signature_is_the_one_of_the_specification(secret: Path) -> None:
    # the example of the specification's reference libraries
    webhook = Webhook.read("http://x", secret)
    headers = webhook.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_message_is_sent_again_with_its_id_until_it_is_accepted(secret: Path) -> None:
    with receiver(500, 503) as there:
        Webhook.read(there.url, secret).post("drift.began", {"a": 1}, waits=(0, 0))
    (first, body), (second, _), (third, last) = there.received
    assert first["webhook-id"] == second["webhook-id"] == third["webhook-id"]
    assert body == last
    content = json.loads(body)
    assert (content["type"], content["data"]) == ("drift.began", {"a": 1})
    assert content["timestamp"].endswith("+00:00")


def test_a_message_that_no_receiver_accepts_is_an_error(secret: Path) -> None:
    with receiver(500, 500) as there, pytest.raises(WorldPMError, match="it answers 500"):
        Webhook.read(there.url, secret).post("drift.began", {}, waits=(0,))
    gone = Webhook.read("http://127.0.0.1:1/", secret)
    with pytest.raises(WorldPMError, match="refused"):
        gone.post("drift.began", {}, waits=())


def test_a_redirect_is_not_a_delivery(secret: Path) -> None:
    with receiver(302) as there, pytest.raises(WorldPMError, match="it answers 302"):
        Webhook.read(there.url, secret).post("drift.began", {}, waits=())
    assert len(there.received) == 1


def test_a_failed_message_does_not_stop_later_messages(secret: Path) -> None:
    changes = {"reward": drift.Change(float("inf"), 0.5, 1e-9)}
    metrics = Metrics()
    with receiver() as there:
        webhook = Webhook.read(there.url, secret)
        messages = DriftMessages(webhook, Identity("rm", "abc", "template", 512), metrics)
        # JSON has no infinity
        messages.changed(changes)
        messages.changed({"reward": drift.Change(0.0, 0.0, 1.0)})
        assert there.got.acquire(timeout=10)
    assert 'worldpm_webhooks_total{result="failed"} 1.0' in metrics.page().decode()


def test_secrets_are_private_and_long_enough(tmp_path: Path, secret: Path) -> None:
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Webhook.read("http://x", secret)
    for text in ("", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_%%%"):
        (tmp_path / "wrong").write_text(text)
        (tmp_path / "wrong").chmod(0o600)
        with pytest.raises(ConfigError, match="whsec_BASE64"):
            Webhook.read("http://x", tmp_path / "wrong")
    with pytest.raises(ConfigError, match="cannot be read"):
        Webhook.read("http://x", tmp_path / "none")


def test_options_name_a_complete_webhook(secret: Path) -> None:
    for options, message in (
        ({"webhook": "http://x"}, "belong together"),
        ({"webhook": "ftp://x", "webhook_secret": secret}, "not a URL"),
        ({"webhook": "http://ann:pass@x", "webhook_secret": secret}, "without a user name"),
        ({"webhook": "http://[::1", "webhook_secret": secret}, "not a URL"),
        ({"webhook": "http://x/\u00e4", "webhook_secret": secret}, "not a URL"),
        ({"webhook": "http://x", "webhook_secret": secret}, "needs --reference"),
    ):
        with pytest.raises(ConfigError, match=message):
            ServeOptions(model="m", **options)


def test_drift_is_reported_when_it_begins_and_when_it_ends(secret: Path) -> None:
    far, near = drift.Change(1.0, 0.5, 1e-9), drift.Change(0.0, 0.0, 1.0)
    identity = Identity("rm", "abc", "template", 512)
    with receiver() as there:
        messages = DriftMessages(Webhook.read(there.url, secret), identity, Metrics())
        for reward, length in ((near, near), (far, near), (far, near), (far, far), (near, far)):
            messages.changed({"reward": reward, "length": length})
        for _ in range(3):
            assert there.got.acquire(timeout=10)

    contents: list[Json] = [json.loads(body) for _, body in there.received]
    events = [(content["type"], list(content["data"]["series"])) for content in contents]
    assert events == [
        ("drift.began", ["reward"]),
        ("drift.began", ["length"]),
        ("drift.ended", ["reward"]),
    ]
    assert contents[0]["data"]["model"] == "rm"
    assert contents[0]["data"]["series"]["reward"]["stability_index"] == 1.0


def test_an_audit_reports_its_significant_gaps(road: Path, tmp_path: Path, secret: Path) -> None:
    file = tmp_path / "labelled.jsonl"
    rows = [
        # with any model, all pairs of one language are right and all of the other are wrong
        {
            "prompt": f"q {i}",
            "responses": ["yes", "no"],
            "preferred": i % 2,
            "language": "ab"[i % 2],
        }
        for i in range(60)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    with receiver() as there:
        options = ("--by", "language", "--webhook", there.url, "--webhook-secret", secret)
        assert run("fairness", road / "checkpoint", file, *options) == 0

    ((_, body),) = there.received
    content = json.loads(body)
    assert content["type"] == "fairness.finished"
    gaps = content["data"]["gaps"]
    assert {(gap["value"], gap["measure"]) for gap in gaps} >= {("a", "errors"), ("b", "errors")}
