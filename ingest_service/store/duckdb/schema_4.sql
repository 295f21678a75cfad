-- Version 4: rotated boxes, keypoints and masks. Sizes are in pixels, angles in radians.

-- One row per prediction with a rotated box, keypoints or a mask, written and deleted in the same
-- transaction as its row in `predictions`. These are not columns of `predictions`: each nested
-- column makes every insert slower, also where all its values are NULL.
CREATE TABLE prediction_shapes (
    -- The first four columns are those of the row in `predictions`.
    device_id VARCHAR NOT NULL,
    spool_id VARCHAR NOT NULL,
    sequence BIGINT NOT NULL,
    received_at TIMESTAMPTZ NOT NULL,
    -- Each of the others has one entry for each entry of `detections`, in the same order; NULL: no
    -- detection of the prediction has one. They are lists of their own, and not fields in
    -- `detections`: DuckDB 1.5.5 crashes where a field is added to structs in a list of a file.

    -- An entry is NULL where a detection has no rotated box.
    rotated_boxes STRUCT(
        center_x FLOAT,
        center_y FLOAT,
        width FLOAT,
        height FLOAT,
        angle FLOAT
    )[],
    -- The points of a detection, an empty list where it has none. confidence is NULL if the model
    -- gives none.
    keypoints STRUCT(x FLOAT, y FLOAT, confidence FLOAT)[][],
    -- An entry is NULL where a detection has no mask. Either rle, width and height are set, or
    -- polygons: x and y of each point in turn, as in the segmentation of COCO. The others are '', 0
    -- or empty.
    masks STRUCT(
        width INTEGER,
        height INTEGER,
        rle VARCHAR,
        polygons FLOAT[][]
    )[]
);

-- Every prediction, with NULL where it has no rotated boxes, keypoints or masks.
CREATE VIEW predictions_with_shapes AS
SELECT p.*, s.rotated_boxes, s.keypoints, s.masks
FROM predictions AS p
LEFT JOIN prediction_shapes AS s USING (received_at, device_id, spool_id, sequence);
