"""`samfast run`: the masks or embeddings of any number of images, shard by shard, exactly once.

    sources.py       a folder, list, URL, tar or Parquet file -> Source: entries and their reader
    containers.py    the entries inside tar and Parquet files
    shards.py        entries -> shards, the unit of work; what a run's results depend on
    read_ahead.py    entries -> decoded images, some ahead of those who use them
    answers.py       the images of shards -> their answers, by a SamFast
    shard_stream.py  shards that several threads ask for, answered as one stream
    shard_files.py   answers -> one Parquet file, whole or absent
    destination.py   the folder or URL of the results
    manifest.py      which shards are done, and of which run
    run_shards.py    all shards that are left, on one device
    run_on_ray.py    the same on the devices of a Ray cluster
    convert.py       results -> COCO, YOLO, GeoJSON

Needs the extra `cluster`. The engine knows nothing of this package.
"""
