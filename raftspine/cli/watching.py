"""`watch`: changes as they happen. With --output json each line is one event, with the token to go on behind it."""

from argparse import Namespace

from raftspine.cli.acting import followed


def watch(arguments: Namespace) -> int:
    """Print changes until interrupted. Exit code 1 when the window of kept events has moved past --since."""
    return followed(
        arguments,
        lambda spine: spine.watch(
            prefix=arguments.prefix, kinds=arguments.kinds, tag=arguments.tag, since=arguments.since
        ),
        lambda event: [event.at or "", event.kind, event.key, event.change, event.data],
    )
