"""The kinds of export that `datasets import` reads: what `--from` may name, one file each."""
