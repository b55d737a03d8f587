"""The export formats that `datasets import --from` reads, one module each."""
