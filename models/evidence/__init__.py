"""Evidence that may be checked at any time: confidence sequences and e-values."""
