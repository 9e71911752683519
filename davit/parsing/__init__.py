"""Read command lines: one parser for all commands, which shows every default and offers the nearest name of a mistake.

The parsers of `davit checkpoint`, `davit complexity`, `davit det` and `davit seg` lie here, as their rooms import
PyTorch; those of the other commands lie in their rooms, in a module `flags`. None of them imports PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from ..limits import Limits, number
from ..text import is_number, nearest

__all__ = ["ANY_MODEL", "Help", "Parser", "RawHelp", "add_address", "add_device"]

ANY_MODEL = "a DaViT variant such as DaViT_tiny, or any model that timm knows"

_MOST_NAMED = 3  # flags that a mistake may have meant
_MOST_IN_USAGE = 8  # flags that a usage line lists one by one


class Help(argparse.HelpFormatter):
    """Show the default of every flag that takes a value, unless its help says it in words of its own.

    A number is called N where it is whole and X where it is real; a usage line of many flags leaves them out.
    """

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if isinstance(action.type, Limits):
            return "N" if action.type.whole else "X"
        return super()._get_default_metavar_for_optional(action)

    def _format_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None) -> str:
        flags = [action for action in actions if action.option_strings and action.help != argparse.SUPPRESS]
        if usage is None and len(flags) > _MOST_IN_USAGE:
            needed = [action for action in actions if action.required or not action.option_strings]
            usage = f"{super()._format_usage(None, needed, [], '').strip()} [flags]".replace("%", "%%")
        return super()._format_usage(usage, actions, groups, prefix)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if text is None or not action.option_strings or action.nargs == 0 or action.default == argparse.SUPPRESS:
            return text
        if "(default" in text or action.required or isinstance(action, argparse._HelpAction):
            return text
        return f"{text} (default: {_as_words(action.default)})".lstrip()


class RawHelp(Help, argparse.RawDescriptionHelpFormatter):
    """Leave the lines of the description as they are, beside what `Help` does."""


def _as_words(value: Any) -> str:
    """Write a default as one types it; percent signs are doubled, as argparse formats the text once more."""
    if value is None or value == "" or value == [] or value == {}:
        return "none"
    words = value if isinstance(value, list | tuple) else [value]
    return " ".join(f"{word:.6g}" if isinstance(word, float) else str(word) for word in words).replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """Parse as `argparse.ArgumentParser` does; say what a mistyped flag, choice or command may have meant.

    Attributes:
        elsewhere: names the other commands that have a flag; set by who knows them.
    """

    elsewhere: Callable[[str], Sequence[str]] = staticmethod(lambda flag: ())

    def __init__(self, *args: Any, **options: Any) -> None:
        self._words: list[str] = []
        options.setdefault("formatter_class", Help)
        super().__init__(*args, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and keep the words for messages."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def add_argument_group(self, *args: Any, **options: Any) -> Any:
        """Return the group of a title, which parents of the parser may have begun."""
        title = args[0] if args else options.get("title")
        known = next((group for group in self._action_groups if title and group.title == title), None)
        return known or super().add_argument_group(*args, **options)

    def put_first(self, *titles: str) -> None:
        """Let help begin with these groups, after the positional arguments and the options without a group."""
        order = ["positional arguments", "options", *titles]
        self._action_groups.sort(key=lambda group: order.index(group.title) if group.title in order else len(order))

    def error(self, message: str) -> NoReturn:
        """Say which flags are unknown and what is near; or else what argparse says; end with status 2."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for place, word in enumerate(self._words):
                    if isinstance(below := action.choices.get(word), Parser):
                        below._words = self._words[place + 1 :]
                        below.error(message)
        if unknown := self._unknown_flags():
            said = " ".join(f"there is no flag {flag}{self._offer(flag)}" for flag in unknown)
            follows = message.startswith(("unrecognized arguments", "the following arguments are required"))
            message = f"{said} {self.prog} --help lists the flags." if follows else f"{message}; {said}"
        elif message.startswith("unrecognized arguments"):
            places = [str(action.metavar or action.dest) for action in self._actions if not action.option_strings]
            takes = f"{' '.join(places)} alone" if places else "no word"
            message = f"{message}: {self.prog} takes {takes} without a flag. {self.prog} --help lists the flags."
        super().error(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if not (near := nearest(value, map(str, action.choices or ()), 2)):
                raise
            raise argparse.ArgumentError(action, f"{error.message}: did you mean {_either(near)}?") from None

    def _unknown_flags(self) -> list[str]:
        """List the words that look like flags and are none, nor the beginning of one."""
        found = []
        for word in self._words:
            if word == "--":
                break
            if not word.startswith("-") or word == "-" or " " in word or is_number(word):
                continue
            name = word.partition("=")[0]
            if name not in self._option_string_actions and not self._get_option_tuples(word):
                found.append(name)
        return list(dict.fromkeys(found))

    def _offer(self, flag: str) -> str:
        """Name the flags whose help begins with its words and those spelled most like it, or whose flag it is."""
        shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
        names = [name for action in shown for name in action.option_strings]
        words = flag.strip("-").replace("-", " ").replace("_", " ").lower()
        told = [
            max(action.option_strings, key=len)
            for action in shown
            if action.option_strings and len(words) > 3 and (action.help or "").lower().startswith(words)
        ]
        others = [] if told else self.elsewhere(flag)
        if 0 < len(others) < _MOST_NAMED:  # what most commands have tells nothing
            return f"; {_either(others)} has it."
        near = list(dict.fromkeys([*told, *nearest(flag, names, _MOST_NAMED)]))[:_MOST_NAMED]
        return f": did you mean {_either(near)}?" if near else "."


def add_device(add: Callable[..., Any]) -> None:
    """Add where a model runs."""
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, or cuda:N for GPU number N")


def add_address(add: Callable[..., Any], port: int) -> None:
    """Add where a page or a service is reached."""
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen at: 127.0.0.1 is this machine only, 0.0.0.0 lets others in, without a password",
    )
    add("--port", **number("port"), default=port, help="port to listen at; 0 takes a free one, which the log names")
    add(
        "--also-at",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="accept requests to this name too, as a proxy or tunnel sends them; may be given several times",
    )


def _either(names: Iterable[str]) -> str:
    return " or ".join(names)
