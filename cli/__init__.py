"""The two commands: click wiring only."""
