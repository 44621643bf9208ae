"""The command line of a run: as it was given, and with other flags."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CommandLine:
    """A command and the flags that differ from their defaults.

    Attributes:
        name: E.g. ``afterimage audit``.
        flags: Each flag as in ``args``, with underscores, -> its value: text, a number, a path, a
            list of these, or True for a switch. None and False leave it out.
    """

    name: str
    flags: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        name: str,
        declare: Callable[[argparse.ArgumentParser], None],
        args: argparse.Namespace,
    ) -> CommandLine:
        """Return the command line that was read as ``args`` by the flags that ``declare`` adds."""
        parser = argparse.ArgumentParser(add_help=False)
        declare(parser)
        values = {
            action.dest: value
            for action in parser._actions
            if (value := getattr(args, action.dest)) != action.default
        }
        return cls(name, values)

    def text(self, **changes: Any) -> str:
        """Return it for a shell, with some flags changed."""
        words = self.name.split()
        for name, value in {**self.flags, **changes}.items():
            if value is None or value is False:
                continue
            flag = "--" + name.replace("_", "-")
            if value is True:
                words.append(flag)
            elif isinstance(value, list):
                words += [flag, *map(str, value)]
            elif str(value).startswith("-"):  # else read as a flag
                words.append(f"{flag}={value}")
            else:
                words += [flag, str(value)]
        return shlex.join(words)
