"""Checks a sample of a file or topic against a pipeline's declaration, without changing anything.

Messages go through the decoder and the filter of `run` (`verdicts`), so what is said here is what
would happen there; `fields` then says which fields are to blame, and `labels` what labels join.
"""
