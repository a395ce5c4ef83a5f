"""Replicas: processes with the model behind the queue of one server."""

import asyncio
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serving.listening import listening
from worldpm import cli
from worldpm.errors import WorldPMError
from worldpm.model.encoder import EncodedGroup
from worldpm.options.serve import ServeOptions
from worldpm.scoring.scorer import Scorer
from worldpm.serving.batcher import Batcher, Worker, WorkerLostError
from worldpm.serving.decision_log import DecisionLog
from worldpm.serving.replicas import Replica, start_replicas

BODY = {"prompt": "Bread?", "responses": ["Yes.", "No, cake."]}


def eventually(is_true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_killed_replica_is_replaced_and_no_request_fails(road: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.sqlite"
    expected = Scorer.load(road / "checkpoint").rewards("Bread?", BODY["responses"])
    with listening(road, replicas=2, log=log) as (address, service):
        url = f"http://{address[0]}:{address[1]}"
        children = [
            process
            for process in psutil.Process().children()
            if "spawn_main" in " ".join(process.cmdline())
        ]
        assert len(children) == 2
        statuses: list[int] = []
        replies: list[list[float]] = []
        is_over = threading.Event()

        def ask() -> None:
            with httpx.Client(timeout=90) as client:
                while not is_over.is_set():
                    reply = client.post(f"{url}/v1/rewards", json=BODY)
                    statuses.append(reply.status_code)
                    replies.append(reply.json()["rewards"])

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        eventually(lambda: len(statuses) > 20)
        children[0].send_signal(signal.SIGKILL)
        eventually(lambda: "worldpm_replica_restarts 1.0" in httpx.get(f"{url}/metrics").text)
        assert httpx.get(f"{url}/ready").status_code == 200
        eventually(lambda: "worldpm_replicas_ready 2.0" in httpx.get(f"{url}/metrics").text)
        is_over.set()
        for client in clients:
            client.join()

        assert set(statuses) == {200}
        for rewards in replies:
            assert rewards == pytest.approx(expected, abs=1e-5)
        # Explanations need the model itself
        assert httpx.post(f"{url}/v1/explain", json=BODY).status_code == 501
        assert service.is_ready

    decisions = DecisionLog(log)
    assert len(decisions) == len(statuses)
    decisions.close()
    eventually(lambda: not any(child.is_running() for child in children), 10)


def test_replicas_end_with_a_killed_server(road: Path) -> None:
    replicas, loaded = start_replicas(ServeOptions(model=str(road / "checkpoint"), replicas=2))
    assert loaded.dtype == "float32"
    pids = [replica.pid for replica in replicas]
    assert all(replica.is_ready for replica in replicas)
    # The end of the connection is all that a replica sees of a killed server
    for replica in replicas:
        replica._connection.close()
    eventually(lambda: not any(pid in psutil.pids() and is_alive(pid) for pid in pids), 20)
    for replica in replicas:
        replica.close()


def is_alive(pid: int | None) -> bool:
    return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_replica_that_cannot_load_the_model_stops_the_server(
    tmp_path: Path, road: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WorldPMError, match="no such folder"):
        start_replicas(ServeOptions(model=str(tmp_path / "absent"), replicas=2))

    # memory that runs out looks like this
    replica = Replica(0, ServeOptions(model=str(road / "checkpoint"), replicas=2))
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    with pytest.raises(WorldPMError, match="ended while it loaded the model"):
        replica.wait()
    replica.close()

    assert cli.main(["serve", str(road / "checkpoint"), "--replicas", "0"]) == 2
    assert "--replicas" in capfd.readouterr().err


@pytest.mark.parametrize("other", [{"upstream": ("http://a",)}, {"across_devices": True}])
def test_replicas_exclude_other_ways_to_use_many_devices(other: dict[str, object]) -> None:
    with pytest.raises(WorldPMError, match="--replicas cannot be used with"):
        ServeOptions(model="a", replicas=2, **other)  # type: ignore[arg-type]


class Fragile(Worker):
    """A worker that is lost with each group of the prompt [13]."""

    def __init__(self) -> None:
        super().__init__(self._rewards)
        self.lost = 0

    def _rewards(self, groups: Sequence[EncodedGroup]) -> list[list[float]]:
        if any(group.prefix == [13] for group in groups):
            self.lost += 1
            raise WorkerLostError("lost", by_row=True)
        return [[float(len(suffix)) for suffix in group.suffixes] for group in groups]


def group(prefix: int) -> EncodedGroup:
    return EncodedGroup([prefix], [[1], [1, 2]], [1, 2], [False, False])


def test_a_group_that_ends_two_workers_fails_alone() -> None:
    async def compute() -> tuple[list[list[list[float]] | BaseException], list[int], int]:
        workers = [Fragile(), Fragile()]
        batcher = Batcher(workers, row_tokens=100, queue_tokens=1000)
        running = asyncio.create_task(batcher.run())
        deadline = time.monotonic() + 10
        results = await asyncio.gather(
            *(batcher.rewards([group(prefix)], deadline=deadline) for prefix in (12, 13, 14)),
            return_exceptions=True,
        )
        running.cancel()
        return results, [worker.lost for worker in workers], batcher.waiting_tokens

    (first, bad, last), lost, waiting = asyncio.run(compute())
    assert (first, last) == ([[1.0, 2.0]], [[1.0, 2.0]])
    assert isinstance(bad, WorkerLostError)
    assert sum(lost) == 2
    assert waiting == 0


def test_a_row_that_met_a_dead_worker_loses_nothing_by_it() -> None:
    class Dead(Fragile):
        def _rewards(self, groups: Sequence[EncodedGroup]) -> list[list[float]]:
            self.lost += 1
            if self.lost < 5:
                raise WorkerLostError("dead", by_row=False)
            return [[0.0, 0.0] for _ in groups]

    async def compute() -> list[list[float]]:
        batcher = Batcher([Dead()], row_tokens=100, queue_tokens=1000)
        running = asyncio.create_task(batcher.run())
        rewards = await batcher.rewards([group(1)], deadline=time.monotonic() + 10)
        running.cancel()
        return rewards

    assert asyncio.run(compute()) == [[0.0, 0.0]]


@pytest.mark.proof
def test_idle_replicas_that_die_come_back_and_never_with_other_weights(
    road: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(road / "checkpoint", model)
    replicas, _ = start_replicas(ServeOptions(model=str(model), replicas=2))
    try:
        # No request arrives meanwhile
        for replica in replicas:
            assert replica.pid is not None
            os.kill(replica.pid, signal.SIGKILL)
        eventually(lambda: [replica.restarts for replica in replicas] == [1, 1], 20)
        eventually(lambda: all(replica.is_ready for replica in replicas))

        with (model / "model.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"!")
        (model / "manifest.json").unlink()
        first, second = replicas
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        eventually(lambda: first.is_broken)
        assert (first.is_ready, second.is_ready) == (False, True)
    finally:
        for replica in replicas:
            replica.close()
