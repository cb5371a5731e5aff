"""The grammar of locks, elections, sessions, gates, tasks and changes: the part of `parser` that names many verbs.

A verb is a line of a table: its name, the function that runs it, its words, its help. Options that need more than a
line follow it. So the help, the completion and what runs cannot disagree, and a new verb cannot forget --url or
--output.
"""

from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter, _SubParsersAction
from collections.abc import Callable
from typing import TypeAlias

from raftspine.cli.values import command, commas, json_value, not_negative_float, positive, positive_float

Verbs: TypeAlias = "_SubParsersAction[ArgumentParser]"

RUN_HELP = """\
COMMAND runs while the lock is held, with RAFTSPINE_LOCK_NAME, RAFTSPINE_LOCK_TOKEN (the fencing token: pass it to
what checks tokens) and RAFTSPINE_LOCK_LEASE in its environment. When the lease is lost, COMMAND gets SIGTERM, and
SIGKILL after --grace seconds. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to it; without a
terminal it has a process group of its own, and signals go to all of it. Should this command be killed, so is COMMAND
(Linux).

exit codes of lock run: COMMAND's own; 128+N when signal N ended it; 123 the lease was lost and COMMAND was stopped;
124 the lock was not acquired in time; 125 the store could not be asked or refused; 126 COMMAND cannot be executed;
127 there is no such command
"""


def coordination(commands: Verbs, shared: ArgumentParser) -> None:
    """Add all of it to the parser."""
    _locks(_group(commands, "lock", "run commands under a lock, and look at locks"), shared)
    _elections(_group(commands, "election", "who leads"), shared)
    _sessions(_group(commands, "session", "what lives as long as somebody renews it"), shared)
    _gates(_group(commands, "gate", "let deployments through, or not"), shared)
    _tasks(_group(commands, "task", "queues of work"), shared)
    watch = commands.add_parser("watch", help="print changes as they happen", parents=[shared])
    kinds = "memory, lock, election, gate, task, freeze"
    watch.add_argument("--kinds", type=commas, default=[], metavar="K[,K…]", help=kinds)
    watch.add_argument("--prefix", metavar="TEXT", help="names that begin so")
    watch.add_argument("--tag", metavar="TAG", help="of memories on the strong path")
    watch.add_argument("--since", metavar="TOKEN", help="go on behind the event with this token")
    watch.add_argument("--count", type=positive, metavar="N", help="end after so many events")
    watch.set_defaults(run=command("watching", "watch"))


def _group(commands: Verbs, name: str, help: str) -> Verbs:
    parser = commands.add_parser(name, help=help)
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def _adder(verbs: Verbs, shared: ArgumentParser, module: str) -> Callable[..., ArgumentParser]:
    def add(name: str, function: str, help: str, *words: str) -> ArgumentParser:
        """A verb with positional words, each shown in capitals."""
        verb = verbs.add_parser(name, help=help, parents=[shared])
        for word in words:
            verb.add_argument(word, metavar=word.upper())
        verb.set_defaults(run=command(module, function))
        return verb

    return add


def _locks(verbs: Verbs, shared: ArgumentParser) -> None:
    run = verbs.add_parser(
        "run",
        help="run a command while holding a lock",
        parents=[shared],
        usage="raftspine lock run [options] NAME -- COMMAND [ARGUMENT…]",
        epilog=RUN_HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )
    run.add_argument("name", metavar="NAME")
    run.add_argument("command", nargs="*", help=SUPPRESS)
    run.add_argument("--ttl", type=positive_float, default=30.0, metavar="S", help="of the lease; it is renewed (30)")
    run.add_argument("--wait", type=not_negative_float, metavar="S", help="for the lock (as long as it takes)")
    run.add_argument("--grace", type=not_negative_float, default=10.0, metavar="S", help="SIGTERM to SIGKILL (10)")
    run.add_argument("--owner", metavar="WHO", help="shown to those who look (host:pid)")
    run.add_argument("--priority", type=int, default=0, metavar="P", help="in the queue, -100 to 100 (0)")
    kind = run.add_mutually_exclusive_group()
    kind.add_argument("--shared", action="store_true", help="together with others that have it shared")
    kind.add_argument("--permits", type=positive, metavar="N", help="one of N permits of a semaphore")
    run.set_defaults(run=command("lock_run", "run"))

    add = _adder(verbs, shared, "locks")
    add("ls", "listing", "locks that are held or waited for").add_argument("--prefix", default="", metavar="TEXT")
    add("show", "show", "a lock, its holders and its queue", "name")
    broken = add("break", "break_", "take a lock from its holders (audited)", "name")
    broken.add_argument("--reason", required=True, metavar="TEXT")
    broken.add_argument("--token", type=positive, metavar="T", help="only from the holder with this token")


def _elections(verbs: Verbs, shared: ArgumentParser) -> None:
    add = _adder(verbs, shared, "locks")
    add("show", "leader", "who is in office, and what they proclaim", "name")
    observe = add("observe", "observe", "print each leader as they change", "name")
    observe.add_argument("--count", type=positive, metavar="N", help="end after so many")


def _sessions(verbs: Verbs, shared: ArgumentParser) -> None:
    add = _adder(verbs, shared, "locks")
    add("show", "session", "a session and what it holds", "id")
    add("close", "close_session", "end a session and give back what it holds", "id")


def _gates(verbs: Verbs, shared: ArgumentParser) -> None:
    plain = _adder(verbs, shared, "gates")

    def add(name: str, function: str, help: str, *words: str) -> ArgumentParser:
        verb = plain(name, function, help, *words)
        verb.add_argument("--agent", metavar="WHO", help="who acts; with API keys, the key does")
        return verb

    for name, help in (("open", "open a gate"), ("close", "close a gate")):
        verb = add(name, name, help, "name")
        verb.add_argument("--policy", metavar="FILE", help="the conditions of its requests, JSON or YAML")
        verb.add_argument("--reason", default="", metavar="TEXT")
        if name == "open":
            verb.add_argument("--uses", type=positive, metavar="N", help="passages before it closes")
            verb.add_argument("--expires-at", metavar="TIME", help="closed from then on (RFC 3339)")
    plain("ls", "listing", "all gates").add_argument("--prefix", default="", metavar="TEXT")
    plain("show", "show", "a gate, and why it is closed", "name")
    add("rm", "remove", "remove a gate; from then on it is closed", "name")
    add("pass", "pass_", "go through a simple gate; one use is gone", "name")
    _requests(plain, add)
    _freezes(plain, add)


def _requests(plain: Callable[..., ArgumentParser], add: Callable[..., ArgumentParser]) -> None:
    request = add("request", "request", "ask to take an artifact through", "name", "digest")
    request.add_argument("--subject", default="", metavar="TEXT", help="what is deployed where")
    request.add_argument("--id", metavar="ID", help="of the request (drawn)")
    request.add_argument("--metadata", type=json_value, metavar="JSON")
    plain("requests", "requests", "requests of a gate, newest first", "name")
    plain("status", "status", "a request, and what it still lacks", "name", "id")
    approve = add("approve", "approve", "approve the artifact of a request", "name", "id", "digest")
    approve.add_argument("--comment", default="", metavar="TEXT")
    approve.add_argument("--groups", type=commas, default=[], metavar="G[,G…]", help="the approver's")
    for name, help in (("reject", "end a request, as an approver"), ("cancel", "end one's own request")):
        add(name, name, help, "name", "id").add_argument("--reason", default="", metavar="TEXT")
    report = add("report", "report", "say what a check found", "name", "id", "digest", "check")
    report.add_argument("verdict", choices=("ok", "failed"))
    report.add_argument("--details", default="", metavar="TEXT")
    add("hold", "hold", "put a hold back on a request", "name", "id", "hold")
    add("lift", "lift", "lift a hold from a request", "name", "id", "hold")
    override = add("override", "override", "one person's word to set the conditions aside", "name", "id", "digest")
    override.add_argument("--reason", required=True, metavar="TEXT")
    admit = add("admit", "admit", "go through; prints the fencing token", "name", "id", "digest")
    admit.add_argument("--wait", type=not_negative_float, default=0.0, metavar="S", help="until it may (0)")
    verify = plain("verify", "verify", "0: the next irreversible step may be taken; else no", "name", "id")
    verify.add_argument("token", type=positive, metavar="TOKEN")
    verify.add_argument("--digest", metavar="DIGEST", help="the artifact about to be deployed")
    complete = add("complete", "complete", "say how the deployment ended", "name", "id")
    complete.add_argument("token", type=positive, metavar="TOKEN")
    complete.add_argument("verdict", choices=("ok", "failed"))
    complete.add_argument("--details", default="", metavar="TEXT")


def _freezes(plain: Callable[..., ArgumentParser], add: Callable[..., ArgumentParser]) -> None:
    freeze = add("freeze", "freeze", "let nothing through, at once")
    freeze.add_argument("--scope", default="", metavar="TEXT", help="gates whose names begin so (all)")
    freeze.add_argument("--reason", required=True, metavar="TEXT")
    freeze.add_argument("--until", metavar="TIME", help="RFC 3339 (until it is lifted)")
    freeze.add_argument("--id", metavar="ID", help="of the freeze (drawn)")
    freeze.add_argument("--no-override", action="store_true", help="not even an override reaches through it")
    add("unfreeze", "unfreeze", "lift a freeze", "id").add_argument("--reason", default="", metavar="TEXT")
    plain("freezes", "freezes", "freezes in force")
    audit = plain("audit", "audit", "print a gate's audit chain, verified")
    audit.add_argument("name", nargs="?", metavar="NAME")
    audit.add_argument("--verify", metavar="FILE", help="instead: verify an exported chain, without a store")


def _tasks(verbs: Verbs, shared: ArgumentParser) -> None:
    add = _adder(verbs, shared, "tasks")
    enqueue = add("enqueue", "enqueue", "put a task into a queue", "queue")
    enqueue.add_argument("payload", nargs="?", metavar="PAYLOAD", help="text; left out or -: standard input")
    enqueue.add_argument("--json", action="store_true", help="the payload is JSON, not text")
    enqueue.add_argument("--id", metavar="ID")
    enqueue.add_argument("--priority", type=int, default=0, metavar="P", help="-100 to 100 (0)")
    enqueue.add_argument("--not-before", metavar="TIME", help="RFC 3339")
    enqueue.add_argument("--max-attempts", type=positive, metavar="N", help="then it is dead (no limit)")
    enqueue.add_argument("--backoff", type=not_negative_float, default=0.0, metavar="S", help="after a failure (0)")
    enqueue.add_argument("--dedupe-key", metavar="KEY", help="while one with it is unfinished, this is that one")
    enqueue.set_defaults(optional_argument="payload")
    claim = add("claim", "claim", "take tasks to work on", "queue")
    claim.add_argument("-n", type=positive, default=1, metavar="N", help="at most so many (1)")
    claim.add_argument("--owner", metavar="WHO")
    claim.add_argument("--lease", type=positive_float, default=60.0, metavar="S", help="complete it within (60)")
    claim.add_argument("--wait", type=not_negative_float, default=0.0, metavar="S", help="for the first (0)")
    complete = add("complete", "complete", "a task is done", "queue", "id")
    complete.add_argument("token", type=positive, metavar="TOKEN", help="the claim's")
    complete.add_argument("--result", type=json_value, metavar="JSON")
    fail = add("fail", "fail", "give a task back", "queue", "id")
    fail.add_argument("token", type=positive, metavar="TOKEN", help="the claim's")
    fail.add_argument("--error", default="", metavar="TEXT")
    fail.add_argument("--no-retry", action="store_true", help="to the dead letters")
    fail.add_argument("--delay", type=not_negative_float, metavar="S", help="before the next attempt (its backoff)")
    listing = add("list", "listing", "tasks of a queue; without one, the queues")
    listing.add_argument("queue", nargs="?", metavar="QUEUE")
    listing.add_argument("--state", choices=("ready", "delayed", "claimed", "done", "dead"))
    add("dead", "dead", "dead letters of a queue", "queue")
    add("show", "show", "a task with payload and result", "queue", "id")
    add("requeue", "requeue", "give a dead task its attempts back", "queue", "id")
    add("rm", "remove", "forget a task that nobody has claimed", "queue", "id")
