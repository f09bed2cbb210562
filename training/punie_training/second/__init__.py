"""A second opinion on answers about a project: by `tokenize`, grep, find, wc and sed.

It shares no code with the oracle, which goes by `ast`, nor with Punie and its tools, and runs in a process of its own.
"""
