"""`make demo`: the whole way of a job on this machine, with nothing but Python. It begins in `__main__`."""
