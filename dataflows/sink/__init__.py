"""What leaves the flow: published once, and checked.

`bus_sink` is the engine's operator. A message and its mark are in `outgoing`; after a crash
`read_back` reads the marks of what was `published` already. `patience` waits for a bus. `outlet` is
for results that go elsewhere than to topics.
"""
