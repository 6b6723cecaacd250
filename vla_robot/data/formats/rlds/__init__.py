"""Reads and writes RLDS datasets, as Open-X-Embodiment has them, without TensorFlow.

features.py   fields of each episode and step, from features.json
splits.py     shards and episodes of "train[:95%]", from dataset_info.json
tfrecord.py   shards: records with checksums
example.py    records: the protobuf message tf.train.Example
index.py      offsets of records and frames, computed once and stored
decode.py     fields of a record to arrays; encode.py is the inverse
reader.py     reads episodes
writer.py     writes episodes
"""
