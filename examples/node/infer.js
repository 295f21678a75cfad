// Sends an image to the inference service and returns its answer.
import { createHash, randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { toJsonString } from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import { InferenceService, InferResponseSchema } from "./gen/sightline/inference/v1/inference_service_pb.js";

export async function infer(transport, retry, { model }, [path, ...more]) {
  if (!path || more.length > 0) {
    throw new Error("usage: node camera.js infer [options] PICTURE");
  }
  const data = await readFile(path);
  const request = {
    images: [
      {
        imageId: basename(path),
        source: { case: "data", value: data },
        sha256: createHash("sha256").update(data).digest(), // an image that was damaged on its way is refused
      },
    ],
    model: model ? { name: model } : undefined,
  };
  // One key for one request: however often it is retried, the model runs once, and all tries get
  // its answer. The next image needs a new key.
  const headers = { "idempotency-key": randomUUID() };
  const client = createClient(InferenceService, transport);
  let replayed = false;
  const onTrailer = (trailers) => {
    replayed = trailers.has("idempotent-replayed");
  };
  const answer = await retry((options) => client.infer(request, { ...options, headers, onTrailer }));
  const how = replayed ? " (a replay of the answer to an earlier try)" : "";
  console.error(`answered by ${answer.modelName} ${answer.modelVersion}${how}`);
  console.log(toJsonString(InferResponseSchema, answer));
}
