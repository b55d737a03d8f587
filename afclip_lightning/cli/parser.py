"""The parser of all commands beside `fit`, `validate`, `test` and `predict`."""

import argparse
import sys
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong in a line and where the options are listed, instead of listing them."""

    def error(self, message: str) -> NoReturn:
        """Prints the message and ends with exit code 2."""
        print(f"error: {message}\nAll options: {self.prog} --help", file=sys.stderr)
        sys.exit(2)
