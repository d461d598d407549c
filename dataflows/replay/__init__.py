"""History through the same steps: files or topics in, training rows and a state to go on from out.

`bus` makes a bus of history: of files (`file_topic`, whose rows `file_rows` makes messages of) or
of topics (`bus_topic`). What comes out is columns (`rows`), which wait in parts on disk until the
last label has come (`labels`, `row_file`). `run` is the whole.
"""
