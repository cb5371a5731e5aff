"""The command line's grammar, in one place, so that `--help`, the shell completion and the commands agree.

Commands are named here and imported when they are run: `raftspine serve` must not pay for the tables of
`list`, nor `raftspine get` for the node.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter, _SubParsersAction
from collections.abc import Mapping

from raftspine._version import __version__
from raftspine.cli import exits, grammar
from raftspine.cli.values import batch_size, command, commas, importance, port, positive, positive_float

DEFAULT_URL = "http://127.0.0.1:8788"

Commands = "_SubParsersAction[ArgumentParser]"


def build(environ: Mapping[str, str]) -> ArgumentParser:
    """The whole parser; `environ` gives the defaults of --url and --api-key."""
    parser = ArgumentParser(
        prog="raftspine",
        description="A distributed memory store for agent fleets.",
        epilog=exits.HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"raftspine {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    shared = _shared(environ)
    _nodes(commands)
    _memories(commands, shared)
    grammar.coordination(commands, shared)
    _transfer(commands, shared)
    _cluster(commands, shared)
    _verify(commands, _shared(environ, timeout_s=2.0))
    _bench(commands, shared)
    completion = commands.add_parser("completion", help="print a completion script for your shell")
    completion.add_argument("shell", choices=("bash", "zsh"))
    completion.set_defaults(run=command("completion", "completion"))
    return parser


def _shared(environ: Mapping[str, str], timeout_s: float = 15.0) -> ArgumentParser:
    """What every command that talks to a cluster takes."""
    shared = ArgumentParser(add_help=False)
    group = shared.add_argument_group("connection and output")
    group.add_argument(
        "--url",
        type=commas,
        default=commas(environ.get("RAFTSPINE_URL") or DEFAULT_URL),
        metavar="URL[,URL…]",
        help=f"one or more nodes (RAFTSPINE_URL; {DEFAULT_URL})",
    )
    group.add_argument("--api-key", default=environ.get("RAFTSPINE_API_KEY"), metavar="KEY", help="RAFTSPINE_API_KEY")
    group.add_argument(
        "--timeout",
        type=positive_float,
        default=timeout_s,
        metavar="S",
        help=f"seconds for one call ({timeout_s:g})",
    )
    group.add_argument("--output", choices=("table", "json"), default="table", help="for people, or for programs")
    return shared


def _nodes(commands: "_SubParsersAction[ArgumentParser]") -> None:
    serve = commands.add_parser("serve", help="run one node of a cluster")
    serve.add_argument("--config", required=True, metavar="FILE", help="the cluster file")
    serve.add_argument("--node", required=True, metavar="ID", help="which of its nodes this is")
    serve.add_argument("--dev", action="store_true", help="allow what only a development cluster may do")
    serve.add_argument(
        "--parent-pipe", action="store_true", help="stop when standard input closes (used by `raftspine dev`)"
    )
    serve.set_defaults(run=command("serve", "serve"))

    dev = commands.add_parser("dev", help="run a whole cluster on this machine")
    dev.add_argument("--data-dir", default=".raftspine", metavar="DIR", help="where it lives (.raftspine)")
    dev.add_argument("--fresh", action="store_true", help="remove what an earlier `dev` left there")
    dev.add_argument("--nodes", type=positive, default=3, metavar="N", help="how many nodes (3)")
    dev.add_argument("--port", type=port, default=8788, help="HTTP port of the first; +100 for each next (8788)")
    dev.add_argument("--durability", choices=("always", "interval"), default="always")
    dev.add_argument("--shard-groups", type=positive, default=16, metavar="G", help="1 to 64 (16)")
    dev.set_defaults(run=command("dev", "dev"))


def _memories(commands: "_SubParsersAction[ArgumentParser]", shared: ArgumentParser) -> None:
    put = commands.add_parser("put", help="store a memory", parents=[shared])
    put.add_argument("id", metavar="ID")
    put.add_argument("content", nargs="?", metavar="CONTENT", help="the text; left out or -: standard input")
    put.add_argument("--json", action="store_true", help="the content is JSON, not text")
    put.add_argument("--tags", type=commas, metavar="A,B", help="replace the tags; critical and lock go by Raft")
    put.add_argument("--agent", metavar="ID", help="who says so")
    put.add_argument("--namespace", metavar="NAME")
    put.add_argument("--importance", type=importance, metavar="I", help="low, medium, high, critical or 0..1")
    put.add_argument("--metadata", metavar="JSON", help="an object of your own")
    put.add_argument("--ttl", type=positive, metavar="S", help="forget it after so many seconds")
    put.add_argument("--pinned", action="store_true", default=None)
    put.add_argument("--expected-version", metavar="V", help="refuse (4) when another version is stored")
    put.add_argument("--if-absent", action="store_true", help="refuse (4) when the id exists")
    put.add_argument("--consistency", metavar="MODEL", help="ask for a stronger model than the tags demand")
    put.set_defaults(run=command("memories", "put"), optional_argument="content")

    get = commands.add_parser("get", help="read a memory", parents=[shared])
    get.add_argument("id", metavar="ID")
    get.add_argument("--consistency", metavar="MODEL", help="strong, causal, read-your-writes or eventual")
    get.add_argument("--content", action="store_true", help="print the content and nothing else")
    get.set_defaults(run=command("memories", "get"))

    listing = commands.add_parser("list", help="list memories", parents=[shared])
    _filters(listing)
    listing.add_argument("--limit", type=positive, default=100, metavar="N", help="at most so many (100)")
    listing.set_defaults(run=command("memories", "list_"))

    remove = commands.add_parser("rm", help="remove memories", parents=[shared])
    remove.add_argument("ids", nargs="+", metavar="ID")
    remove.add_argument("--expected-version", metavar="V", help="refuse (4) when another version is stored")
    remove.set_defaults(run=command("memories", "remove"))

    route = commands.add_parser("route", help="explain where a memory goes, and why", parents=[shared])
    route.add_argument("--tags", type=commas, default=[], metavar="A,B")
    route.add_argument("--id", metavar="ID")
    route.set_defaults(run=command("memories", "route"))


def _filters(parser: ArgumentParser) -> None:
    parser.add_argument("--tag", metavar="TAG")
    parser.add_argument("--namespace", metavar="NAME")
    parser.add_argument("--agent", metavar="ID")
    parser.add_argument("--prefix", metavar="TEXT", help="ids that begin so")
    parser.add_argument("--since", metavar="TIME", help="changed at or after (RFC 3339)")


def _transfer(commands: "_SubParsersAction[ArgumentParser]", shared: ArgumentParser) -> None:
    load = commands.add_parser("import", help="store the memories of a JSON Lines file", parents=[shared])
    load.add_argument("file", metavar="FILE", help="also .gz, or - for standard input")
    load.add_argument("--batch", type=batch_size, default=100, metavar="N", help="memories per request (100)")
    load.add_argument("--concurrency", type=positive, default=4, metavar="N", help="requests at a time (4)")
    load.set_defaults(run=command("transfer", "load"))

    dump = commands.add_parser("export", help="write memories as JSON Lines", parents=[shared])
    dump.add_argument("file", nargs="?", metavar="FILE", help="also .gz; - or left out: standard output")
    _filters(dump)
    dump.set_defaults(run=command("transfer", "dump"), optional_argument="file")


def _cluster(commands: "_SubParsersAction[ArgumentParser]", shared: ArgumentParser) -> None:
    cluster = commands.add_parser("cluster", help="look at the cluster")
    verbs = cluster.add_subparsers(title="commands", metavar="COMMAND", required=True)
    status = verbs.add_parser("status", help="what is up, what is wrong, what to do", parents=[shared])
    status.set_defaults(run=command("cluster", "status"))


def _verify(commands: "_SubParsersAction[ArgumentParser]", shared: ArgumentParser) -> None:
    verify = commands.add_parser(
        "verify",
        help="check a live cluster's promises while it works, and while you break it",
        parents=[shared],
        epilog="exit codes of verify: 0 every promise kept; 1 a promise broken; 2 the command line is at fault; 3 "
        "nothing broken, but something undecided; 4 the cluster cannot be reached",
    )
    verify.add_argument("--seconds", type=positive_float, default=30.0, metavar="S", help="how long to work (30)")
    verify.add_argument("--rate", type=positive_float, default=100.0, metavar="R", help="operations a second (100)")
    verify.add_argument("--clients", type=positive, default=12, metavar="N", help="clients at a time (12)")
    verify.add_argument(
        "--output-dir", default="verify-report", metavar="DIR", help="where the report goes (verify-report)"
    )
    verify.add_argument("--keep", action="store_true", help="do not remove what was written")
    verify.set_defaults(run=command("verify", "verify"))


def _bench(commands: "_SubParsersAction[ArgumentParser]", shared: ArgumentParser) -> None:
    bench = commands.add_parser("bench", help="measure a cluster", parents=[shared])
    bench.add_argument(
        "--workload",
        type=commas,
        default=["write", "read", "mixed"],
        metavar="W[,W…]",
        help="write, read, mixed, strong-write, strong-read, batch, ycsb-a, -b, -c, -d, -f, lock, lock-one, renew, "
        "gate-verify, gate-pass, task",
    )
    bench.add_argument("--clients", type=positive, default=64, metavar="N", help="connections (64)")
    bench.add_argument("--seconds", type=positive_float, default=10.0, metavar="S", help="measured time (10)")
    bench.add_argument("--warmup", type=float, default=1.0, metavar="S", help="time before that (1)")
    bench.add_argument(
        "--rate",
        type=positive_float,
        metavar="R",
        help="open loop: so many operations a second, whatever the answers do",
    )
    bench.add_argument("--value-bytes", type=positive, default=256, metavar="B")
    bench.add_argument("--keys", type=positive, default=10_000, metavar="K")
    bench.add_argument("--distribution", choices=("zipfian", "uniform"), default="zipfian")
    bench.add_argument("--generator", choices=("own", "wrk"), default="own")
    bench.add_argument(
        "--suite",
        action="store_true",
        help="start fresh clusters (and etcd and ZooKeeper, where installed) on this machine and compare",
    )
    bench.add_argument(
        "--only",
        type=commas,
        metavar="P[,P…]",
        help="with --suite: parts of it: memories, locks, handover, watch, growth",
    )
    bench.add_argument("--write", metavar="FILE.md", help="with --suite: the report, and a .json beside it")
    bench.set_defaults(run=command("bench", "bench"))
