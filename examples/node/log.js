// Logs predictions, each exactly once.
import { randomUUID } from "node:crypto";
import { toJsonString } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs, timestampNow } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { IngestService, PredictionLogResponseSchema } from "./gen/sightline/ingest/v1/ingest_service_pb.js";
import { PredictionSource } from "./gen/sightline/types/v1/prediction_pb.js";

// A message may hold 10 000 predictions and 4 MiB; from some tens on, larger ones gain little.
const BATCH = 32;

export async function log(transport, retry, { device: deviceId, spool, count }) {
  const client = createClient(IngestService, transport);
  const spoolId = spool ?? randomUUID();
  const answer = await retry(async (options) => {
    // Predictions that an earlier run or try has committed are not sent again. The same
    // prediction again would be a duplicate, which is success; another one under its sequence is
    // refused (SEQUENCE_CONFLICT).
    const { committedThrough } = await client.getWatermark({ deviceId, spoolId }, options);
    console.error(`spool ${spoolId} is committed through ${committedThrough}`);
    const predictions = spooled(Number(committedThrough) + 1, Number(count));
    // The one answer comes when all of them are committed.
    return client.predictionLog(messages({ deviceId, spoolId }, predictions), options);
  });
  // Only now a device may delete what it keeps, up to this sequence.
  console.log(toJsonString(PredictionLogResponseSchema, answer, { alwaysEmitImplicit: true }));
  console.error(`committed_through: ${answer.committedThrough}`);
}

async function* messages(names, predictions) {
  yield {
    header: {
      ...names,
      // Both clocks as they are: the service notes how far the first is off.
      deviceTime: timestampNow(),
      deviceMonotonic: durationFromMs(Math.round(performance.now())),
      client: "node-example",
    },
  };
  for (let first = 0; first < predictions.length; first += BATCH) {
    yield { predictions: predictions.slice(first, first + BATCH) };
  }
}

const FIRST_CAPTURE_MS = Date.parse("2025-01-01T00:00:00Z");

// Stands for what a device keeps on its disk until it is committed, so it is the same each time. A
// sequence belongs to its prediction for ever, and none may be missing: what is lost is declared as
// a gap. A device that has lost what it kept goes on with a new spool, never with the old one.
function spooled(first, last) {
  const predictions = [];
  for (let sequence = first; sequence <= last; sequence += 1) {
    predictions.push({
      sequence: BigInt(sequence),
      imageId: `part-${String(sequence).padStart(6, "0")}`,
      imageWidth: 1920,
      imageHeight: 1080,
      modelName: "plates",
      modelVersion: "1",
      source: PredictionSource.DEVICE,
      capturedAt: timestampFromMs(FIRST_CAPTURE_MS + 1000 * sequence),
      inferenceTime: durationFromMs(12),
      detections: [
        {
          classId: 1,
          className: "pit",
          confidence: 0.91,
          // Pixels of the upright image, from its top left corner.
          box: { xMin: 10, yMin: 20, xMax: 30.5, yMax: 40 },
        },
      ],
      defectDetected: true,
      labels: { line: "4" },
    });
  }
  return predictions;
}
