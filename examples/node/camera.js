// A camera in Node: it logs predictions and sends images to the cloud for inference.
//
//   npm ci && buf generate
//   node camera.js log   --device gate-1
//   node camera.js infer --timeout 8 picture.jpg
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { Code, ConnectError } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { infer } from "./infer.js";
import { log } from "./log.js";

const COMMANDS = {
  log: { run: log, target: "127.0.0.1:50051", seconds: "30" },
  infer: { run: infer, target: "127.0.0.1:50052", seconds: "8" },
};

const OPTIONS = {
  target: { type: "string" }, // address of the service, host:port
  timeout: { type: "string" }, // seconds for the whole, retries included
  "ca-file": { type: "string" }, // authorities to trust (PEM); none: plain text, this machine only
  "api-key-file": { type: "string" }, // holds the API key or JWT; none: none is sent
  model: { type: "string", default: "" }, // infer: name of the model; empty: the service's default
  device: { type: "string", default: "gate-node" }, // log: name of this device, unique in the fleet
  spool: { type: "string" }, // log: UUID of the spool; run again with it to go on
  count: { type: "string", default: "100" }, // log: predictions that the spool holds
};

function open(target, options) {
  const caFile = options["ca-file"];
  if (!caFile && !/^(127\.[\d.]+|localhost|\[::1\]):\d+$/.test(target)) {
    // No key and no image goes to another machine in plain text.
    throw new Error(`${target} is another machine: give --ca-file`);
  }
  return createGrpcTransport({
    baseUrl: `${caFile ? "https" : "http"}://${target}`,
    nodeOptions: caFile ? { ca: readFileSync(caFile) } : {},
    interceptors: [authenticate(options["api-key-file"])],
  });
}

// The file is read anew for every call, so that the key can be replaced while the program runs.
function authenticate(keyFile) {
  return (next) => (request) => {
    if (keyFile) {
      request.header.set("authorization", `Bearer ${readFileSync(keyFile, "utf8").trim()}`);
    }
    return next(request);
  };
}

// A deadline for all tries, and waits that grow and differ, so that a fleet does not come back as
// one. Every call of Sightline may be repeated: a logged prediction has its sequence, a request
// its idempotency key. A broken connection is reported as Aborted here.
function retrying(seconds) {
  const end = Date.now() + seconds * 1000;
  return async (call) => {
    for (let wait = 200; ; wait = Math.min(2 * wait, 2000)) {
      try {
        // The service sees the deadline, too, and refuses at once a call that it could not answer in time.
        return await call({ timeoutMs: Math.max(1, end - Date.now()) });
      } catch (error) {
        const { code } = ConnectError.from(error);
        const pause = Math.random() * wait;
        if (![Code.Unavailable, Code.Aborted].includes(code) || Date.now() + pause >= end) {
          throw error;
        }
        await sleep(pause);
      }
    }
  };
}

function positive(name, text) {
  const value = Number(text);
  if (!(value > 0 && value < Infinity)) {
    throw new Error(`--${name} must be above 0 (got ${text})`);
  }
  return value;
}

try {
  const [name, ...args] = process.argv.slice(2);
  const command = Object.hasOwn(COMMANDS, name ?? "") ? COMMANDS[name] : undefined;
  if (!command) {
    throw new Error("usage: node camera.js log|infer [options]");
  }
  const { values, positionals } = parseArgs({ args, options: OPTIONS, allowPositionals: true });
  const seconds = positive("timeout", values.timeout ?? command.seconds);
  positive("count", values.count);
  const transport = open(values.target ?? command.target, values);
  await command.run(transport, retrying(seconds), values, positionals);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}
