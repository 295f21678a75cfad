-- Version 4: rotated boxes, keypoints and masks. Sizes are in pixels, angles in radians.

-- Each column has one entry for each entry of `detections`, in the same order; NULL: no detection of
-- the prediction has one. They are columns, and not fields in `detections`: adding a column writes
-- no row again, and DuckDB 1.5.5 crashes where a field is added to structs in a list of a file.

-- An entry is NULL where a detection has no rotated box.
ALTER TABLE predictions ADD COLUMN rotated_boxes STRUCT(
    center_x FLOAT,
    center_y FLOAT,
    width FLOAT,
    height FLOAT,
    angle FLOAT
)[];
-- The points of a detection, an empty list where it has none. confidence is NULL if the model gives
-- none.
ALTER TABLE predictions ADD COLUMN keypoints STRUCT(x FLOAT, y FLOAT, confidence FLOAT)[][];
-- An entry is NULL where a detection has no mask. Either rle, width and height are set, or polygons:
-- x and y of each point in turn, as in the segmentation of COCO. The others are '', 0 or empty.
ALTER TABLE predictions ADD COLUMN masks STRUCT(
    width INTEGER,
    height INTEGER,
    rle VARCHAR,
    polygons FLOAT[][]
)[];
