"""Accuracy: `foveate eval` and `foveate tune`.

`tasks` reads data, `metrics` scores, `store` remembers, `runner` asks the model, `summary` counts, `plots` and
`html` show, `tune` chooses, `tuned` is the file that says what was chosen, `lmms` joins lmms-eval.
"""
