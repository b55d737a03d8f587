"""`python -m afclip_lightning`."""

import os
import sys

# Before torch is loaded: threads that wait by spinning starve the loader processes, and themselves, wherever there are
# more of them than cores; sleeping instead made a pass beside one busy process several times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from afclip_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
