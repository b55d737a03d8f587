"""Trained heads as files: with a card, ready by name, or imported from other projects."""
