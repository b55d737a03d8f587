"""Conversion of an image to the inputs of a backbone, and of its maps back to the image."""
