// Streams predictions into PredictionLog with nothing but @grpc/grpc-js and the .proto files.
// Usage: node log_predictions.js TARGET PROTO_FOLDER DEVICE_ID SPOOL_ID COUNT
// Prints the service's answer as one JSON line; exits 1 with the error's details otherwise.
"use strict";

const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [target, protoFolder, deviceId, spoolId, count] = process.argv.slice(2);
const BATCH = 32;
// A prediction that is sent again must be the same, or the server takes it for another.
const FIRST_CAPTURE = Date.UTC(2026, 0, 1);

const definition = loader.loadSync("sightline/ingest/v1/ingest_service.proto", {
  includeDirs: [protoFolder],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
});
const { IngestService } = grpc.loadPackageDefinition(definition).sightline.ingest.v1;

function timestamp(milliseconds) {
  return { seconds: Math.floor(milliseconds / 1000), nanos: (milliseconds % 1000) * 1e6 };
}

function prediction(sequence) {
  return {
    sequence,
    image_id: `node-${sequence}`,
    image_width: 640,
    image_height: 480,
    model_name: "node-model",
    model_version: "1",
    source: "PREDICTION_SOURCE_DEVICE",
    captured_at: timestamp(FIRST_CAPTURE + 33 * sequence),
    inference_time: { seconds: 0, nanos: 12e6 },
    detections: [
      {
        class_id: 0,
        class_name: "scratch",
        confidence: 0.5,
        box: { x_min: 1, y_min: 2, x_max: 30, y_max: 40 },
        track_id: sequence,
      },
    ],
    defect_detected: true,
    labels: { line: "4" },
  };
}

const client = new IngestService(target, grpc.credentials.createInsecure());
const deadline = new Date(Date.now() + 30000);
const call = client.PredictionLog({ deadline }, (error, answer) => {
  if (error) {
    console.error(`${error.code} ${error.details}`);
    process.exitCode = 1;
  } else {
    console.log(JSON.stringify(answer));
  }
  client.close();
});

call.write({
  header: { device_id: deviceId, spool_id: spoolId, device_time: timestamp(Date.now()), client: "node" },
});
for (let first = 1; first <= Number(count); first += BATCH) {
  const last = Math.min(first + BATCH - 1, Number(count));
  const predictions = [];
  for (let sequence = first; sequence <= last; sequence += 1) {
    predictions.push(prediction(sequence));
  }
  call.write({ predictions });
}
call.end();
