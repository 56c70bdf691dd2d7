"""Real-arithmetic transforms: the 2-D discrete Fourier and cosine transforms of feature maps."""

from metamixer.ops.dct import dct2, idct2
from metamixer.ops.dft import irdft2, rdft2
from metamixer.ops.transform_choice import use_transform

__all__ = ["dct2", "idct2", "irdft2", "rdft2", "use_transform"]
