-- Version 6: sums of confidences, cloud reasons and versions of models in rollups.

-- True: the rollups of the block have the columns below. NULL: they were made by an older version. The
-- service makes them again from the rows; until then it reads the block row by row.
ALTER TABLE blocks ADD COLUMN has_confidences BOOLEAN;

-- One row per hour, device, model, version of the model, source and verdict in a block.
ALTER TABLE rollups ADD COLUMN model_version VARCHAR;
-- Predictions by the reason for using the cloud; those that did not use it are not counted.
ALTER TABLE rollups ADD COLUMN cloud_reasons STRUCT(cloud_reason VARCHAR, predictions BIGINT)[];
-- Detections by class and confidence: bin b holds those from b / 20 to (b + 1) / 20, the last bin,
-- 19, also 1.
ALTER TABLE rollups ADD COLUMN confidences STRUCT(
    class_name VARCHAR,
    bin UTINYINT,
    detections BIGINT
)[];
