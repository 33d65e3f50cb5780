"""One self-contained HTML page about runs: what was run on what, and what came of it."""
