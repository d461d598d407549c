"""Sources of messages to publish: simulators with known ground truth, files, River's data sets.

Every producer yields `producers.batch.Batch`; `producers.publish.publish` sends them to a bus.
"""
