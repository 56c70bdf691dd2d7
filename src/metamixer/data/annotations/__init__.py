"""Boxes, instance masks and class maps of pictures, in the formats that people keep them in."""

from metamixer.data.annotations.find import (
    find_problems,
    open_class_maps,
    open_class_maps_to_train,
    open_objects,
    open_objects_to_train,
)
from metamixer.data.annotations.records import ClassMaps, Instance, ObjectSet, Picture, Policy, Problem

__all__ = [
    "ClassMaps",
    "Instance",
    "ObjectSet",
    "Picture",
    "Policy",
    "Problem",
    "find_problems",
    "open_class_maps",
    "open_class_maps_to_train",
    "open_objects",
    "open_objects_to_train",
]
