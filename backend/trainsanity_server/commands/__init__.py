"""The server's part of the command line: one file, one command, plugged in by entry points."""
