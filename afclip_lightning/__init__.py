"""Zero- and few-shot image anomaly detection on frozen CLIP features."""

import os

# albumentations would look for a newer version of itself on the network: nothing here goes there without being asked
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
