"""What the user sees: one-shot output, the interactive chat, the small commands. The agent loop is elsewhere."""
