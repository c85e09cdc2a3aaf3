"""Serving: the store of adapters, batches of rows with own adapters, and an OpenAI-compatible server.

Nothing heavy is imported here: `whit.serving.store` needs neither torch nor a web server.
"""
