"""`python -m afclip_lightning`."""

import sys

from afclip_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
