"""Speed and memory: `foveate bench`.

`flops` counts, `geometry` and `presets` hold models as numbers, `measure` times, `memory` weighs, `report`,
`plot` and `page` show.
"""
