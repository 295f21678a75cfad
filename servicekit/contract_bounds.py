"""Bounds of the fields of the contract, as the comments in `proto/` state them; all are inclusive.

An edge node keeps its records within them, and both services check them. They only grow.
"""

MAX_IMAGE_ID_BYTES = 512
MAX_MODEL_NAME_BYTES = 256
"""Maximum size of the name of a model, and of its version."""
MAX_CLASS_NAME_BYTES = 256
MAX_DEVICE_ID_BYTES = 256
MAX_IMAGE_SIDE = 65_535
"""Maximum width and height of an image and of a mask, pixels."""
MAX_DETECTIONS = 10_000
"""Maximum number of detections in one image."""
MAX_LABELS = 64
MAX_LABEL_BYTES = 1024
"""Maximum size of the key of a label, and of its value."""
MAX_CONTEXT = 16
"""Maximum number of labels in the context of a request."""
MAX_CONTEXT_KEY_BYTES = 64
MAX_CONTEXT_VALUE_BYTES = 256

MAX_KEYPOINTS = 1000
"""Maximum number of keypoints of an object."""
MAX_POLYGONS = 100
"""Maximum number of polygons of a mask."""
MIN_POLYGON_POINTS = 3
MAX_MASK_POINTS = 8192
"""Maximum number of points of all polygons of a mask."""
MAX_RLE_BYTES = 65_536
"""Maximum size of the run lengths of a mask."""
MAX_POLYGON_TOLERANCE = 100
"""Maximum distance between a polygon and the outline of its mask, pixels."""
