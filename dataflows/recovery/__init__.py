"""What a run remembers when it begins again: its state directory, and where to go on.

`directory` is the whole; `identity` says what it belongs to, `place` keeps the state of one step,
`resume_point` reads where the engine would go on, `rescale` lays windows out for another number of
workers, and `inspection` looks at all of it for ``anabranch state``.
"""
