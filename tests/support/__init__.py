"""What tests build on: no test module imports another."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
