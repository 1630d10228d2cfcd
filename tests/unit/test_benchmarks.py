"""Pure parts of the benchmarks: requests, checks of predictions, and the processing of measurements."""

from __future__ import annotations

import math
import os
import resource
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import orjson
import pytest

from benchmarks import bulk, processes, report, scale
from benchmarks.client import HttpClient, UnexpectedStatus, probe, summary
from benchmarks.report import ReportTable
from benchmarks.wrk import parse

WRK = """Running 1s test @ http://127.0.0.1:8000/predict
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.62ms  560.00us  1.02s    80.00%
    Req/Sec     2.43k   100.00     2.60k    70.00%
  Latency Distribution
     50%  500.00us
     75%    1.90ms
     90%    2.20ms
     99%    3.50ms
  2430 requests in 1.00s, 1.00MB read
  Socket errors: connect 0, read 1, write 0, timeout 2
  Non-2xx or 3xx responses: 4
Requests/sec:   2430.11
Transfer/sec:      1.00MB
"""


def test_wrk_output_is_parsed_in_milliseconds() -> None:
    measured = parse(WRK)
    assert (measured.rate, measured.p50, measured.p99, measured.worst) == (2430.11, 0.5, 3.5, 1020.0)
    assert measured.failed == 7


def test_missing_latencies_are_nan() -> None:
    measured = parse("unable to connect")
    assert measured.rate == 0
    assert math.isnan(measured.p99)
    assert math.isnan(measured.worst)


# -- bulk


def test_rows_are_distinct_reproducible_and_valid() -> None:
    generated = bulk.rows(2000)
    assert generated == bulk.rows(2000)
    assert len({tuple(row.values()) for row in generated}) == 2000
    assert all(0 < value <= 10 for row in generated for value in row.values())
    assert generated[:100] == bulk.rows(100)


def test_bodies_contain_the_same_rows() -> None:
    bodies = {name: orjson.loads(body) for name, body in bulk.bodies(3).items()}
    wanted = bulk.rows(3)
    split = bodies[bulk.SPLIT]["dataframe_split"]
    assert bodies[bulk.SERVING] == {"rows": wanted}
    assert bodies[bulk.RECORDS] == {"dataframe_records": wanted}
    assert [dict(zip(split["columns"], row, strict=True)) for row in split["data"]] == wanted


OURS = {"predictions": [{"probabilities": {"a": 0.25, "b": 0.75}}, {"probabilities": {"a": 1.0, "b": 0.0}}]}
THEIRS = {"predictions": [[0.25, 0.75], [1.0, 0.0]]}


@pytest.mark.parametrize("answer", [OURS, THEIRS])
def test_check_compares_with_the_bare_model(answer: object) -> None:
    body = orjson.dumps(answer)
    bulk.check("it", body, 2, {1: [1.0 - 1e-7, 1e-7]})
    with pytest.raises(bulk.WrongPrediction, match="2 rows for 3"):
        bulk.check("it", body, 3, {})
    with pytest.raises(bulk.WrongPrediction, match="for row 0"):
        bulk.check("it", body, 2, {0: [0.251, 0.749]})


def test_ratios_compare_rounds_with_the_better_format() -> None:
    speeds = {
        bulk.SERVING: [30.0, 20.0],
        bulk.SPLIT: [10.0, 10.0],
        bulk.RECORDS: [15.0, 5.0],
        bulk.BARE: [60.0, 80.0],
    }
    assert bulk.better(speeds) in (bulk.SPLIT, bulk.RECORDS)
    assert bulk.better(speeds | {bulk.SPLIT: [11.0, 11.0]}) == bulk.SPLIT
    assert bulk.ratios(speeds, bulk.RECORDS) == [2.0, 4.0]


# -- clients


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers["Content-Length"])))

        def answer(self, body: bytes) -> None:
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_client_raises_unless_the_status_is_200(server: str) -> None:
    with HttpClient(f"{server}/echo") as client:
        assert [client.request(b"1"), client.request(b"2")] == [b"1", b"2"]
    with HttpClient(f"{server}/missing") as client, pytest.raises(UnexpectedStatus, match="404"):
        client.request(b"1")


def test_probe_returns_latencies(server: str) -> None:
    probed = probe(f"{server}/health", 100, 0.1)
    assert 0 < probed.p50 <= probed.p99 <= probed.worst


def test_percentiles_are_measured_values() -> None:
    results = summary([float(value) for value in range(200, 0, -1)])
    assert (results.p50, results.p99, results.worst) == (100.0, 199.0, 200.0)
    assert summary([3.0]).p99 == 3.0


# -- processes


def test_private_memory_includes_clean_and_dirty() -> None:
    rollup = "Rss: 9000 kB\nPrivate_Clean:      512 kB\nPrivate_Dirty:     1536 kB\nPrivate_Hugetlb: 4 kB\n"
    assert processes.parse_private(rollup) == 2.0


def test_total_memory_includes_every_process() -> None:
    assert processes.Memory(100.0, 50.0, (10.0, 12.0)).total == 172.0


def test_open_files_raises_and_restores_the_limit() -> None:
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with processes.open_files(soft + 1) as allowed:
        assert allowed == (soft + 1 if hard == resource.RLIM_INFINITY else min(soft + 1, hard))
    with processes.open_files(1) as allowed:
        assert allowed == soft
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_cpu_seconds_increase() -> None:
    before = processes.cpu_seconds(os.getpid())
    while processes.cpu_seconds(os.getpid()) == before:
        pass


def test_is_open_detects_a_closed_connection() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        assert scale.is_open(ours)
        theirs.close()
        assert not scale.is_open(ours)


# -- report


def test_report_is_a_table_in_markdown() -> None:
    text = report.markdown(
        "Speed", [ReportTable("Rows", ("system", "rows/s"), (("ours", "1"),), ("A note.",))]
    )
    assert text.splitlines() == [
        "## Speed",
        "",
        "### Rows",
        "",
        "| system | rows/s |",
        "| --- | --- |",
        "| ours | 1 |",
        "",
        "- A note.",
    ]


def test_range_of_shows_min_median_and_max() -> None:
    assert report.range_of([3.0, 1.0, 2.5]) == "1.00 / 2.50 / 3.00"
    assert report.spread([1200.0, 1000.4, 3000.0]) == "1,200 (1,000–3,000)"
