"""The command line: exit codes, one readable line per error, and JSON that a machine reads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from typer import BadParameter

from fastfeat.cli import app, options, output, read
from fastfeat.cli.child import served
from fastfeat.cli.definitions import load_definitions
from fastfeat.errors import SchemaError
from fastfeat.protocol import DEFAULT_PORT

COMMANDS = [
    "demo",
    "serve",
    "load",
    "get",
    "replay",
    "info",
    "snapshot",
    "compact",
    "check",
    "backup",
    "restore",
    "bench",
    "train",
]

DEFINITIONS = '''
"""Features of users."""

from fastfeat import Entity, FeatureService, FeatureView, Field

user = Entity("user", join_keys={"user_id": "int64"})
profile = FeatureView("profile", entity=user, schema=[Field("age", "int32"), Field("balance", "float64")])
scoring = FeatureService("scoring", [profile])
'''


@pytest.fixture
def definitions(tmp_path: Path) -> Path:
    path = tmp_path / "user_features.py"
    path.write_text(DEFINITIONS, encoding="utf-8")
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run([command, "--help"]) == app.DONE
    assert f"fastfeat {command}" in " ".join(capsys.readouterr().out.split()).replace("Usage: fastfeat", "")


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run([]) == app.DONE
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["get"], "Missing argument"),
        (["get", "scoring"], "name at least one entity"),
        (["get", "scoring", "-e", "user_id=7", "--as-of", "2026-03-03"], "has no zone"),
        (["get", "scoring", "-e", "user_id=7", "--as-of", "yesterday"], "write one such as 2013-07-04T15:00Z"),
        (["info", "--url", "http://127.0.0.1"], "fastfeat+unix:///path"),
        (["bench", "scoring", "--url", "http://127.0.0.1"], "fastfeat+unix:///path"),
        (["serve", "features.py", "--port", "99999"], "port=99999 is not within 0 to 65535"),
        (["serve", "features.py", "--set", "prot=1"], "'prot', which is unknown"),
        (["bench", "scoring"], "need --url"),
        (["bench", "--requests", "1"], "--requests"),
        (["serve"], "give definitions, or a directory that has some"),
        (["serve", "--set", "fsync=never", "--directory", "d"], "fsync='never' is not one of always, interval, off"),
        (["info", "--nothing"], "No such option"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(words) == app.MISUSED
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.err.startswith("fastfeat: ")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


@pytest.mark.parametrize("debug", [False, True])
def test_a_failure_is_one_line_and_exit_code_1(debug: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Port 1 of the loopback address: nobody listens there."""
    words = ["info", "--url", "fastfeat://127.0.0.1:1", *(["--debug"] if debug else [])]
    assert app.run(words) == app.FAILED
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("fastfeat: ConnectFailed: ")
    assert ("Traceback (most recent call last):" in lines) == debug
    assert debug or len(lines) == 1


def test_an_unexpected_error_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> int:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(app, "app", broken)
    assert app.run(["info"]) == app.FAILED
    assert capsys.readouterr().err == "fastfeat: RuntimeError: two lines (not expected: --debug shows where)\n"


def test_help_does_not_load_what_only_work_needs() -> None:
    code = (
        "import sys; from fastfeat.cli.app import run; run(['--help']);"
        "print([m for m in ('numpy', 'pyarrow', 'uvloop', 'pandas') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_definitions_come_from_a_file_in_its_order(definitions: Path) -> None:
    found = load_definitions(str(definitions))
    assert [definition.name for definition in found] == ["user", "profile", "scoring"]


def test_definitions_come_from_a_module() -> None:
    found = load_definitions("fastfeat_flights.definitions")
    assert {"weather", "aircraft", "late_arrival"} <= {definition.name for definition in found}


def test_a_file_without_views_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty_features.py"
    path.write_text('"""Nothing."""\n', encoding="utf-8")
    with pytest.raises(SchemaError, match="defines no FeatureView"):
        load_definitions(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no definitions at .*absent"):
        load_definitions(str(tmp_path / "absent.py"))


REQUEST = {"amount": "float64", "is_new": "bool", "since": "timestamp"}


def test_entities_are_parsed_by_the_types_of_their_keys() -> None:
    types = {"origin": "string", "user_id": "int64"} | REQUEST
    moment = datetime(2013, 7, 4, 15, tzinfo=UTC)
    fields = {"amount": -1.5, "is_new": True, "since": moment}
    assert read.parse_entity("amount=-1.5,is_new=true,since=2013-07-04T15:00Z", types) == fields
    assert read.parse_entity('{"amount": -1.5, "is_new": true, "since": "2013-07-04T15:00Z"}', types) == fields
    assert read.parse_entity('{"since": 5, "amount": null}', types) == {"since": 5, "amount": None}
    assert read.parse_entity("origin=7,user_id=7", types) == {"origin": "7", "user_id": 7}
    assert read.parse_entity("origin=a=b", types) == {"origin": "a=b"}
    assert read.parse_entity('{"origin": "a,b"}', types) == {"origin": "a,b"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("user_id", "is not key=value"),
        ("=7", "is not key=value"),
        (
            "user=7",
            "no view has the join key or request field 'user'; there are amount, is_new, origin, since, user_id",
        ),
        ("user_id=seven", "is not an integer, and it is int64"),
        ("amount=much", "is not a number, and it is float64"),
        ("is_new=1", "is not true or false, and it is bool"),
        ("since=today", "is not a moment such as 2013-07-04T15:00Z, and it is timestamp"),
        ('{"since": "today"}', "is not a moment"),
        ("{", "is not JSON"),
    ],
)
def test_entities_that_do_not_parse_are_explained(text: str, says: str) -> None:
    with pytest.raises(BadParameter, match=says):
        read.parse_entity(text, {"origin": "string", "user_id": "int64"} | REQUEST)


def test_one_word_is_a_service_and_colons_are_features() -> None:
    assert read.wanted_features(["scoring"]) == "scoring"
    assert read.wanted_features(["profile:age"]) == ["profile:age"]
    assert read.wanted_features(["profile:age", "profile:balance"]) == ["profile:age", "profile:balance"]


def test_times_are_read_with_a_zone_and_shown_in_utc() -> None:
    assert output.parse_time("2013-07-04T11:00-04:00") == datetime(2013, 7, 4, 15, tzinfo=UTC)
    assert output.time_text(1_372_950_000_000_000) == "2013-07-04 15:00:00"
    assert output.time_text(1_372_950_000_000_001) == "2013-07-04 15:00:00.000001"
    assert output.time_text(-1) == "1969-12-31 23:59:59.999999"


def test_sizes_are_shown_in_their_unit() -> None:
    assert [output.size_text(n) for n in (0, 1023, 1536, 5 << 20, 3 << 40)] == [
        "0 B",
        "1,023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3,072.0 GiB",
    ]


def test_json_holds_bytes_arrays_and_times(capsys: pytest.CaptureFixture[str]) -> None:
    moment = datetime(2013, 1, 1, tzinfo=UTC)
    output.print_json({"a": b"\x00\xff", "b": np.arange(3), "c": np.float64(0.5), "d": moment})
    assert json.loads(capsys.readouterr().out) == {
        "a": "00ff",
        "b": [0, 1, 2],
        "c": 0.5,
        "d": "2013-01-01T00:00:00+00:00",
    }


def test_measuring_counts_each_call_once() -> None:
    seen: list[int] = []
    took = output.measure(seen.append, 50)
    assert len(took) == 50
    assert (took >= 0).all()
    assert seen[-50:] == list(range(50))
    assert list(output.percentiles(took)) == ["p50", "p99", "p99.9"]


def test_the_default_url_is_the_servers_default_port() -> None:
    assert f"fastfeat://127.0.0.1:{DEFAULT_PORT}" == options.DEFAULT_URL


# --- against a running server -------------------------------------------------------------------------------------

ON_DEMAND = """
from fastfeat import on_demand_feature_view

@on_demand_feature_view(
    inputs=[profile["balance"]],
    request=[Field("amount", "float64"), Field("when", "timestamp")],
    schema=[Field("left", "float64"), Field("is_night", "bool")],
)
def purchase(inputs):
    hour = inputs["when"] // 3_600_000_000 % 24
    return {"left": inputs["balance"] - inputs["amount"], "is_night": (hour >= 22) | (hour < 6)}
"""

WINDOWS = """
from datetime import timedelta
from fastfeat import Aggregation, WindowView

payments = FeatureView("payments", entity=user, kind="event", schema=[Field("paid", "float64")])
spending = WindowView("spending", source=payments, features=[Aggregation("paid", "sum", timedelta(hours=1))])
"""

ROWS = """user_id,event_timestamp,age,balance
7,2026-03-02T00:00:00Z,41,120.0
7,2026-03-06T00:00:00Z,41,80.5
8,2026-03-06T00:00:00Z,,3.5
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the definitions above with the rows above, in its own process."""
    path = tmp_path_factory.mktemp("served") / "served_features.py"
    path.write_text(DEFINITIONS + ON_DEMAND + WINDOWS, encoding="utf-8")
    rows = path.with_name("rows.csv")
    rows.write_text(ROWS, encoding="utf-8")
    with served(str(path), "--load", f"profile={rows}") as url:
        yield url


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that must succeed prints."""
    code = app.run(words)
    shown = capsys.readouterr()
    assert (code, shown.err) == (app.DONE, "")
    return shown.out


def test_get_prints_values_with_their_status_and_time(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["get", "scoring", "-e", "user_id=7", "--as-of", "2026-03-05T00:00Z", "--url", url]
    shown = printed(words, capsys)
    assert all(text in shown for text in ("user_id=7", "profile:balance", "120", "PRESENT", "2026-03-02 00:00:00"))


def test_get_as_json_is_one_document_for_all_entities(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["get", "profile:age", "profile:balance", "-e", "user_id=8", "-e", "user_id=9", "--json", "--url", url]
    there, absent = json.loads(printed(words, capsys))
    assert there["entity"] == {"user_id": 8}
    assert there["values"] == {"profile:age": None, "profile:balance": 3.5}
    assert there["statuses"] == {"profile:age": "NULL", "profile:balance": "PRESENT"}
    assert there["views"]["profile"]["status"] == "PRESENT"
    assert absent["values"] == {"profile:age": None, "profile:balance": None}
    assert absent["views"]["profile"] == {"status": "NOT_FOUND", "event_time_us": 0}


def test_get_takes_request_fields_beside_the_keys(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["get", "purchase:left", "purchase:is_night", "-e", "user_id=8,amount=1.25,when=2026-03-06T23:30Z"]
    [answer] = json.loads(printed([*words, "--json", "--url", url], capsys))
    assert answer["values"] == {"purchase:left": 2.25, "purchase:is_night": True}
    assert answer["entity"] == {"user_id": 8, "amount": 1.25, "when": "2026-03-06T23:30:00+00:00"}
    assert "is_night" in printed([*words, "--url", url], capsys)
    shown = printed(["info", "--url", url], capsys)
    assert all(text in shown for text in ("on-demand views", "purchase", "amount, when"))


def test_info_shows_what_the_server_holds(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(["info", "--url", url], capsys)
    assert all(text in shown for text in ("profile", "user_id", "window views", "spending", "scoring", "memory:"))
    found = json.loads(printed(["info", "--json", "--url", url], capsys))
    assert found["views"]["profile"]["rows"] >= 3
    assert found["views"]["profile"]["entities"] >= 2


def test_bench_times_a_running_server(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "scoring", "-e", "user_id=7", "--requests", "100", "--json", "--url", url]
    ping, read_row = json.loads(printed(words, capsys))
    assert ping["from"] == "ping"
    assert read_row["batch"] == 1
    assert 0 < read_row["p50"] <= read_row["p99"] <= read_row["p99.9"]


def test_load_takes_files_and_tells_what_became_of_the_rows(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "more.csv"
    path.write_text("user_id,updated,age,balance\n70,2026-03-02T00:00:00Z,1,1.0\n", encoding="utf-8")
    words = ["load", "profile", str(path), "--event-time", "updated", "--json", "--url", url]
    (report,) = json.loads(printed(words, capsys))
    assert (report["path"], report["accepted"], report["rejected"]) == (str(path), 1, 0)
    shown = printed(["get", "profile:balance", "-e", "user_id=70", "--url", url], capsys)
    assert "PRESENT" in shown


def test_rows_that_do_not_fit_are_counted_and_the_exit_code_is_1(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("user_id,event_timestamp,age,balance\n,2026-03-02T00:00:00Z,1,1.0\n", encoding="utf-8")
    assert app.run(["load", "profile", str(path), "--json", "--url", url]) == app.FAILED
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["accepted"], report["rejected"], sum(report["reasons"].values())) == (0, 1, 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["get", "nothing", "-e", "user_id=7"], "UnknownView"),
        (["get", "profile:nothing", "-e", "user_id=7"], "UnknownFeature"),
        (["load", "nothing", "absent.csv"], "fastfeat: "),
        (["load", "profile", "absent.csv"], "absent.csv"),
    ],
)
def test_the_servers_errors_are_one_line(
    url: str, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run([*words, "--url", url]) == app.FAILED
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1


def run_program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastfeat.cli", *words], capture_output=True, text=True, check=False, timeout=300
    )


def test_serve_refuses_an_address_that_others_can_reach(definitions: Path) -> None:
    run = run_program("serve", str(definitions), "--host", "0.0.0.0")
    assert run.returncode == app.MISUSED
    assert "loopback" in run.stderr
    assert run.stderr.count("\n") == 1


def test_serve_loads_first_and_stops_at_a_signal_with_exit_code_0(definitions: Path, tmp_path: Path) -> None:
    rows, socket = tmp_path / "rows.csv", tmp_path / "s"
    rows.write_text(ROWS, encoding="utf-8")
    words = ["serve", str(definitions), "--load", f"profile={rows}", "--port", "0", "--unix-socket", str(socket)]
    command = [sys.executable, "-m", "fastfeat.cli", *words, "--capacity-mib", "64"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == app.DONE
    assert said[0] == f"loaded 3 rows into profile from {rows}\n"
    assert said[1].startswith("serving on fastfeat://127.0.0.1:")
    assert f"fastfeat+unix://{socket}" in said[1]


def test_the_demo_keeps_its_promises() -> None:
    run = run_program("demo", "--json", "--requests", "200")
    assert (run.returncode, run.stderr) == (app.DONE, "")
    report = json.loads(run.stdout)
    assert report["flights"] == 336_776
    assert report["equal"] == 2_000
    assert set(report["leaks"]["as_of"].values()) == {0}
    assert report["leaks"]["now"]["airport_delays"] > 336_000
    assert report["leaks"]["own_departure"]["an_hour_before"] == 0
    training = report["training"]
    assert (training["labels"], training["late"], training["learned_from"]) == (336_776, 87_060, 252_392)
    assert training["auc"] > 0.7
    assert sorted(flight["came late"] for flight in report["scored"]) == [False] * 3 + [True] * 3


def test_bench_measures_itself_and_a_server_of_its_own() -> None:
    run = run_program("bench", "--entities", "1000", "--requests", "100", "--json")
    assert (run.returncode, run.stderr) == (app.DONE, "")
    rows = json.loads(run.stdout)
    assert [(row["from"], row["batch"]) for row in rows] == [
        (name, batch) for name in ("embedded", "server") for batch in (1, 100, 1_000)
    ]
