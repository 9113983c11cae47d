"""Accuracy: `foveate eval` and `foveate tune`.

`store` remembers, `runner` asks the model, `summary` counts, `plots` and `html` show, `tune` chooses; scores come from
`foveate.scoring`.
"""
