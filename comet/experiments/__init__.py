"""Experiments: a grid is read (`grid`), planned as stages (`plan`), run (`schedule`) and put in a table (`results`)."""
