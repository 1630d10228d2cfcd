"""The fork server: a process with the heavy imports done, from which model processes are forked.

`python -m serving.processes.fork_server FD MODULES [enforce] [strict] [sandbox:PATHS,PORTS]` imports the
modules, whose names are separated by commas, or for `-` those that models commonly need. With `sandbox` it
confines model processes, which may read the paths and connect to the TCP ports. It reads from the socket FD
what the front asks, one JSON object a line:

- `{"fork": FOLDER, "number": N}` with a socket and a pipe attached: fork a process that serves the model in
  FOLDER on that socket, and whose output goes to that pipe; answered by `{"forked": PID, "number": N}`, or by
  `{"failed": REASON, "number": N}` where the system has no room for a process
- `{"ping": N}`: once it has imported the modules, answered by `{"pong": N, "pid": OWN PID}`
- `{"kill": PID}`: kill that process, if it still lives

It sends `{"started": OWN PID}` first, and tells of each process that ended: `{"ended": PID, "status": EXIT
CODE OR -SIGNAL}`. When the front has gone, however it went, the fork server ends and takes its processes
along. It kills whatever a model process has started and leaves behind (`descendants`). Its parent, the
`guardian`, does so when it can't.

The fork server of `multiprocessing` won't do: its children keep it alive when the front is killed, and each
imports the front's main module again.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving import sandbox
from serving.processes import confinement, descendants, guardian, model_process

PRELOAD = ("mlflow.sklearn", "sklearn.pipeline", "sklearn.ensemble", "skops.io")
"""What models commonly need."""
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""The front decides when to stop; a signal sent to the whole group must not cut off its requests."""
# Where models keep every core busy, the front comes first: it has little to do, and everybody waits for it.
_NICE = 10
_SANDBOX = "sandbox:"


class ForkServer:
    """Forks, kills and reaps model processes as the front asks."""

    def __init__(
        self,
        control: socket.socket,
        guardian_pipe: int,
        *,
        enforce: bool,
        strict: bool,
        sandbox: Sequence[str] | None = None,
    ) -> None:
        self.control, self._guardian = control, guardian_pipe
        self.enforce, self.strict, self.sandbox = enforce, strict, sandbox
        self.children: set[int] = set()
        # What a module that was imported ahead of models has started serves all of them.
        self._shared = descendants.children()
        self._woken, self._wake = os.pipe()
        self._text = b""
        self._handles: list[int] = []

    def run(self) -> None:
        """Serve the front until it hangs up; then kill every process that is left."""
        descendants.adopt_orphans()
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            while self.step():
                pass
        finally:
            for pid in self.children:
                descendants.kill(pid)
            descendants.kill_children()

    def step(self) -> bool:
        """Wait for one event and handle it; False when the front has gone."""
        control = self.control.fileno()
        poll = select.poll()  # select fails with descriptors above 1,023, which preloaded modules may open
        for descriptor in (control, self._woken, self._guardian):
            poll.register(descriptor, select.POLLIN)
        readable = {descriptor for descriptor, _ in poll.poll()}
        if self._woken in readable:
            os.read(self._woken, 4096)
            self._reap()
        return self._guardian not in readable and (control not in readable or self._handle_commands())

    def _handle_commands(self) -> bool:
        data, handles, flags, _ = socket.recv_fds(self.control, 65536, 16)
        self._handles += handles
        if flags & socket.MSG_CTRUNC:  # this process had no descriptors left
            self._close_handles()
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "fork" in request:
                self._fork(request["number"], Path(request["fork"]))
            elif "ping" in request:
                self._send({"pong": request["ping"], "pid": os.getpid()})
            elif request["kill"] in self.children:
                descendants.kill(request["kill"])
        return bool(data)

    def _fork(self, number: int, folder: Path) -> None:
        # The kernel never delivers the descriptors of two requests together.
        try:
            handle, output = self._handles
            pid = os.fork()
            if pid == 0:
                self._become_model_process(handle, output, folder)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "too many open files"
            self._send({"failed": reason or repr(error), "number": number})
        else:
            self.children.add(pid)
            self._send({"forked": pid, "number": number})
        finally:
            self._close_handles()

    def _close_handles(self) -> None:
        while self._handles:
            os.close(self._handles.pop())

    def _become_model_process(self, handle: int, output: int, folder: Path) -> None:
        status = 1
        try:
            confinement.drop_privileges()
            descendants.die_with_parent()
            descendants.adopt_orphans()
            os.setsid()  # a Ctrl-C in the terminal is the front's
            _redirect_output(output)
            os.nice(_NICE)
            _handle_signals_by_default()
            for inherited in (self.control.detach(), self._woken, self._wake, self._guardian):
                os.close(inherited)
            scratch = _own_scratch()
            if self.strict:
                sys.addaudithook(_refuse_pickles)
            if self.sandbox is not None:
                _confine([folder, *self.sandbox], scratch)
            model_process.serve(socket.socket(fileno=handle), folder, enforce=self.enforce)
            status = 0
        except (BrokenPipeError, ConnectionResetError):
            status = 0  # the front has gone
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._report(*ended)
        for child in list(self.children):
            try:
                self._report(*os.waitpid(child, os.WNOHANG))
            except ChildProcessError:  # noqa: PERF203 — a thread of a preloaded module has reaped it
                self._report(child, signal.SIGKILL.value)
        # What a model process had started is adopted by now. When it ends, so is what that had started.
        for orphan in descendants.children() - self.children - self._shared:
            descendants.kill(orphan)

    def _report(self, pid: int, status: int) -> None:
        """Report the end of a model process; that of any other child, or of none, is of no interest."""
        if pid in self.children:
            self.children.remove(pid)
            if scratch := _scratch(pid):
                shutil.rmtree(scratch, ignore_errors=True)
            self._send({"ended": pid, "status": os.waitstatus_to_exitcode(status)})

    def _send(self, fact: dict[str, int | str]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self.control.sendall(json.dumps(fact).encode() + b"\n")


def _scratch(pid: int) -> Path | None:
    """Return the temporary folder of a model process; None where the front could make none."""
    folder = Path(os.environ.get("TMPDIR", ""))
    return folder / str(pid) if folder.name.startswith(guardian.SCRATCH) else None


def _own_scratch() -> list[Path]:
    """Have the temporary files of this process in a folder of its own, which is removed after its end."""
    if own := _scratch(os.getpid()):
        with suppress(OSError):  # the disk is full
            own.mkdir(mode=0o700)
            os.environ["TMPDIR"], tempfile.tempdir = str(own), None
            return [own]
    return []


def _confine(allowed: Sequence[str | Path], scratch: Sequence[Path]) -> None:
    ports = [int(each) for each in map(str, allowed) if each.isdecimal()]
    sandbox.confine([each for each in allowed if not str(each).isdecimal()], scratch, ports)


def _handle_signals_by_default() -> None:
    """Handle signals as any Python process does: model code may send them to processes that it forks."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, *_IGNORED):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _redirect_output(output: int) -> None:
    """Have all that is printed, by C libraries too, go to `output` as soon as a line is whole."""
    for standard in (sys.stdout, sys.stderr):
        standard.flush()
        os.dup2(output, standard.fileno())
    os.close(output)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def _refuse_pickles(event: str, _: tuple[Any, ...]) -> None:
    """An audit hook, which whatever is loaded can't take off again."""
    if event == "pickle.find_class":
        raise PermissionError("strict mode lets no pickle name a class")


def preload(modules: Sequence[str] | None) -> None:
    """Import these modules beside what every model needs, and use that once.

    None are those that models commonly need; what of them isn't installed, no model here can need.
    """
    for name in ("mlflow.pyfunc", *(PRELOAD if modules is None else modules)):
        _import_ahead(name, expected=modules is not None)
    _warm(_compare_once)
    if "sklearn" in sys.modules:
        _warm(_predict_once)
    gc.collect()
    gc.freeze()


def _import_ahead(name: str, *, expected: bool) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever it is, models that do not need it can be served
        if expected:
            print(f"{name} can't be imported ahead of models: {error!r}", file=sys.stderr)


def _warm(use: Callable[[], None]) -> None:
    """Use something once ahead of models, which may fail with releases of packages that the front has not."""
    try:
        use()
    except Exception as error:
        print(f"{use.__name__} failed ahead of models: {error!r}", file=sys.stderr)


def _compare_once() -> None:
    """Have MLflow look up what is installed, which it does once a process, to compare requirements: 0.2 s."""
    with suppress(ImportError, AttributeError, TypeError):  # of older MLflow
        requirements = importlib.import_module("mlflow.utils.requirements_utils")
        requirements.warn_dependency_requirement_mismatches(["mlflow"])


def _predict_once() -> None:
    """What is made at the first prediction is then shared by all model processes: 5 MB, and 13 ms each."""
    import pandas as pd
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table = pd.DataFrame({"x": [0.0, 1.0]})
    make_pipeline(StandardScaler(), LogisticRegression()).fit(table, [0, 1]).predict_proba(table)


def main() -> None:
    """Run as the front's child, with the number of the control socket as argument."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    guardian_pipe = guardian.guard(control)
    control.sendall(json.dumps({"started": os.getpid()}).encode() + b"\n")
    preload(None if sys.argv[2] == "-" else [name for name in sys.argv[2].split(",") if name])
    allowed = [each[len(_SANDBOX) :].split(",") for each in sys.argv if each.startswith(_SANDBOX)]
    confined = [each for each in allowed[0] if each] if allowed else None
    ForkServer(
        control,
        guardian_pipe,
        enforce="enforce" in sys.argv,
        strict="strict" in sys.argv,
        sandbox=confined,
    ).run()


if __name__ == "__main__":
    main()
