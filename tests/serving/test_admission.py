"""The server limits clients that are slow, numerous or not trusted."""

import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.serving.listening import address_of, listening
from worldpm.errors import ConfigError, DataError
from worldpm.options.serve import ServeOptions
from worldpm.serving import admission, body_check
from worldpm.serving.backends import LocalBackend
from worldpm.serving.run import assemble
from worldpm.serving.service import COMING_SECONDS

BODY = {"prompt": "How long should I bake a loaf?", "responses": ["40 minutes.", "Who knows?"]}


@contextmanager
def served(road: Path, **options: Any) -> Iterator[tuple[TestClient, LocalBackend]]:
    """A client of the application within this process, and its backend."""
    application, service = assemble(ServeOptions(model=str(road / "checkpoint"), **options))
    assert isinstance(service.backend, LocalBackend)
    with TestClient(
        application, base_url="http://127.0.0.1", raise_server_exceptions=False
    ) as client:
        yield client, service.backend


@contextmanager
def client_of(road: Path, **options: Any) -> Iterator[TestClient]:
    """A client of the application within this process."""
    with served(road, **options) as (client, _):
        yield client


Connect = Callable[[tuple[str, int]], socket.socket]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """A function that opens connections, which are closed after the test."""
    with contextlib.ExitStack() as opened:

        def connect(address: tuple[str, int]) -> socket.socket:
            connection = opened.enter_context(socket.create_connection(address))
            connection.settimeout(10)
            return connection

        yield connect


def post(address: tuple[str, int], body: object = BODY, **headers: str) -> httpx.Response:
    url = f"http://{address[0]}:{address[1]}/v1/rewards"
    return httpx.post(url, json=body, headers=headers, timeout=30)


def is_closed_within(connection: socket.socket, seconds: float) -> bool:
    """Whether the server closes a connection."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


HALF_BODY = (
    b"POST /v1/rewards HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000\r\n\r\n{"
)


def test_half_sent_bodies_do_not_block_others_and_time_out(road: Path, connect: Connect) -> None:
    with address_of(road, max_requests=2, body_seconds=1.5) as address:
        slow = [connect(address) for _ in range(20)]
        for connection in slow:
            connection.sendall(HALF_BODY)
        assert post(address).status_code == 200

        assert slow[0].recv(65536).startswith(b"HTTP/1.1 408 ")
        assert all(is_closed_within(connection, 10) for connection in slow)


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", HALF_BODY[:40]])
def test_headers_that_do_not_arrive_end_the_connection(
    road: Path, connect: Connect, sent: bytes
) -> None:
    with address_of(road, header_seconds=0.3) as address:
        connection = connect(address)
        connection.sendall(sent)
        assert is_closed_within(connection, 10)
        # a second request on a connection has the limit too
        connection = connect(address)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(sent or b"G")
        assert is_closed_within(connection, 10)


def test_a_new_connection_replaces_the_longest_idle_one(road: Path, connect: Connect) -> None:
    with address_of(road, connections=10) as address:
        idle = [connect(address) for _ in range(30)]
        assert post(address).status_code == 200
        time.sleep(0.1)
        assert is_closed_within(idle[0], 10)
        idle[-1].sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert idle[-1].recv(65536).startswith(b"HTTP/1.1 200 ")


def test_new_connections_replace_half_sent_bodies_but_not_whole_requests(
    road: Path, connect: Connect
) -> None:
    with listening(road, connections=5) as (address, service):
        half = [connect(address) for _ in range(5)]
        for connection in half:
            connection.sendall(HALF_BODY)
        assert post(address).status_code == 200
        for connection in half:
            connection.close()

        backend = service.backend
        assert isinstance(backend, LocalBackend)
        computing = threading.Event()
        backend.batcher._threads[0].submit(computing.wait)
        at_work = [connect(address) for _ in range(5)]
        content = json.dumps(BODY).encode()
        for connection in at_work:
            connection.sendall(HALF_BODY[:-1].replace(b"1000", b"%d" % len(content)) + content)
        while service.open_requests < 5:
            time.sleep(0.01)
        late = connect(address)
        assert late.recv(65536).startswith(b"HTTP/1.1 503 ")
        computing.set()
        assert all(one.recv(65536).startswith(b"HTTP/1.1 200 ") for one in at_work)


def test_a_client_that_never_reads_its_reply_is_dropped(road: Path) -> None:
    with address_of(road) as address:
        request = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        with contextlib.closing(socket.socket()) as connection:
            # a small window, so that the replies wait in the server
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(address)
            connection.settimeout(8)
            # the replies exceed the buffers of the connection, so the server must close it
            connection.sendall(request * 40)
            end = time.monotonic() + 8
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < end:
                    time.sleep(0.1)
                    connection.sendall(b"G")
            assert time.monotonic() < end
        assert post(address).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\n" + b"x: %b\r\n" % (b"a" * 1000) * 100 + b"\r\n",
        b"GET /health HTTP/1.1\r\nx: " + b"a" * 100_000,
        b"GET /" + b"a" * 100_000,
        b"GET /health HTTP/1.1\r\n\r\n" * 200,
        b"POST /classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        + b"x: %b\r\n" % (b"a" * 1000) * 100,
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["many", "long", "address", "pipelined", "trailers", "proxy", "two lengths"],
)
def test_an_oversized_or_invalid_head_ends_the_connection(
    road: Path, connect: Connect, sent: bytes
) -> None:
    with address_of(road) as address:
        connection = connect(address)
        connection.settimeout(10)
        reply = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
            while part := connection.recv(65536):
                reply += part
        assert reply == b"" or b"HTTP/1.1 400 " in reply
        assert post(address).status_code == 200


@pytest.mark.parametrize("step", [1, 50, 10_000])
def test_a_client_that_asks_for_another_protocol_is_answered_in_http_1(
    road: Path, connect: Connect, step: int
) -> None:
    content = json.dumps(BODY).encode()
    chunks = b"%x\r\n%b\r\n0\r\nX-Api-Key: a\r\n\r\n" % (len(content), content)
    head = (
        b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    )
    sent = head + b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
    sent += head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    with address_of(road) as address:
        connection = connect(address)
        connection.settimeout(10)
        for begin in range(0, len(sent), step):
            connection.sendall(sent[begin : begin + step])
        reply = b""
        while reply.count(b"HTTP/1.1 200 ") < 2:
            part = connection.recv(65536)
            assert part
            reply += part
        assert reply.count(b"HTTP/1.1 200 ") == 2


def test_large_bodies_at_once_have_a_limit(
    road: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "LARGE_BYTES", 2**20)
    head = HALF_BODY.replace(b"1000", b"500000")[:-1]
    with address_of(road, max_body_mib=0.5) as address:
        large = [connect(address) for _ in range(4)]
        for connection in large:
            with contextlib.suppress(ConnectionError):
                connection.sendall(head + b"a" * 400_000)
        statuses = []
        for connection in large:
            connection.settimeout(1)
            with contextlib.suppress(TimeoutError, ConnectionError):
                statuses.append(connection.recv(12))
        assert b"HTTP/1.1 429" in statuses
        assert post(address).status_code == 200
        for connection in large:
            connection.close()
        time.sleep(0.2)
        # the memory of the closed connections is free again
        whole = {**BODY, "responses": ["a"], "prompt": "a " * 90_000, "cut": True}
        assert post(address, whole).status_code == 200


def test_a_full_server_lets_requests_wait_with_queue_wait(road: Path) -> None:
    body = {"prompt": "word " * 30, "responses": ["a", "b"]}
    options = {"queue_tokens": 300, "row_tokens": 200, "max_requests": 4}
    for queue_wait, statuses in ((0.0, {200, 429}), (30.0, {200})):
        with (
            client_of(road, queue_wait=queue_wait, **options) as client,
            ThreadPoolExecutor(16) as pool,
        ):
            replies = list(pool.map(lambda _: client.post("/v1/rewards", json=body), range(64)))
        assert {reply.status_code for reply in replies} == statuses


def test_a_wait_for_the_queue_ends_and_the_next_request_is_tried(road: Path) -> None:
    body = {"prompt": "word " * 30, "responses": ["a", "b"]}
    with served(road, queue_tokens=300, row_tokens=200, queue_wait=0.05) as (client, backend):
        held = threading.Event()
        backend.batcher._threads[0].submit(held.wait)  # the model is busy for a long time
        with ThreadPoolExecutor(16) as pool:
            waiting = [pool.submit(client.post, "/v1/rewards", json=body) for _ in range(16)]
            # some are in the queue, and the others are refused after they have waited
            while sum(reply.done() for reply in waiting) < 8:
                time.sleep(0.01)
            held.set()
            statuses = [reply.result().status_code for reply in waiting]
        assert statuses.count(429) >= 8
        assert backend.batcher.waiting_tokens == 0
        assert client.post("/v1/rewards", json=body).status_code == 200


def test_a_full_queue_rejects_before_the_body_is_read(road: Path) -> None:
    with served(road, queue_tokens=300) as (client, backend):
        client.post("/v1/rewards", json=BODY)
        backend.batcher.waiting_tokens = 300
        # if the server read the body, which is not JSON, it would reply 422
        reply = client.post("/v1/rewards", content=b"{")
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) >= 1
        backend.batcher.waiting_tokens = 0
        assert client.post("/v1/rewards", content=b"{").status_code == 422


def test_a_full_server_refuses_early_as_the_application_would(
    road: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(road, queue_tokens=300) as (address, service):
        assert post(address).status_code == 200
        backend = service.backend
        assert isinstance(backend, LocalBackend)
        backend.batcher.waiting_tokens = 299
        url = f"http://{address[0]}:{address[1]}"
        with caplog.at_level("INFO", "worldpm.access"), httpx.Client() as client:
            early = client.post(f"{url}/v1/rewards", json=BODY, headers={"x-request-id": "me"})
            # Without a declared length, the application decides once it has the body
            chunked = client.post(f"{url}/v1/rewards", content=iter([b'{"prompt": "a"}' * 9]))
            assert client.post(f"{url}/rerank", json=BODY).json().keys() == {"error"}
            assert client.post(f"{url}/v1/rewards", json=BODY, headers={"host": "evil"}).is_error
            assert client.get(f"{url}/ready").status_code == 200
            assert client.get(f"{url}/metrics").status_code == 200

        assert (early.status_code, early.json()) == (chunked.status_code, chunked.json())
        assert early.headers["x-request-id"] == "me"
        late = {name for name in chunked.headers if name != "connection"}
        assert late == set(early.headers)
        lines = [
            record
            for record in caplog.records
            if record.name == "worldpm.access" and record.message.endswith(" 429")
        ]
        assert len(lines) <= 2
        counted = service.metrics.errors.labels("Overloaded")
        assert counted._value.get() == 3

        # The connection stays open, and can be used again when the queue has space
        connection = connect(address)
        content = json.dumps(BODY).encode()
        whole = HALF_BODY[:-1].replace(b"1000", b"%d" % len(content)) + content
        connection.sendall(whole)
        assert connection.recv(65536).startswith(b"HTTP/1.1 429 ")
        backend.batcher.waiting_tokens = 0
        connection.sendall(whole[:-5])
        time.sleep(0.05)
        connection.sendall(whole[-5:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_requests_that_are_not_parsed_yet_count_as_coming_for_a_moment(
    road: Path, connect: Connect
) -> None:
    with listening(road, queue_tokens=1000) as (address, service):
        assert post(address).status_code == 200
        assert service.coming == 0
        backend = service.backend
        assert isinstance(backend, LocalBackend)
        # Two such requests fit
        backend.batcher._request_tokens = 60.0
        backend.batcher.waiting_tokens = 1000 - 120

        # Slow clients do not block others
        half = [connect(address) for _ in range(3)]
        for connection in half:
            connection.sendall(HALF_BODY)
        time.sleep(3 * COMING_SECONDS)
        assert (service.coming, post(address).status_code) == (0, 200)

        service.coming = 2
        assert post(address).status_code == 429
        service.coming = 0
        backend.batcher.waiting_tokens = 0


def test_the_tokens_of_a_request_are_estimated_from_others_of_its_size(road: Path) -> None:
    with served(road, queue_tokens=1000) as (client, backend):
        short, long = BODY, {**BODY, "responses": ["oven " * 60, "board " * 60]}
        for _ in range(3):
            assert client.post("/v1/rewards", json=short).status_code == 200
        backend.batcher.waiting_tokens = 800
        assert client.post("/v1/rewards", json=short).status_code == 200
        assert client.post("/v1/rewards", json=long).status_code == 429
        # An estimate never keeps a request out of an empty queue
        backend.batcher.waiting_tokens = 0
        assert client.post("/v1/rewards", json=long).status_code == 200


def test_texts_far_beyond_the_limit_are_refused_before_tokenizing(road: Path) -> None:
    text = "a " * 150_000
    with client_of(road) as client:
        for route, body in (
            ("/v1/rewards", {"prompt": text, "responses": ["b"], "cut": True}),
            ("/v1/rewards", {"prompt": "a", "responses": [text], "cut": True}),
            ("/v1/explain", {"prompt": text, "responses": ["b"], "cut": True}),
            ("/classify", {"input": text, "truncate_prompt_tokens": -1}),
            ("/tokenize", {"prompt": text}),
            ("/predict", {"inputs": text, "truncate": True}),
        ):
            reply = client.post(route, json=body)
            # each client gets the status of its engine
            status = 400 if route in ("/classify", "/tokenize") else 422
            assert (reply.status_code, "300,000 characters" in reply.text) == (status, True), route

        many = {"prompt": "a", "responses": ["b " * 50_000] * 25, "cut": True}
        assert "2,500,001 characters" in client.post("/v1/rewards", json=many).text


def test_many_responses_get_no_matrices(road: Path) -> None:
    with client_of(road) as client:
        reply = client.post("/v1/rewards", json={"prompt": "a", "responses": [""] * 256})
    assert len(reply.content) < 2**16
    content = reply.json()
    assert len(content["rewards"]) == len(content["ranking"]) == 256
    assert content["probabilities"] is content["style"]["with_settings"] is None


def test_compressed_bodies_have_the_limit_of_uncompressed_ones(road: Path) -> None:
    packed = {"content-encoding": "gzip", "content-type": "application/json"}

    def send(content: bytes, **headers: str) -> Any:
        return client.post("/v1/rewards", content=content, headers={**packed, **headers})

    with client_of(road) as client:
        whole = gzip.compress(json.dumps(BODY).encode())
        plain = client.post("/v1/rewards", json=BODY).json()
        assert send(whole).json()["rewards"] == pytest.approx(plain["rewards"], abs=1e-5)
        assert send(whole[:-9]).status_code == 400
        assert send(b"not gzip at all").status_code == 400
        assert send(whole + b"more").status_code == 400
        assert send(whole + whole).status_code == 400
        bomb = gzip.compress(b" " * 100_000_000)
        assert (len(bomb) < 100_000, send(bomb).status_code) == (True, 413)
        assert send(whole, **{"content-encoding": "br"}).status_code == 415


def test_only_names_of_this_machine_reach_a_server_of_this_machine(road: Path) -> None:
    def status(client: TestClient, host: str) -> int:
        return client.get("/health", headers={"host": host}).status_code

    with client_of(road, allow_hosts=("Proxy.Example",)) as client:
        for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1", "proxy.example"):
            assert status(client, host) == 200, host
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil:8000", ""):
            assert status(client, host) == 421, host
    with client_of(road, host="0.0.0.0") as client:
        assert status(client, "models.example") == 200


def test_every_reply_forbids_frames_sniffing_and_foreign_scripts(road: Path) -> None:
    with client_of(road) as client:
        replies = [
            client.get("/"),
            client.get("/health"),
            client.post("/v1/rewards", json=BODY),
            client.post("/v1/rewards", json={}),
            client.get("/nowhere"),
        ]
        for reply in replies:
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["x-frame-options"] == "DENY"
            policy = reply.headers["content-security-policy"]
            assert "default-src 'self'" in policy
            assert "unsafe" not in policy
        assert client.head("/health").status_code == 200
        assert client.request("HEAD", "/health").content == b""
        wrong = client.get("/v1/rewards")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_only_pages_of_named_origins_may_call_the_server(road: Path) -> None:
    def allowed(client: TestClient, origin: str) -> str | None:
        headers = {"origin": origin, "access-control-request-method": "POST"}
        reply = client.options("/v1/rewards", headers=headers)
        name: str | None = reply.headers.get("access-control-allow-origin")
        return name

    with client_of(road, cors=("https://app.example",)) as client:
        assert allowed(client, "https://app.example") == "https://app.example"
        assert allowed(client, "https://evil.example") is None
    with client_of(road) as client:
        assert allowed(client, "https://app.example") is None
    for origin in ("*", "app.example", "https://app.example/path"):
        with pytest.raises(ConfigError, match="--cors"):
            ServeOptions(model="m", cors=(origin,))


def test_a_keys_file_that_others_can_read_is_refused(road: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"ann": {"key": "s3cret"}}')
    for mode, fits in ((0o644, False), (0o620, False), (0o640, True), (0o600, True)):
        keys.chmod(mode)
        if fits:
            with client_of(road, keys=keys):
                pass
        else:
            with pytest.raises(ConfigError, match="chmod 600"):
                assemble(ServeOptions(model=str(road / "checkpoint"), keys=keys))


def test_logged_errors_have_their_kind_and_ids(
    road: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with client_of(road) as client, caplog.at_level("INFO", "worldpm.access"):
        sent = client.post("/v1/rewards", json={}, headers={"x-request-id": "abc"})
    fields = vars(caplog.records[-1])
    assert sent.headers["x-request-id"] == fields["http.request.id"] == "abc"
    assert fields["error.type"] == "Bad Request"
    assert fields["http.request.body.bytes"] == 2
    assert fields["http.response.body.bytes"] == len(sent.content)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b'{"a":[' + b"[]," * 5000 + b"1]}", "lists and objects"),
        (b'{"a":[' + b'"",' * 70_000 + b"1]}", "texts and keys"),
        (b'{"a":[' + b"1," * 1_100_000 + b"1]}", "values"),
        (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}" + b" " * 9000, "nests lists"),
        (b'{"a":1,' * 40 + b" " * 9000, "nests lists"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(3000)) + b"}", "3,000 keys"),
        # other parsers would accept these and read all keys
        (b'{"z":NaN,' + b",".join(b'"%d":1' % i for i in range(3000)) + b"}", "not JSON in UTF-8"),
        (("{" + ",".join(f'"{i}":1' for i in range(3000)) + "}").encode("utf-16"), "not JSON"),
        # brackets, commas and quotes within a text do not count
        (b'{"a":"' + b'[{,:\\"' * 100_000 + b'"}', None),
        (b'{"a":"' + b"\\\\" * 50_000 + b'"}', None),
        # the string does not end
        (b'{"a":"' + b'\\"' * 1_000_000, None),
        (b'{"a":[' + b"12345," * 500_000 + b"1]}", None),
        (b"\xff\xfe" * 10_000, None),
    ],
)
def test_the_outline_of_a_body_shows_its_fault(body: bytes, fault: str | None) -> None:
    started = time.monotonic()
    message = body_check.fault_of(body)
    assert message is None if fault is None else fault in str(message)
    # the check holds the interpreter's lock, which delays /health by the same time
    assert time.monotonic() - started < 5


def test_a_failure_is_counted_logged_and_answered_with_all_headers(
    road: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(road) as (client, backend):

        async def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a secret text")

        monkeypatch.setattr(backend, "conversations", broken)
        reply = client.post("/v1/rewards", json=BODY)
        assert reply.status_code == 500
        assert "a secret text" not in reply.text
        assert {"x-request-id", "content-security-policy"} <= reply.headers.keys()
        metrics = client.get("/metrics").text
    assert 'worldpm_errors_total{kind="InternalServerError"} 1.0' in metrics


def test_numbers_that_json_lacks_are_refused(road: Path, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": float("nan")}}}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    with client_of(road, log=tmp_path / "log.sqlite") as client:
        reply = client.post(
            "/v1/rewards",
            content=json.dumps({"messages": turns}),
            headers={"content-type": "application/json"},
        )
    assert reply.status_code == 422
    assert "NaN or infinite" in reply.text


def test_the_deadline_of_a_request_includes_its_wait_for_a_slot(road: Path) -> None:
    with served(road, max_requests=1, queue_wait=30) as (client, backend):
        client.post("/v1/rewards", json=BODY)
        held = threading.Event()
        with ThreadPoolExecutor(2) as pool:
            backend.batcher._threads[0].submit(held.wait)
            first = pool.submit(client.post, "/v1/rewards", json=BODY)
            time.sleep(0.3)
            late = pool.submit(
                client.post, "/v1/rewards", json=BODY, headers={"x-timeout-seconds": "0.2"}
            )
            time.sleep(0.5)
            held.set()
            assert (first.result().status_code, late.result().status_code) == (200, 503)


def test_a_body_that_is_too_large_is_answered_before_the_connection_ends(road: Path) -> None:
    with address_of(road) as (host, port):
        # this client reads nothing before it has sent the whole body
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.request("POST", "/v1/rewards", body=b" " * 5_000_000)
        assert connection.getresponse().status == 413
        connection.close()


def test_a_few_large_requests_do_not_keep_small_ones_out(road: Path) -> None:
    with served(road, queue_tokens=100_000) as (_, backend):
        batcher = backend.batcher
        batcher._request_tokens = 90_000
        batcher.waiting_tokens = 60_000
        assert batcher.seconds_until_room(10, coming=2) is None
        batcher.waiting_tokens = 99_995
        assert batcher.seconds_until_room(10) is not None
        batcher.waiting_tokens = 0


@pytest.mark.parametrize("key", ["\ud800", "\u00e4", "with blank", ""])
def test_a_key_that_no_header_can_carry_is_refused(road: Path, tmp_path: Path, key: str) -> None:
    keys = tmp_path / "keys.json"
    keys.touch(0o600)
    keys.write_text(json.dumps({"ann": {"key": key}}))
    with pytest.raises(DataError, match="ann"):
        assemble(ServeOptions(model=str(road / "checkpoint"), keys=keys))
