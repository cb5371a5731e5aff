"""The commands against a fake node: what they print, where, and with which exit code."""

import gzip
import io
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftspine import __version__
from raftspine.cli import main
from raftspine.cli.exits import Exit
from tests.support.fake_server import FakeServer, Fault


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


class Cli:
    """Runs commands against one node and captures what they say."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._environ = {"RAFTSPINE_URL": url}
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        code = main(arguments, self._environ)
        self.out, self.err = self._capsys.readouterr()
        return code

    def json(self, *arguments: str) -> Any:
        self(*arguments, "--output", "json")
        return json.loads(self.out)


@pytest.fixture
def cli(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(server.url, capsys)


def closed_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_put_get_list_rm(cli: Cli, server: FakeServer) -> None:
    assert cli("put", "a", "hello", "--tags", "critical,x", "--agent", "me", "--metadata", '{"k":1}') == 0
    assert "stored a as version v1 (strong)" in cli.out
    assert server.memories["a"]["tags"] == ["critical", "x"]
    assert server.memories["a"]["metadata"] == {"k": 1}
    assert cli("get", "a") == 0
    assert "hello" in cli.out and "critical, x" in cli.out
    assert cli.json("get", "a")["content"] == "hello"
    assert cli("put", "b", "--json", '{"n": [1]}') == 0
    assert cli("get", "b", "--content") == 0
    assert json.loads(cli.out) == {"n": [1]}
    assert [r["id"] for r in cli.json("list")] == ["a", "b"]
    assert [r["id"] for r in cli.json("list", "--tag", "x")] == ["a"]
    assert cli("list", "--limit", "1") == 0
    assert "more than these 1" in cli.err
    assert cli("rm", "a", "b", "never-there") == 0
    assert server.memories == {}


def test_the_content_may_follow_the_options(cli: Cli, server: FakeServer) -> None:
    assert cli("put", "a", "--tags", "t", "the content") == 0
    assert server.memories["a"]["content"] == "the content"
    with pytest.raises(SystemExit) as left:
        cli("put", "a", "--tags", "t", "one", "two")
    assert left.value.code == Exit.USAGE


def test_content_comes_from_standard_input(cli: Cli, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in ((), ("-",)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("grüße\n".encode())))
        assert cli("put", "a", *content) == 0
        assert server.memories["a"]["content"] == "grüße\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert cli("put", "a", "-") == Exit.USAGE


def test_memories_cannot_paint_the_screen(cli: Cli) -> None:
    cli("put", "a", "[red]\x1b[31mx\x07", "--tags", "[bold]t")
    for command in (("get", "a"), ("list",)):
        cli(*command)
        assert "[red]" in cli.out
        assert "\x1b" not in cli.out and "\x07" not in cli.out


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(404, "not_found"), Exit.NOT_FOUND),
        (Fault(409, "version_conflict"), Exit.CONFLICT),
        (Fault(412, "precondition_failed"), Exit.CONFLICT),
        (Fault(422, "cannot_weaken"), Exit.USAGE),
        (Fault(401, "unauthorized"), Exit.FAILED),
        (Fault(507, "no_space"), Exit.UNAVAILABLE),
        (Fault(429, "rate_limited"), Exit.UNAVAILABLE),
        (Fault(500, "internal"), Exit.FAILED),
    ],
    ids=str,
)
def test_each_outcome_has_its_exit_code_and_one_line(cli: Cli, server: FakeServer, fault: Fault, code: Exit) -> None:
    server.faults.append(fault)
    assert cli("put", "a", "x") == code
    assert cli.out == ""
    assert cli.err.count("\n") == 1
    assert f"[{fault.code}]" in cli.err


def test_unavailable_and_unknown_are_told_apart(cli: Cli, server: FakeServer) -> None:
    server.faults.extend([Fault(503, "no_quorum")] * 50)
    assert cli("put", "a", "x", "--timeout", "0.2") == Exit.UNAVAILABLE
    server.faults.clear()
    server.faults.extend([Fault(504, "outcome_unknown")] * 50)
    assert cli("put", "a", "x", "--timeout", "0.2") == Exit.UNKNOWN
    assert "key " in cli.err


def test_conditions(cli: Cli) -> None:
    cli("put", "a", "1")
    assert cli("put", "a", "2", "--if-absent") == Exit.CONFLICT
    assert cli("put", "a", "2", "--expected-version", "other") == Exit.CONFLICT
    assert cli("put", "a", "2", "--expected-version", "v1") == 0
    assert cli("rm", "a", "--expected-version", "v1") == Exit.CONFLICT


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["put"],
        ["put", "a", "x", "--importance", "2"],
        ["put", "a", "x", "--ttl", "0"],
        ["list", "--limit", "-1"],
        ["import", "f", "--batch", "1001"],
        ["get", "a", "--output", "yaml"],
        ["dev", "--port", "70000"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_usage(cli: Cli, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli(*arguments)
    assert left.value.code == Exit.USAGE


def test_wrong_values_found_later_are_usage_too(cli: Cli) -> None:
    assert cli("put", "a", "{", "--json") == Exit.USAGE
    assert cli("put", "a", "x", "--metadata", "{") == Exit.USAGE
    assert cli("get", "", "--output", "json") == Exit.USAGE
    assert cli("get", "a", "--url", "localhost") == Exit.USAGE
    assert cli("bench", "--workload", "nonsense") == Exit.USAGE


def test_a_missing_file_is_said_by_name(cli: Cli) -> None:
    assert cli("import", "/nowhere/at/all.jsonl") == Exit.FAILED
    assert cli.err == "raftspine: /nowhere/at/all.jsonl: No such file or directory\n"


def test_a_defect_of_ours_is_one_line_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> int:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr("raftspine.cli.memories.get", broken)
    assert cli("get", "a") == Exit.FAILED
    assert cli.err.count("\n") == 1 and "ZeroDivisionError: oh no" in cli.err
    monkeypatch.setenv("RAFTSPINE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli("get", "a")


def test_version(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli("--version")
    assert left.value.code == 0
    assert capsys.readouterr().out == f"raftspine {__version__}\n"


def test_route(cli: Cli) -> None:
    assert cli("route", "--tags", "critical", "--id", "a") == 0
    assert "strong" in cli.out
    assert cli.json("route")["path"] == "ring"


# ── import and export ───────────────────────────────────────────────────────────────────────────────────────


def jsonl(path: Path, *lines: Any) -> str:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz"])
def test_import_stores_every_line(cli: Cli, server: FakeServer, tmp_path: Path, name: str) -> None:
    lines = [
        {"id": f"k{n}", "agent_id": "a", "created_at": "2021-01-01T00:00:00Z", "tags": ["t"], "content": n}
        for n in range(250)
    ]
    file = jsonl(tmp_path / name, *lines)
    assert cli("import", file, "--batch", "20", "--concurrency", "3") == 0
    assert cli.out == "stored 250 memories (250 new), 0 failed\n"
    assert len(server.memories) == 250
    assert server.memories["k7"]["metadata"] == {"created_at": "2021-01-01T00:00:00Z"}
    assert server.memories["k7"]["agent_id"] == "a"
    assert cli.json("import", file) == {"stored": 250, "created": 0, "failed": []}


def test_import_keeps_going_and_names_the_lines(cli: Cli, server: FakeServer, tmp_path: Path) -> None:
    server.poisoned["bad"] = Fault(422, "invalid_request")
    file = jsonl(
        tmp_path / "m.jsonl",
        {"id": "a", "content": 1},
        "{not json",
        "",
        {"content": "no id"},
        {"id": "b", "content": 1, "colour": "red"},
        {"id": "bad", "content": 1},
        {"id": "c"},
        {"id": "d", "content": 1},
    )
    assert cli("import", file) == Exit.FAILED
    assert sorted(server.memories) == ["a", "d"]
    assert cli.out == "stored 2 memories (2 new), 5 failed\n"
    for start in (
        "line 2:",
        "line 4:",
        "line 5 (b): unknown field 'colour'",
        "line 6 (bad)",
        "line 7 (c): no content",
    ):
        assert f"raftspine: {start}" in cli.err
    assert sorted(f["line"] for f in cli.json("import", file)["failed"]) == [2, 4, 5, 6, 7]


def test_import_lets_the_last_line_of_an_id_win(cli: Cli, server: FakeServer, tmp_path: Path) -> None:
    lines = [{"id": f"k{n % 5}", "content": n} for n in range(200)]
    assert cli("import", jsonl(tmp_path / "m.jsonl", *lines), "--batch", "7", "--concurrency", "4") == 0
    assert {m["content"] for m in server.memories.values()} == {195, 196, 197, 198, 199}
    for seen in server.seen:
        ids = [op["id"] for op in seen.body["ops"]]
        assert len(ids) == len(set(ids))


def test_import_cuts_a_refused_batch_until_the_fault_stands_alone(
    cli: Cli, server: FakeServer, tmp_path: Path
) -> None:
    file = jsonl(tmp_path / "m.jsonl", *({"id": f"k{n}", "content": n} for n in range(4)))
    server.faults.extend([Fault(413, "too_large"), Fault(413, "too_large"), Fault(413, "too_large")])
    assert cli("import", file, "--concurrency", "1") == Exit.FAILED
    assert sorted(server.memories) == ["k1", "k2", "k3"]
    assert "line 1 (k0)" in cli.err


def test_import_gives_up_when_nobody_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = jsonl(tmp_path / "m.jsonl", *({"id": f"k{n}", "content": n} for n in range(40)))
    cli = Cli(closed_url(), capsys)
    assert cli("import", file, "--batch", "2", "--concurrency", "1", "--timeout", "0.05") == Exit.UNAVAILABLE
    assert "gave up" in cli.err and "run the same import again" in cli.err
    assert cli.err.count("line ") == 6, "three batches of two, not all of the file"


def test_import_tries_again_what_may_yet_succeed(
    cli: Cli, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftspine.cli.importer.FIRST_PAUSE_S", 0.001)
    server.poisoned["b"] = Fault(503, "no_leader")
    file = jsonl(tmp_path / "m.jsonl", {"id": "a", "content": 1}, {"id": "b", "content": 1})
    assert cli("import", file, "--concurrency", "1") == Exit.FAILED
    assert [len(seen.body["ops"]) for seen in server.seen] == [2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_an_export_can_be_imported(cli: Cli, server: FakeServer, tmp_path: Path, name: str) -> None:
    for n in range(5):
        cli("put", f"k{n}", f"content {n}", "--tags", "t", "--metadata", '{"created_at": "then"}')
    file = tmp_path / name
    assert cli("export", str(file)) == 0
    assert "exported 5" in cli.out
    before = {id: memory["content"] for id, memory in server.memories.items()}
    server.memories.clear()
    assert cli("import", str(file)) == 0
    assert {id: memory["content"] for id, memory in server.memories.items()} == before
    assert server.memories["k0"]["metadata"] == {"created_at": "then"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_a_failed_export_leaves_no_file(cli: Cli, server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text("the export of yesterday")
    server.faults.append(Fault(401, "unauthorized"))
    assert cli("export", str(file)) == Exit.FAILED
    assert file.read_text() == "the export of yesterday"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


# ── completion ──────────────────────────────────────────────────────────────────────────────────────────────


def test_completion_knows_every_command(cli: Cli) -> None:
    assert cli("completion", "zsh") == 0
    assert "bashcompinit" in cli.out
    assert cli("completion", "bash") == 0
    for word in ("serve", "dev", "put", "get", "list", "rm", "import", "export", "cluster", "route", "bench"):
        assert f'" {word}") command="{word}"' in cli.out
    assert '"cluster status") command="cluster status"' in cli.out
    assert '"cluster status") words="' in cli.out
    assert "--expected-version" in cli.out
