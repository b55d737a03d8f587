"""Inspection of very many images by shards, on one or many machines, into Parquet files.

| file | what it does |
|---|---|
| `sources.py` | lists the sources: image files, archives (tar, Parquet), URLs |
| `urls.py`, `tars.py`, `images_in_parquet.py` | read these sources |
| `plan.py` | divides the listing into shards, and keeps it on disk |
| `reading.py` | reads the images of one shard |
| `judging.py` | inspects one shard and writes its part; every launcher calls this function |
| `routes.py`, `shards.py` | run it in this process, or as units of the launcher |
| `parts.py` | the Parquet files of the output, and the facts stored in them |
| `summary.py` | the end of a job: the column drift, manifest.json |
"""
