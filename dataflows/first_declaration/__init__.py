"""Infers a first declaration from a sample of a topic or file, for `anabranch init`."""
