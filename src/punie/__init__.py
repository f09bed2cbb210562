"""Punie: a coding agent that runs on your own machine."""
