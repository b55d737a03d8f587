"""Inspecting very many images: shard by shard, on one machine or many, into Parquet files.

| file | what it does |
|---|---|
| `sources.py` | lists what was named: image files, archives (tar, Parquet), URLs |
| `urls.py`, `tars.py`, `images_in_parquet.py` | read these sources |
| `plan.py` | cuts the listing into shards and keeps it on disk |
| `reading.py` | reads the images of one shard |
| `judging.py` | judges one shard and writes its part: the one function that every launcher calls |
| `routes.py`, `shards.py`, `on_ray.py` | where that runs: in this process, as units of the launcher, on Ray Data |
| `parts.py` | the Parquet files of the output, and what is known of each |
| `summary.py` | the end of a job: the column drift, manifest.json |
"""
