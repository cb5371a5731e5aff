"""Shell completion, generated from the parser itself.

A script written by hand would be out of date with the next option. This one is a table of words per command,
so it costs nothing at completion time: the shell never starts Python.
"""

import argparse
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterator

from raftspine.cli.exits import Exit
from raftspine.cli.parser import build

BASH = """\
# raftspine completion for bash: eval "$(raftspine completion bash)"
_raftspine() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" command="" word words
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$command $word" in
{steps}
        esac
    done
    case "$command $previous" in
{choices}
    esac
    case "$command" in
{words}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [ "${{#COMPREPLY[@]}}" -gt 0 ] || COMPREPLY=($(compgen -f -- "$current"))
}}
complete -o filenames -F _raftspine raftspine
"""

ZSH = """\
# raftspine completion for zsh: eval "$(raftspine completion zsh)"
autoload -U +X bashcompinit && bashcompinit
{bash}"""


def completion(arguments: Namespace) -> int:
    """Print the script for one shell."""
    script = bash(build({}))
    print(script if arguments.shell == "bash" else ZSH.format(bash=script), end="")
    return Exit.OK


def bash(parser: ArgumentParser) -> str:
    """The completion script of a parser, with its sub-commands to any depth."""
    steps, choices, words = [], [], []
    for path, found in _commands("", parser):
        if path:
            before, name = path.rsplit(" ", 1) if " " in path else ("", path)
            steps.append(f'            "{before} {name}") command="{path}" ;;')
        for action in _options(found):
            if action.choices:
                names = "|".join(f'"{path} {option}"' for option in action.option_strings)
                listed = " ".join(map(str, action.choices))
                choices.append(f'        {names}) COMPREPLY=($(compgen -W "{listed}" -- "$current")); return ;;')
        offered = " ".join([*_sub_commands(found), *_positional_choices(found), *_flags(found)])
        words.append(f'        "{path}") words="{offered}" ;;')
    return BASH.format(steps="\n".join(steps), choices="\n".join(choices), words="\n".join(words))


def _commands(path: str, parser: ArgumentParser) -> Iterator[tuple[str, ArgumentParser]]:
    yield path, parser
    for name, sub in _sub_commands(parser).items():
        yield from _commands(f"{path} {name}".strip(), sub)


def _sub_commands(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(parser: ArgumentParser) -> list[Action]:
    return [action for action in parser._actions if action.option_strings]


def _flags(parser: ArgumentParser) -> list[str]:
    return [option for action in _options(parser) for option in action.option_strings if option.startswith("--")]


def _positional_choices(parser: ArgumentParser) -> list[str]:
    return [
        str(choice)
        for action in parser._actions
        if not action.option_strings and action.choices and not isinstance(action, argparse._SubParsersAction)
        for choice in action.choices
    ]
