"""Copies what a pipeline publishes to where others read it: files, tables, key-value stores.

An export follows output topics beside the run, which does not know of it. A target stores rows
together with the positions up to which the topics are in it (`dataflows.export.target`).

To add a target, write a class with the methods of `Target`, and give it a URL in
`dataflows.export.open_target`.
"""
