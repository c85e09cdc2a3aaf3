"""Tiers: each request goes to the smallest tool that does the job, and nothing sensitive leaves.

`clearance` says where a request may go and is the guarantee; `detection` only ever takes tiers away; `gateway`
answers requests; `choosing` learns which tier is enough; `ledger` keeps what it cost. Importing this package
loads nothing heavy.
"""
