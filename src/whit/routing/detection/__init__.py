"""Finding what is sensitive, locally and fast: patterns that are validated, the user's terms, a whit adapter.

Detection only ever takes tiers away (see `whit.routing.clearance`); what it misses is no permission.
"""
