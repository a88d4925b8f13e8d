"""How well an engine does on labelled ads: reading them, deciding them by a policy, and the figures.

Nothing here reaches a server or a database. The project's own test sets lie in data/; none of them is trained on.
"""
