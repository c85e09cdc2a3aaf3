"""Tiers as clients: each is made for one cleared request, and asks only where its clearance allows."""
