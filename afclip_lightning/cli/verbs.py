"""The commands: the modules of this folder that have a `main`."""

from afclip_runtime.cli.verbs import LAST, Verb, Verbs
from afclip_runtime.errors import PROGRAM

__all__ = ["LAST", "Verb", "run", "verbs"]

CODES = """\
Exit codes: 0 done; 1 what a command's own --help says (images left out, a cell failed); 2 a mistake that the message
explains; 70 a fault of the program; 75 stopped by a signal, can continue; 130 Ctrl-C; 141 the reader of the output
has ended."""

_VERBS = Verbs("afclip_lightning.cli", PROGRAM, CODES)
run, verbs = _VERBS.run, _VERBS.verbs
