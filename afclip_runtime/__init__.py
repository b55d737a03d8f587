"""Inspection of images without torch: what a factory PC needs, and what afclip_lightning is built on.

Nothing here imports torch, Lightning, open_clip or afclip_lightning.
"""

__version__ = "0.1.0"
