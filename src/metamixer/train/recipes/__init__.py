"""Recipes: functions that return a whole configuration, one file per task."""

from metamixer.train.recipes.registry import describe_recipe, get_recipe, list_recipes, recipe

__all__ = ["describe_recipe", "get_recipe", "list_recipes", "recipe"]
