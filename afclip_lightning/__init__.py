"""Zero- and few-shot image anomaly detection on frozen CLIP features."""

__version__ = "0.1.0"
