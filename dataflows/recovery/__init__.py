"""Recovery: the state directory of a run, and the point from which the next run resumes.

`state_directory` is the directory. `manifest` says which pipeline it belongs to,
`state_partition` keeps the state of one step, `tokens` are what the engine keeps of those,
`resume_point` reads the engine's recovery store, `rescale` repartitions windows for another number
of workers, and `inspection` reports on all of it for ``anabranch state``.
"""
