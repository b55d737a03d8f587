"""From an image to what a backbone takes, and from its maps back to the image."""
