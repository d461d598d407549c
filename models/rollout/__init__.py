"""Rollouts: policies, traffic, guardrails, and what is served."""
