"""The mixer race: the same backbone, data order and budget; only the token mixer changes."""

from metamixer.bench.race.grid import race
from metamixer.bench.race.standings import Cell, RaceResult, Standing
from metamixer.bench.race.task import RaceTask

__all__ = ["Cell", "RaceResult", "RaceTask", "Standing", "race"]
