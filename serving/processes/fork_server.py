"""Runs the fork server: a process that has done the heavy imports and forks the model processes.

`python -m serving.processes.fork_server FD MODULES [enforce] [strict] [sandbox:PATHS,PORTS]` imports the
modules (a comma-separated list, or `-` for the modules that models commonly need). With `sandbox` it confines
model processes, which may then read only the paths and connect only to the TCP ports. It reads commands from
the socket FD, one JSON object per line:

- `{"fork": FOLDER, "number": N}` with a socket and a pipe attached: fork a process that serves the model in
  FOLDER on the socket and writes its output to the pipe. The reply is `{"forked": PID, "number": N}`, or
  `{"failed": REASON, "number": N}` if the system has no resources for a process.
- `{"ping": N}`: the reply is `{"pong": N, "pid": OWN PID}`, after the modules have been imported.
- `{"kill": PID}`: kill this process, if it is alive.

It sends `{"started": OWN PID}` first, and `{"ended": PID, "status": EXIT CODE OR -SIGNAL}` when a process has
ended. When the front ends for any reason, the fork server kills its processes and exits. It also kills
processes that a model process has started and left behind (`descendants`). If the fork server itself is
killed, its parent, the `guardian`, does this.

The fork server of `multiprocessing` is not suitable: its children keep it alive when the front is killed, and
its children import the front's main module again.
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
from serving.processes import descendants, guardian, model_process, privileges

PRELOAD = ("mlflow.sklearn", "sklearn.pipeline", "sklearn.ensemble", "skops.io")
"""Modules that models commonly need."""
_HARMLESS_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Operators may send them to all processes of the service, but only the front reacts."""
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, *_HARMLESS_SIGNALS)
"""The front decides when to stop; a signal to the whole process group must not interrupt its requests."""
# The front has priority over models that keep all cores busy: it does little work, but all requests need it.
_NICE = 10
_SANDBOX = "sandbox:"


class ForkServer:
    """Forks, kills and reaps model processes on the commands of the front."""

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
        # Processes that preloaded modules have started serve all models, and stay.
        self._shared = descendants.children()
        self._woken, self._wake = os.pipe()
        self._buffer = b""
        self._received_fds: list[int] = []

    def run(self) -> None:
        """Serve the front until it hangs up; then kill all remaining processes."""
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
        """Wait for one event and handle it; return false when the front has gone."""
        control = self.control.fileno()
        poll = select.poll()  # select(2) fails above descriptor 1,023, and preloaded modules may open many
        for descriptor in (control, self._woken, self._guardian):
            poll.register(descriptor, select.POLLIN)
        readable = {descriptor for descriptor, _ in poll.poll()}
        if self._woken in readable:
            os.read(self._woken, 4096)
            self._reap()
        return self._guardian not in readable and (control not in readable or self._handle_commands())

    def _handle_commands(self) -> bool:
        data, fds, flags, _ = socket.recv_fds(self.control, 65536, 16)
        self._received_fds += fds
        if flags & socket.MSG_CTRUNC:  # this process had no descriptors left
            self._close_received_fds()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
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
        # The kernel never delivers the descriptors of two commands together.
        try:
            connection, output = self._received_fds
            pid = os.fork()
            if pid == 0:
                self._become_model_process(connection, output, folder)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "too many open files"
            self._send({"failed": reason or repr(error), "number": number})
        else:
            self.children.add(pid)
            self._send({"forked": pid, "number": number})
        finally:
            self._close_received_fds()

    def _close_received_fds(self) -> None:
        while self._received_fds:
            os.close(self._received_fds.pop())

    def _become_model_process(self, connection: int, output: int, folder: Path) -> None:
        status = 1
        try:
            privileges.drop_privileges()
            descendants.die_with_parent()
            descendants.adopt_orphans()
            os.setsid()  # only the front handles Ctrl-C in the terminal
            _redirect_output(output)
            os.nice(_NICE)
            _reset_signal_handlers()
            for inherited in (self.control.detach(), self._woken, self._wake, self._guardian):
                os.close(inherited)
            scratch = _make_scratch()
            if self.strict:
                sys.addaudithook(_refuse_pickles)
            if self.sandbox is not None:
                _confine([folder, *self.sandbox], scratch)
            model_process.serve(socket.socket(fileno=connection), folder, enforce=self.enforce)
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
            except ChildProcessError:  # noqa: PERF203 (a thread of a preloaded module has reaped it)
                self._report(child, signal.SIGKILL.value)
        # The kernel has made the orphans of ended model processes children of this process. Their own orphans
        # follow when they end.
        for orphan in descendants.children() - self.children - self._shared:
            descendants.kill(orphan)

    def _report(self, pid: int, status: int) -> None:
        """Report the end of a model process; ignore other children."""
        if pid in self.children:
            self.children.remove(pid)
            if scratch := _scratch(pid):
                shutil.rmtree(scratch, ignore_errors=True)
            self._send({"ended": pid, "status": os.waitstatus_to_exitcode(status)})

    def _send(self, message: dict[str, int | str]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self.control.sendall(json.dumps(message).encode() + b"\n")


def _scratch(pid: int) -> Path | None:
    """Return the temporary folder of a model process; None if the front could not create one."""
    folder = Path(os.environ.get("TMPDIR", ""))
    return folder / str(pid) if folder.name.startswith(guardian.SCRATCH) else None


def _make_scratch() -> list[Path]:
    """Create a folder for the temporary files of this process; the fork server removes it afterwards."""
    if folder := _scratch(os.getpid()):
        with suppress(OSError):  # the disk is full
            folder.mkdir(mode=0o700)
            os.environ["TMPDIR"], tempfile.tempdir = str(folder), None
            return [folder]
    return []


def _confine(allowed: Sequence[str | Path], scratch: Sequence[Path]) -> None:
    ports = [int(entry) for entry in map(str, allowed) if entry.isdecimal()]
    sandbox.confine([entry for entry in allowed if not str(entry).isdecimal()], scratch, ports)


def _reset_signal_handlers() -> None:
    """Restore Python's default signal handlers: model code may send signals to processes that it forks."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _redirect_output(output: int) -> None:
    """Redirect the standard streams, also those of C libraries, to `output`, with line buffering."""
    for standard in (sys.stdout, sys.stderr):
        standard.flush()
        os.dup2(output, standard.fileno())
    os.close(output)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def _refuse_pickles(event: str, _: tuple[Any, ...]) -> None:
    """Refuse to unpickle classes; model code cannot remove an audit hook."""
    if event == "pickle.find_class":
        raise PermissionError("strict mode does not allow pickles that refer to a class")


def preload(modules: Sequence[str] | None) -> None:
    """Import modules that all model processes then share, and use them once to fill their caches.

    With None, import the modules that models commonly need, as far as they are installed.
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
    except Exception as error:  # models that do not need this module can still be served
        if expected:
            print(f"preloading {name} failed: {error!r}", file=sys.stderr)


def _warm(use: Callable[[], None]) -> None:
    """Call a warm-up function; it may fail in environments with other releases of packages."""
    try:
        use()
    except Exception as error:
        print(f"warm-up {use.__name__} failed: {error!r}", file=sys.stderr)


def _compare_once() -> None:
    """Make MLflow look up the installed packages, which takes 0.2 s once per process."""
    with suppress(ImportError, AttributeError, TypeError):  # an older MLflow
        requirements = importlib.import_module("mlflow.utils.requirements_utils")
        requirements.warn_dependency_requirement_mismatches(["mlflow"])


def _predict_once() -> None:
    """Predict once: all model processes then share 5 MB, and start 13 ms faster."""
    import pandas as pd
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table = pd.DataFrame({"x": [0.0, 1.0]})
    make_pipeline(StandardScaler(), LogisticRegression()).fit(table, [0, 1]).predict_proba(table)


def main() -> None:
    """Run the fork server as a child of the front; the arguments are described in the module docstring."""
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    guardian_pipe = guardian.guard(control)
    control.sendall(json.dumps({"started": os.getpid()}).encode() + b"\n")
    preload(None if sys.argv[2] == "-" else [name for name in sys.argv[2].split(",") if name])
    allowed = [argument[len(_SANDBOX) :].split(",") for argument in sys.argv if argument.startswith(_SANDBOX)]
    confined = [entry for entry in allowed[0] if entry] if allowed else None
    ForkServer(
        control,
        guardian_pipe,
        enforce="enforce" in sys.argv,
        strict="strict" in sys.argv,
        sandbox=confined,
    ).run()
    control.close()


if __name__ == "__main__":
    main()
