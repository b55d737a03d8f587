"""The frozen CLIP: its towers and weights, what it is given, and its features on disk."""
