"""What leaves the flow: results are encoded, published once, and checked to have arrived.

`encoder` makes messages of results and `bus_sink` publishes them. After a crash `read_back` finds
what is `published` already. `delivery_retry` waits for a bus that is unavailable. `callback_sink`
is for results that go to a function instead.
"""
