"""Model processes: loading, predictions, failures and exit; none outlives the front."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.models import infer_signature

from serving.codecs import model_output
from serving.errors import ModelFailed, ProcessDied
from serving.processes.framing import FrameType, pack
from serving.processes.launcher import Launcher, LauncherOptions
from serving.processes.pool import Pool, next_backoff
from serving.processes.replica import Replica, ReplicaState
from serving.promotion_errors import LoadFailed
from serving.registry import artifact_store
from serving.telemetry.metrics import ExitReason
from tests.support.contracts import contract
from tests.support.process_ids import Watch, parent
from tests.support.registry import quiet, save_scripted_model

ROOT = Path(__file__).parents[2]
LAYOUT = contract("x: double, act: string?").layout

pytestmark = pytest.mark.anyio


def encode(*numbers: float, act: str | None = None) -> bytes:
    return LAYOUT.encode([{"x": number, "act": act} for number in numbers], "")


def state_of(replica: Replica) -> ReplicaState:
    """Return the state now: mypy assumes that an attribute keeps its value."""
    return replica.state


async def answer(replica: Replica, *numbers: float, act: str | None = None) -> list[Any]:
    predictions: list[Any] = (
        model_output.decode(await replica.infer(encode(*numbers, act=act))).column(0).to_pylist()
    )
    return predictions


async def all_ended(watch: Watch) -> bool:
    return not await asyncio.to_thread(watch.left)


@asynccontextmanager
async def started(launcher: Launcher, folder: Path, **part: Any) -> AsyncIterator[Replica]:
    replica = await Replica.start(launcher, save_scripted_model(folder, **part), 60)
    try:
        yield replica
    finally:
        replica.kill()
        await replica.dead


# -- loading


async def test_process_loads_and_predicts(launcher: Launcher, tmp_path: Path) -> None:
    async with started(launcher, tmp_path, factor=2.0) as replica:
        assert state_of(replica) is ReplicaState.IDLE
        assert await answer(replica, 1.0, 2.0) == [2.0, 4.0]
        assert await answer(replica, 3.0) == [6.0]
        assert repr(replica) == f"<Replica pid={replica.pid} idle>"
        assert replica.pid
        with Watch([replica.pid]) as watch:
            replica.kill()
            await replica.dead
            assert await all_ended(watch)
        assert state_of(replica) is ReplicaState.DEAD


async def test_several_processes_run_concurrently(launcher: Launcher, tmp_path: Path) -> None:
    async with (
        started(launcher, tmp_path, factor=2.0) as one,
        started(launcher, tmp_path, factor=3.0) as other,
    ):
        assert [*await asyncio.gather(answer(one, 1.0), answer(other, 1.0))] == [[2.0], [3.0]]


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("raise:no_weights", "loading it raised ValueError: no_weights"),
        ("quit:no_licence", "loading it raised SystemExit: no_licence"),
        ("exit:3", "its process ended with status 3 while loading"),
        ("exit:0", "its process ended with status 0 while loading"),
        ("kill", "its process was killed by SIGKILL while loading, perhaps out of memory"),
        ("deafen", "its process was killed by SIGKILL while loading, perhaps out of memory"),
    ],
)
async def test_model_that_fails_to_load_is_rejected_with_reason(
    launcher: Launcher, tmp_path: Path, act: str, reason: str
) -> None:
    with pytest.raises(LoadFailed) as refused:
        await Replica.start(launcher, save_scripted_model(tmp_path, example=None, on_load=act), 60)
    assert str(refused.value) == reason


async def test_folder_without_model_is_rejected(launcher: Launcher, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="loading it raised .*MLmodel"):
        await Replica.start(launcher, tmp_path, 60)


async def loading(launcher: Launcher, folder: Path, seconds: float) -> tuple[asyncio.Task[Replica], int]:
    """Start a model that hangs while it loads; return the task and the process id."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    part = f"note:{folder / 'pid'} wait:{pipe} hang"
    starting = asyncio.create_task(
        Replica.start(launcher, save_scripted_model(folder, example=None, on_load=part), seconds)
    )
    # Opening the pipe blocks until the model opens it.
    await asyncio.to_thread(pipe.write_text, "")
    return starting, int((folder / "pid").read_text())


async def test_loading_leaves_the_artifacts_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load a model with code; Python would write its bytecode beside it, and the digest would change."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    package = tmp_path / "helping"
    package.mkdir()
    (package / "__init__.py").write_text("FACTOR = 2\n")
    code = tmp_path / "doubling.py"
    code.write_text(
        "import helping, mlflow\n"
        "class Doubling(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return model_input['x'] * helping.FACTOR\n"
        "mlflow.models.set_model(Doubling())\n"
    )
    folder = tmp_path / "model"
    monkeypatch.syspath_prepend(tmp_path)
    signature = infer_signature(pd.DataFrame({"x": [1.0]}), [2.0])
    with quiet():
        mlflow.pyfunc.save_model(
            folder, python_model=code, code_paths=[package], signature=signature, pip_requirements=[]
        )
    for cache in [*folder.rglob("__pycache__")]:  # written while it was saved
        shutil.rmtree(cache)
    before = artifact_store.digest(folder)
    own = Launcher()
    try:
        replica = await Replica.start(own, folder, 60)
        table = contract("x: double").layout.encode([{"x": 3.0}], "")
        assert model_output.decode(await replica.infer(table)).column(0).to_pylist() == [6.0]
    finally:
        await own.aclose()
    assert artifact_store.digest(folder) == before


async def test_model_that_hangs_on_loading_is_stopped(launcher: Launcher, tmp_path: Path) -> None:
    starting, pid = await loading(launcher, tmp_path, 3)
    with Watch([pid]) as watch:
        with pytest.raises(LoadFailed, match="it had not loaded after 3 s, and was stopped"):
            await starting
        assert await all_ended(watch)


async def test_cancelled_load_leaves_no_process(launcher: Launcher, tmp_path: Path) -> None:
    starting, pid = await loading(launcher, tmp_path, 60)
    with Watch([pid]) as watch:
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert await all_ended(watch)


async def test_launcher_survives_immediately_cancelled_loads(launcher: Launcher, tmp_path: Path) -> None:
    folder = save_scripted_model(tmp_path)
    starting = [asyncio.create_task(Replica.start(launcher, folder, 60)) for _ in range(4)]
    for _ in range(3):
        await asyncio.sleep(0)
    for task in starting[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*starting, return_exceptions=True)
    assert [type(each) for each in outcomes[::2]] == [asyncio.CancelledError] * 2
    for replica in outcomes[1::2]:
        assert isinstance(replica, Replica)
        assert await answer(replica, 1.0) == [1.0]
        replica.kill()
        await replica.dead


# -- predictions


@pytest.mark.parametrize(
    ("act", "reason"),
    [("raise:secret", "it raised ValueError: secret"), ("quit:secret", "it raised SystemExit: secret")],
)
async def test_model_that_raises_serves_next_request(
    launcher: Launcher, tmp_path: Path, act: str, reason: str
) -> None:
    async with started(launcher, tmp_path) as replica:
        with pytest.raises(ModelFailed) as failed:
            await answer(replica, 1.0, act=act)
        assert str(failed.value) == reason
        assert "in perform" in failed.value.cause
        assert await answer(replica, 1.0) == [1.0]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
async def test_model_code_uses_processes(launcher: Launcher, tmp_path: Path, method: str) -> None:
    async with started(launcher, tmp_path) as replica:
        assert await answer(replica, 1.0, act=f"pool:{method}") == [1.0]


async def test_signal_to_front_does_not_reach_model_processes(launcher: Launcher, tmp_path: Path) -> None:
    async with started(launcher, tmp_path) as replica:
        assert replica.pid
        sessions = {os.getsid(pid) for pid in (0, parent(replica.pid), replica.pid)}
        assert len(sessions) == 3


@pytest.mark.parametrize("name", ["SIGTERM", "SIGQUIT", "SIGINT"])
async def test_signals_end_a_model_process(launcher: Launcher, tmp_path: Path, name: str) -> None:
    async with started(launcher, tmp_path) as replica:
        with pytest.raises(ProcessDied):
            await answer(replica, 1.0, act=f"signal:{name}")


async def test_child_processes_of_model_end_with_it(launcher: Launcher, tmp_path: Path) -> None:
    async with started(launcher, tmp_path) as other:
        async with started(launcher, tmp_path) as replica:
            notes = [tmp_path / "first", tmp_path / "second"]
            await answer(replica, 1.0, act=" ".join(f"daemon:{note}" for note in notes))
            await answer(other, 1.0, act=f"daemon:{tmp_path / 'others'}")
            watch = Watch([int(note.read_text()) for note in notes])
        with watch:
            assert await all_ended(watch)
        assert await answer(other, 1.0) == [1.0]
        with Watch([int((tmp_path / "others").read_text())]) as watch:
            assert not watch.has_ended()


@pytest.mark.parametrize("act", ["exit:0", "exit:3", "kill"])
async def test_request_of_dying_model_fails(launcher: Launcher, tmp_path: Path, act: str) -> None:
    async with started(launcher, tmp_path) as replica:
        with pytest.raises(ProcessDied):
            await answer(replica, 1.0, act=act)
        await replica.dead
        assert state_of(replica) is ReplicaState.DEAD


async def test_front_kills_hung_model(launcher: Launcher, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with started(launcher, tmp_path) as replica:
        call = asyncio.create_task(answer(replica, 1.0, act=f"wait:{pipe} hang"))
        await asyncio.to_thread(pipe.write_text, "")
        assert replica.state is ReplicaState.BUSY
        assert replica.pid
        with Watch([replica.pid]) as watch:
            replica.kill()
            with pytest.raises(ProcessDied):
                await call
            assert await all_ended(watch)


@pytest.mark.parametrize(
    "sent",
    [pack(FrameType.READY), pack(FrameType.OUTPUT, b"table"), pack(FrameType.FAILED, b"{}")],
    ids=["1", "3", "4"],
)
async def test_unexpected_frame_stops_the_process(launcher: Launcher, tmp_path: Path, sent: bytes) -> None:
    async with started(launcher, tmp_path) as replica:
        replica.data_received(sent)
        await replica.dead


async def test_invalid_bytes_stop_the_process(launcher: Launcher, tmp_path: Path) -> None:
    async with started(launcher, tmp_path) as replica:
        replica.data_received(b"\x70\0\0\0\0")
        await replica.dead


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"error": 5}'])
async def test_unreadable_failure_fails_the_request(
    launcher: Launcher, tmp_path: Path, payload: bytes
) -> None:
    async with started(launcher, tmp_path) as replica:
        call = asyncio.ensure_future(replica.infer(encode(1.0)))
        await asyncio.sleep(0)
        replica.data_received(pack(FrameType.FAILED, payload))
        with pytest.raises(ModelFailed, match="an exception that could not be read"):
            await call


async def test_large_table_is_returned_complete(launcher: Launcher, tmp_path: Path) -> None:
    async with started(launcher, tmp_path) as replica:
        numbers = [float(number) for number in range(200_000)]
        assert await answer(replica, *numbers) == numbers


# -- pools


class Hall:
    """Callbacks of a pool that collect its replicas and exits."""

    def __init__(self) -> None:
        self.ready: asyncio.Queue[Replica] = asyncio.Queue()
        self.deaths: list[ExitReason] = []
        self.restarts: list[ExitReason] = []

    def pool(self, launcher: Launcher, folder: Path, count: int = 1) -> Pool:
        return Pool(
            launcher,
            folder,
            count=count,
            load_seconds=60,
            on_ready=self.ready.put_nowait,
            on_death=self.deaths.append,
            on_restart=self.restarts.append,
        )


async def test_killed_process_is_replaced(launcher: Launcher, tmp_path: Path) -> None:
    hall = Hall()
    pool = hall.pool(launcher, save_scripted_model(tmp_path), count=2)
    await pool.start()
    pool.keep()
    try:
        first, second = [await hall.ready.get() for _ in range(2)]
        assert first.pid
        os.kill(first.pid, signal.SIGKILL)
        third = await hall.ready.get()
        assert third.pid not in (first.pid, second.pid)
        assert await answer(third, 1.0) == [1.0]
        assert await answer(second, 1.0) == [1.0]
        assert hall.deaths == hall.restarts == [ExitReason.CRASH]
        assert len([held for held in pool.memory() if held]) == 2
    finally:
        pool.kill()


async def test_killed_pool_leaves_no_process(launcher: Launcher, tmp_path: Path) -> None:
    hall = Hall()
    pool = hall.pool(launcher, save_scripted_model(tmp_path), count=3)
    await pool.start()
    pool.keep()
    pids = [replica.pid for replica in pool.replicas]
    assert len(set(pids)) == 3
    with Watch([pid for pid in pids if pid]) as watch:
        pool.kill()
        assert await all_ended(watch)
    assert hall.deaths == []


async def test_pool_that_cannot_start_leaves_no_process(launcher: Launcher, tmp_path: Path) -> None:
    """Let the first process load and the second one fail."""
    pool = Hall().pool(launcher, save_scripted_model(tmp_path, on_load=f"once:{tmp_path / 'pid'}"), count=2)
    with pytest.raises(LoadFailed, match="FileExistsError"):
        await pool.start()
    for replica in pool.replicas:
        await replica.dead


@pytest.mark.parametrize(
    ("pause", "lived", "expected"),
    [(-1, 0, 0), (-1, 100, 0), (0, 0, 0.5), (0.5, 0, 1), (16, 0, 30), (30, 0, 30), (30, 31, 0)],
)
async def test_early_exits_increase_restart_backoff(pause: float, lived: float, expected: float) -> None:
    assert next_backoff(pause, lived) == expected


# -- the fork server, and the front


async def test_modules_are_preloaded_once_for_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    note = "import os, pathlib\npathlib.Path(__file__).with_name('pids').open('a').write(f'{os.getpid()} ')"
    (tmp_path / "ahead.py").write_text(note)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    own, hall = Launcher(LauncherOptions(preload=["nowhere", "ahead"])), Hall()
    pool = hall.pool(own, save_scripted_model(tmp_path), count=2)
    try:
        await pool.start()
        pool.keep()
        servers = {parent((await hall.ready.get()).pid or 0) for _ in range(2)}
    finally:
        pool.kill()
        await own.aclose()
    assert (tmp_path / "pids").read_text().split() == [str(server) for server in servers]
    assert "preloading nowhere failed: ModuleNotFoundError" in caplog.text


async def test_processes_that_fork_have_one_thread(tmp_path: Path) -> None:
    """Test that no thread can hold a lock at a fork; Python 3.12 and newer warn of such threads."""
    own = Launcher()  # with the default preload
    try:
        async with started(own, tmp_path) as replica:
            server = parent(replica.pid or 0)
            for process in (server, parent(server)):  # parent of the fork server: the guardian
                assert len(os.listdir(f"/proc/{process}/task")) == 1
    finally:
        await own.aclose()


async def test_pool_recovers_when_fork_server_is_killed(tmp_path: Path) -> None:
    own, hall = Launcher(), Hall()
    own.start()
    pool = hall.pool(own, save_scripted_model(tmp_path))
    try:
        await pool.start()
        pool.keep()
        first = await hall.ready.get()
        assert first.pid
        starting, pid = await loading(own, tmp_path, 60)
        server = parent(first.pid)
        with Watch([server, first.pid, pid]) as watch:
            os.kill(server, signal.SIGKILL)
            assert await all_ended(watch)
        # The failure is not attributed to the version that was loading.
        with pytest.raises(ProcessDied):
            await starting
        second = await hall.ready.get()
        assert await answer(second, 1.0) == [1.0]
        assert second.pid
        assert parent(second.pid) != server
    finally:
        pool.kill()
        await own.aclose()


async def test_close_waits_for_fork_servers_of_other_interpreters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = Launcher()
    other = own.with_interpreter(Path(sys.executable))
    replica = await Replica.start(other, save_scripted_model(tmp_path), 60)
    assert replica.pid
    with Watch([parent(replica.pid), replica.pid]) as watch:
        other.close()
        await own.aclose()
        assert await all_ended(watch)
    assert not own.supervisor.components
    assert "unexpectedly" not in caplog.text


async def test_row_58_fork_server_stopped_during_warm_up_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = "import os, pathlib\nnote = pathlib.Path(__file__).with_name('stopped')\n"
    stop += "if not note.exists():\n    note.touch()\n    os.kill(os.getpid(), 19)\n"
    (tmp_path / "stops.py").write_text(stop)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    own, folder = Launcher(LauncherOptions(preload=["stops"])), save_scripted_model(tmp_path)
    with pytest.raises(ProcessDied, match="was killed by SIGKILL"):
        await Replica.start(own, folder, 60)
    async with started(own, tmp_path) as replica:
        assert await answer(replica, 1.0) == [1.0]
    await own.aclose()


async def test_model_children_end_with_killed_fork_server(tmp_path: Path) -> None:
    own = Launcher()
    try:
        async with started(own, tmp_path) as replica:
            await answer(replica, 1.0, act=f"daemon:{tmp_path / 'daemon'}")
            assert replica.pid
            with Watch([int((tmp_path / "daemon").read_text())]) as watch:
                os.kill(parent(replica.pid), signal.SIGKILL)
                assert await all_ended(watch)
    finally:
        await own.aclose()


def interpreter(folder: Path, script: str) -> Path:
    """Write a script in place of the interpreter of an environment."""
    path = folder / "bin" / "python"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return path


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo Traceback >&2; echo 'AttributeError: no json_' >&2; exit 3",
            "ended with status 3: AttributeError: no json_",
        ),
        ("exit 0", "ended with status 0"),
        ("echo warning; kill -KILL $$", "was killed by SIGKILL, perhaps out of memory"),
    ],
)
async def test_exit_of_fork_server_is_explained(tmp_path: Path, script: str, reason: str) -> None:
    own = Launcher(LauncherOptions(interpreter=interpreter(tmp_path, script)))
    with pytest.raises(ProcessDied) as died:
        await Replica.start(own, save_scripted_model(tmp_path), 60)
    assert (
        str(died.value)
        == f"the process that starts model processes in this version's own environment {reason}"
    )
    await own.aclose()


async def test_fork_server_start_failure_is_explained(tmp_path: Path) -> None:
    own = Launcher(LauncherOptions(interpreter=tmp_path / "bin" / "python"))
    with pytest.raises(
        ProcessDied, match="in this version's own environment can't be started: .*No such file"
    ):
        await Replica.start(own, save_scripted_model(tmp_path), 60)
    await own.aclose()


FRONT = """
import asyncio, json, sys
from pathlib import Path
from serving.processes.launcher import Launcher, LauncherOptions
from serving.processes.pool import Pool

async def main(folder, table, daemon):
    launcher = Launcher()
    ready = asyncio.Queue()
    calls = {"on_ready": ready.put_nowait, "on_death": print, "on_restart": print}
    pool = Pool(launcher, Path(folder), count=2, load_seconds=60, **calls)
    await pool.start()
    pool.keep()
    pids = [replica.pid for replica in pool.replicas]
    await pool.replicas[1].infer(bytes.fromhex(daemon))
    # One is idle when the front dies, the other hangs.
    pool.replicas[0].submit(bytes.fromhex(table), print)
    print(json.dumps(pids), flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def test_killed_front_leaves_no_process(tmp_path: Path) -> None:
    daemon = tmp_path / "daemon"
    tables = [encode(1.0, act=act).hex() for act in ("hang", f"daemon:{daemon}")]
    command = [sys.executable, "-c", FRONT, str(save_scripted_model(tmp_path)), *tables]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as front:
        assert front.stdout
        pids = json.loads(front.stdout.readline())
        server = parent(pids[0])
        guardian = parent(server)
        assert parent(guardian) == front.pid
        with Watch([*pids, server, guardian, int(daemon.read_text())]) as watch:
            front.kill()
            assert not watch.left()
