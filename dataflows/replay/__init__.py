"""Replay: runs history through the steps of a pipeline, for training rows and a state to continue.

`replay` is the whole. `source_offsets` opens the inputs, files or topics, as a `history_bus`, which
the dataflow reads like any other bus. `training_rows` makes columns of its results, and
`training_file` writes them to Parquet, once the labels that come later (`late_labels`) are known.
"""
