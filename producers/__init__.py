"""What publishes: simulators whose truth is known, files, and River's data sets.

Every producer yields `producers.batch.Batch`; `producers.publish.publish` sends them to a bus.
"""
