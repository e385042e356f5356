"""The command line and a store's directory: serve it, ask it, write it out, end with it."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import fastfeat
from fastfeat.cli import app
from fastfeat.cli.child import served
from fastfeat.errors import LogFailed

DEFINITIONS = '''
"""Features of users."""

from fastfeat import Entity, FeatureService, FeatureView, Field

user = Entity("user", join_keys={"user_id": "int64"})
fields = [Field("age", "int32"), Field("balance", "float64")]
profile = FeatureView("profile", entity=user, schema=fields, keep="latest")
scoring = FeatureService("scoring", [profile])
'''
MONDAY_US = 1_772_409_600_000_000
DAY_US = 86_400_000_000


def row(day: int, balance: float) -> dict[str, Any]:
    return {"user_id": 7, "event_timestamp": MONDAY_US + day * DAY_US, "age": 41, "balance": balance}


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("definitions") / "durable_features.py"
    path.write_text(DEFINITIONS, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("stores") / "data")


@pytest.fixture(scope="module")
def url(definitions: str, directory: str) -> Iterator[str]:
    """A server of a directory that two rows were pushed into, stopped and started again without definitions."""
    with served(definitions, "--directory", directory, "--set", "fsync=always") as url, fastfeat.connect(url) as client:
        client.push("profile", row(0, 10.0))
        client.push("profile", row(4, 20.0))
    with served("--directory", directory) as url:
        yield url


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    code = app.run(words)
    shown = capsys.readouterr()
    assert (code, shown.err) == (app.DONE, "")
    return shown.out


def test_a_directory_remembers_rows_and_definitions(url: str) -> None:
    with fastfeat.connect(url) as client:
        assert client.get_feature_vector("scoring", {"user_id": 7}).tolist() == [41.0, 20.0]


def test_a_past_moment_is_answered_from_the_directory_in_every_form(url: str) -> None:
    """The view keeps the latest row; the one of Monday is in the log or the history."""
    tuesday = MONDAY_US + DAY_US
    with fastfeat.connect(url) as client:
        assert client.get_feature_vector("scoring", {"user_id": 7}, as_of=tuesday).tolist() == [41.0, 10.0]
        assert client.get_feature_vectors("scoring", {"user_id": [7]}, as_of=tuesday).tolist() == [[41.0, 10.0]]
        result = client.get_online_features("scoring", [{"user_id": 7}], as_of=tuesday)
        assert result.to_dict() == {"profile:age": [41], "profile:balance": [10.0]}


def test_a_receipt_is_printed_and_replayed_by_another_process(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["get", "scoring", "-e", "user_id=7", "--as-of", "2026-03-03T00:00Z", "--url", url]
    shown = printed([*words, "--receipt"], capsys).splitlines()
    receipt = fastfeat.Receipt.from_json(shown[-1])
    assert (receipt.features, receipt.entities, receipt.as_of) == ("scoring", {"user_id": [7]}, MONDAY_US + DAY_US)
    document = printed([*words, "--receipt", "--json"], capsys)
    answers = json.loads(document)["answers"]
    assert answers == json.loads(printed([*words, "--json"], capsys))
    assert answers[0]["values"] == {"profile:age": 41, "profile:balance": 10.0}
    alone, whole = tmp_path / "receipt.json", tmp_path / "answer.json"
    alone.write_text(shown[-1], encoding="utf-8")
    whole.write_text(document, encoding="utf-8")
    for path in (alone, whole):
        assert printed(["replay", str(path), "--url", url], capsys).splitlines() == shown[:-1]
        assert json.loads(printed(["replay", str(path), "--json", "--url", url], capsys)) == answers
    monkeypatch.setattr(sys, "stdin", io.StringIO(shown[-1]))
    assert json.loads(printed(["replay", "-", "--json", "--url", url], capsys)) == answers


def test_what_is_no_receipt_is_refused_in_one_line(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, says in (("user_id=7", "holds no JSON"), ("{}", "no receipt"), ("[1]", "no receipt"), (None, "No such")):
        path = tmp_path / ("receipt.json" if text else "missing.json")
        if text:
            path.write_text(text, encoding="utf-8")
        assert app.run(["replay", str(path), "--url", url]) == app.FAILED
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1


def test_a_server_of_a_store_in_memory_has_no_receipts(definitions: str, capsys: pytest.CaptureFixture[str]) -> None:
    with served(definitions) as url:
        assert app.run(["get", "scoring", "-e", "user_id=7", "--receipt", "--url", url]) == app.FAILED
    assert capsys.readouterr().err.startswith(f"fastfeat: StorageError: {url} gives no receipts")


def test_info_shows_the_state_of_the_directory(url: str, directory: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(["info", "--url", url], capsys)
    assert all(text in shown for text in (directory, "taken, fsync always", "not synced", "rows to sequence"))
    found = json.loads(printed(["info", "--json", "--url", url], capsys))["storage"]
    assert found["directory"] == directory
    assert found["log"]["durable"] == found["log"]["end"]


def test_snapshot_and_compact_ask_the_server(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = json.loads(printed(["snapshot", "--json", "--url", url], capsys))
    second = json.loads(printed(["snapshot", "--json", "--url", url], capsys))
    assert second["generation"] == first["generation"] + 1
    assert second["views"]["profile"]["entities"] == 1
    shown = printed(["snapshot", "--url", url], capsys)
    assert all(text in shown for text in ("generation", "taken_us", "profile", "entities"))
    assert "rows_erased" in printed(["compact", "--url", url], capsys)


def test_a_snapshot_is_loaded_elsewhere(
    url: str, directory: str, definitions: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = json.loads(printed(["snapshot", "--json", "--url", url], capsys))
    rows = Path(directory, "snapshots", f"{made['generation']:020d}", "profile", "rows")
    with served(definitions) as other, fastfeat.connect(other) as client:
        words = ["load", "profile", str(rows), "--created-time", "created_timestamp", "--json", "--url", other]
        assert json.loads(printed(words, capsys))[0]["accepted"] == 1
        assert client.get_feature_vector("scoring", {"user_id": 7}).tolist() == [41.0, 20.0]


def test_a_directory_has_one_owner_and_the_second_is_told(
    url: str, directory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with fastfeat.connect(url) as client:
        client.ping()
    for words in (["snapshot", directory], ["serve", "--directory", directory, "--port", "0"]):
        assert app.run(words) == app.FAILED
        error = capsys.readouterr().err
        assert error.startswith("fastfeat: DirectoryLocked: ")
        assert error.count("\n") == 1


def test_a_directory_that_nobody_has_open_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(tmp_path / "data")
    user = fastfeat.Entity("user", join_keys={"user_id": "int64"})
    view = fastfeat.FeatureView("profile", entity=user, schema=[fastfeat.Field("x", "float64")])
    with fastfeat.Store.open(directory, capacity_bytes=64 << 20) as store:
        store.apply([user, view])
        store.push("profile", {"user_id": 1, "event_timestamp": MONDAY_US, "x": 1.0})
    assert json.loads(printed(["snapshot", directory, "--json"], capsys))["views"]["profile"]["entities"] == 1
    assert json.loads(printed(["compact", directory, "--json"], capsys))["rows_erased"] == 0


def test_a_store_in_use_is_checked_backed_up_and_restored(
    url: str, directory: str, definitions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = printed(["check", directory], capsys)
    assert all(text in shown for text in ("history", "log", "records", "everything matches its checksum"))
    backup, other = str(tmp_path / "backup"), str(tmp_path / "other")
    assert printed(["backup", directory, backup], capsys).startswith(f"backed up {directory} to {backup}: ")
    made = json.loads(printed(["restore", backup, other, "--json"], capsys))
    assert made["files"] > 0
    assert json.loads(printed(["check", other, "--json"], capsys))["problems"] == []
    with fastfeat.Store.open(other, capacity_bytes=64 << 20) as store:
        assert store.get_feature_vector("scoring", {"user_id": 7}).tolist() == [41.0, 20.0]
        assert store.get_feature_vector("scoring", {"user_id": 7}, as_of=MONDAY_US).tolist() == [41.0, 10.0]
    assert app.run(["restore", backup, other]) == app.FAILED
    assert "is not empty" in capsys.readouterr().err


def test_a_damaged_directory_is_told_and_the_exit_code_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(tmp_path / "data")
    user = fastfeat.Entity("user", join_keys={"user_id": "int64"})
    view = fastfeat.FeatureView("profile", entity=user, schema=[fastfeat.Field("x", "float64")])
    with fastfeat.Store.open(directory, capacity_bytes=64 << 20) as store:
        store.apply([user, view])
        store.push("profile", {"user_id": 1, "event_timestamp": MONDAY_US, "x": 1.0})
    victim = next(path for path in sorted(Path(directory, "snapshots").rglob("*.arrow")) if path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert app.run(["check", directory]) == app.FAILED
    shown = capsys.readouterr()
    assert shown.err == f"fastfeat: 1 problem in {directory}\n"
    assert "problem" in shown.out
    assert victim.name in shown.out.replace("\n", "")


@pytest.mark.parametrize("command", ["snapshot", "compact"])
def test_no_directory_is_begun_by_asking_for_one(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "absent"
    assert app.run([command, str(absent)]) == app.FAILED
    assert "is no directory of a store" in capsys.readouterr().err
    assert not absent.exists()


def test_a_killed_server_has_lost_nothing_that_it_answered(definitions: str, tmp_path: Path) -> None:
    directory = str(tmp_path / "data")
    command = [sys.executable, "-m", "fastfeat.cli", "serve", definitions, "--directory", directory]
    command += ["--port", "0", "--json", "--capacity-mib", "64"]
    for start in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            with fastfeat.connect(json.loads(process.stdout.readline())["url"]) as client:
                if start:
                    assert client.get_feature_vector("scoring", {"user_id": 7})[1] == start - 1
                client.push("profile", row(start, float(start)))
            process.send_signal(signal.SIGKILL)


FAILING = """
import sys
from unittest import mock
from fastfeat.cli import app
from fastfeat.files import Files

class Failing(Files):
    is_broken = False

    def sync(self, fd):
        if self.is_broken:
            raise OSError(5, "Input/output error")
        super().sync(fd)

import fastfeat.files
fastfeat.files.Files = Failing

import fastfeat.cli.serve as serve
announce = serve.announce

def announce_and_break(server, as_json):
    Failing.is_broken = True
    announce(server, as_json)

serve.announce = announce_and_break
sys.exit(app.run(sys.argv[1:]))
"""


@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_serve_ends_with_one_line_when_a_sync_of_the_log_fails(definitions: str, tmp_path: Path, fsync: str) -> None:
    words = ["serve", definitions, "--directory", str(tmp_path / "data"), "--port", "0", "--json"]
    words += ["--set", f"fsync={fsync}"]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", FAILING, *words], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = json.loads(process.stdout.readline())["url"]
        with fastfeat.connect(url) as client, pytest.raises(LogFailed) if fsync == "always" else nullcontext():
            client.push("profile", row(0, 1.0))
        assert process.wait(20) == app.FAILED
        said = process.stderr.read().splitlines()
    assert said[-1].startswith("fastfeat: LogFailed: ")
    assert len(said) == (1 if fsync == "always" else 2)  # in the background it is logged where it happens, too
