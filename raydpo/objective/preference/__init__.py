"""Losses on pairs. Of a row's two completions, 0 is the chosen one, y_w, and 1 the rejected one, y_l."""
