"""The report of a profile: one self-contained HTML page, and the data that figures draw from."""
