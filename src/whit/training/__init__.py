"""Training an adapter: the supervised loop, its optimisers, checkpoints that resume to the same result.

Knows adapters and bases; knows nothing of the command line.
"""
