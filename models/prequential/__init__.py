"""The prequential step: each label scores the stored prediction, then trains."""
