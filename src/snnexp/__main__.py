"""`python -m snnexp` is `snnexp`."""

from snnexp.cli import main

main()
