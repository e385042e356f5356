"""The native core: key --index--> timeline --as-of--> row --columns--> cell --codec--> bytes."""

import os

from ..errors import DataError

# vectors.h reads it when a module is loaded, where no error can be raised: so it is held to what that knows here.
bits = os.environ.get("FASTFEAT_VECTOR_BITS", "512")
if bits not in ("128", "256", "512"):
    raise DataError(f"FASTFEAT_VECTOR_BITS is {bits!r}; set it to 128, 256 or 512, or leave it unset for the widest")
