"""The Bytewax side: pipeline declaration, source, steps, sink, recovery, the bus and the commands.

What a user needs to declare a pipeline is importable from `anabranch`.
"""
