"""snnexp from a program: `snnexp.load`, `snnexp.train`, `snnexp.runs`."""
