"""Command-line programs and developer tools around the pack; never shipped with it."""
