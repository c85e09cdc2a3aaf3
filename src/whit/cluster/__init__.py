"""Beyond one machine: work that a Ray cluster does, and how to come back to it. Nothing of Ray is imported here."""
