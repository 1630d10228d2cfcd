"""Jumps of the wall clock by hours and days do not affect a running service."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.journal_reader import JournalReader, measured
from tests.support.promotions import Model
from tests.support.registry import NewRegistry, Registry
from tests.support.service import Service, served, until

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long *offset;

__attribute__((constructor)) static void map(void) {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
    offset = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset;
    return status;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
"""
"""A library that adds the seconds in the file `CLOCK_OFFSET` to the wall clock of a process."""

Jump = Callable[[float], None]


@pytest.fixture
def jump(tmp_path: Path) -> Jump:
    """Set the clock of the service to an offset in seconds from the right time."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is installed: apt-get install gcc libc6-dev")
    (tmp_path / "clock.c").write_text(CLOCK)
    command = ["cc", "-shared", "-fPIC", "-o", "clock.so", "clock.c", "-ldl"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "offset").write_bytes(bytes(8))

    def jump(seconds: float) -> None:
        with (tmp_path / "offset").open("r+b") as file:
            file.write(struct.pack("=q", int(seconds)))

    return jump


@pytest.fixture
def service(jump: Jump, new_registry: NewRegistry, tmp_path: Path) -> Iterator[Service]:
    registry = Registry(new_registry(tmp_path))
    registry.promote("actor", registry.add("actor"))
    settings = {
        "models": "models:/actor/Production",
        "probation_seconds": 1,
        "journal_url": f"sqlite:///{tmp_path}/journal.db",
        "journal_days": 1,
        "model_env": "CLOCK_OFFSET",
    }
    clock = {"_clock_offset": tmp_path / "offset", "_ld_preload": tmp_path / "clock.so"}
    with served(registry.uri, tmp_path, **settings, **clock) as service:
        service.until_ready()
        yield service


def test_clock_jumps_have_no_effect(service: Service, jump: Jump, tmp_path: Path) -> None:
    registry = Registry(service.env["MLFLOW_TRACKING_URI"])
    model, journal_reader = (
        Model("actor", service, registry),
        JournalReader(f"sqlite:///{tmp_path}/journal.db"),
    )
    versions = ["1", model.add()]
    answered = 0
    hour = 3600
    for turn, offset in enumerate([0, 5 * hour, -5 * hour, 40 * 24 * hour, -time.time() + hour, 0]):
        jump(offset)
        model.promote(versions[turn % 2])
        model.until_live(versions[turn % 2])
        for _ in range(3):
            assert model.is_well(versions[turn % 2])
            answered += 1
        until(lambda expected=answered: measured(service, "written") == [expected])  # type: ignore[misc]
        assert service.client.get("/ready").status_code == 200
        assert "components" not in service.ready()
    assert journal_reader.count() == answered
    assert model.until_tagged("1", "superseded")
