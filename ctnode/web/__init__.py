"""The operator's page and its API: shows what the node holds and owes, and decodes nothing itself."""
