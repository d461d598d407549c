"""Control and status of a rollout from outside: what `anabranch rollout` does."""
