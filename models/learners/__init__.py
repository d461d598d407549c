"""Learners: River models, compiled ones, and what is wrapped around them."""
