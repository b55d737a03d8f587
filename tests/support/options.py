"""The flags of a command, read from its parser."""

import argparse


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Returns the flags of a command and of those below it."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {*parser._option_string_actions}.union(*(options_of(p) for a in below for p in a.choices.values()))
