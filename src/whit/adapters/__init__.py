"""Small adapters: the directions they move along, the numbers they move by, the file they are kept in.

The adapter is an input, not a weight: a vector adapter (`tiny`, `xs`) enters the model beside the
tokens, and every row of a batch may bring its own. Knows bases; knows nothing of training or scoring.
"""
