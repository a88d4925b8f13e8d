"""`python -m cli` is the `imprimatur` command."""

from cli.main import main

main()
