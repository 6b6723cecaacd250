"""Datasets of Open-X-Embodiment as TensorFlow Datasets writes them (RLDS), read and written without TensorFlow.

features.py   what each episode and step holds, from features.json
splits.py     which shards and episodes "train[:95%]" means, from dataset_info.json
storage.py    files on disk and behind fsspec URLs
tfrecord.py   a shard is a row of records with checksums
example.py    a record is a protobuf tf.train.Example
index.py      where each record and each frame begins, found once and kept
reader.py     episodes
writer.py     the same, backwards
"""
