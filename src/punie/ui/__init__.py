"""What the user sees: one-shot output, the interactive chat and the small commands. Nothing here runs the agent loop."""
