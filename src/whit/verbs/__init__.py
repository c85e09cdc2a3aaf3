"""The commands, one a file. Each takes its settings and gives a result with `to_json` and `to_text`."""
