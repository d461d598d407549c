"""The operators of the flow (`graph`): windows, then the stages of the model step."""
