"""Models: the embedded one, files and directories on this machine, and services."""
