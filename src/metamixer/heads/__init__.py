"""Dense prediction: the heads of the four papers on any backbone that gives feature maps."""

from metamixer.heads.base import DenseModel, Detections, Segmentation
from metamixer.heads.build import build, list_heads

__all__ = ["DenseModel", "Detections", "Segmentation", "build", "list_heads"]
