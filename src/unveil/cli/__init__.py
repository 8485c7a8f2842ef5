"""One short file per command: parse, build, call, print."""
